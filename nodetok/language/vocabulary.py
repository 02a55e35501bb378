"""Training of a tokenizer for language models trained from scratch, on the texts of a task."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, EOS, UNKNOWN, INSIDE = "<pad>", "<eos>", "<unk>", "##"


def train_tokenizer(texts: Iterable[str], vocabulary: int = 8000) -> PreTrainedTokenizerFast:
    """Train a lower-cased WordPiece tokenizer on ``texts``, deterministically; ids 0, 1, 2 are padding, end and
    unknown."""
    texts = list(texts)
    draft = _pieces(models.WordPiece(unk_token=UNKNOWN))
    # The library numbers letters inside words in hash-table order, and breaks ties by these numbers: vocabularies would
    # differ between calls, and weights with the same seed. An initial alphabet fixes the order.
    letters = sorted({letter for text in texts for word in _words(draft, text) for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=[PAD, EOS, UNKNOWN, *(INSIDE + letter for letter in letters)],
        show_progress=False, min_frequency=1,
    )  # fmt: skip
    draft.train_from_iterator(texts, trainer)
    made = _pieces(models.WordPiece(draft.get_vocab(), unk_token=UNKNOWN))
    made.decoder = decoders.WordPiece(prefix=INSIDE, cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN)


def _pieces(model: models.WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    return tokenizer


def _words(tokenizer: Tokenizer, text: str) -> list[str]:
    normal = tokenizer.normalizer.normalize_str(text)
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]
