"""Key words that training predicts from an item's semantic code."""

import numpy as np
import pytest
import torch

from setrec.models.setrec_model import SetRecModel
from setrec.models.settings import ModelSettings
from setrec.text.lexical import FEWEST, LexicalEncoder
from setrec.training import losses
from setrec.training.settings import ObjectiveSettings
from setrec.training.warm_start import warm_start

SETTINGS = ModelSettings(semantic_tokens=2, hidden=(32, 16), max_items=8)
WORDS = 7
GIVEN = torch.tensor([[1, 2, 3]]), torch.tensor([[3]]), torch.tensor([[4]])
ROWS = torch.tensor([5, 0, 8])


def built(features, words=WORDS, seed=0) -> SetRecModel:
    torch.manual_seed(seed)
    return SetRecModel.build(SETTINGS, features, words=words).eval()


def test_key_words_are_neither_rare_nor_common_and_their_shares_add_up_to_one():
    texts = [f"toy {'red' if row % 3 else 'blue'} {'lego' if row < FEWEST - 1 else ''}" for row in range(40)]
    texts += [f"puzzle number {row % 4}" for row in range(8)] + [""]
    lexical = LexicalEncoder.fit(texts)
    shares = lexical.key_words(texts).toarray()
    # "toy" and "red" are in more than a fifth of the texts, "blue" too; "lego" and each number are in too few.
    assert shares.shape == (49, 2)
    np.testing.assert_allclose(shares.sum(axis=1), [0.0] * 40 + [1.0] * 8 + [0.0], rtol=1e-6)
    assert shares[40, 0] == pytest.approx(shares[40, 1])


def test_of_too_many_key_words_the_most_frequent_are_kept(monkeypatch):
    monkeypatch.setattr("setrec.text.lexical.KEY_WORDS", 1)
    texts = ["red"] * 6 + ["blue"] * 7 + [f"w{row}" for row in range(40)]
    shares = LexicalEncoder.fit(texts).key_words(texts).toarray()
    assert shares[:, 0].tolist() == [0.0] * 6 + [1.0] * 7 + [0.0] * 40


def test_the_loss_is_the_mean_cross_entropy_over_items_with_words_and_teaches_the_encoder(features):
    model, settings = built(features), ObjectiveSettings(words=0.3)
    shares = torch.tensor([[0.5, 0.5, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1.0], [0] * 7])
    terms = losses.batch_terms(model, *GIVEN, settings, ROWS, words=shares)
    part = model.tokens.semantic
    logs = part.words(part.codes()[ROWS]).log_softmax(-1)
    expected = -(0.5 * logs[0, 0] + 0.5 * logs[0, 1] + logs[1, 6]) / 2
    torch.testing.assert_close(terms["words"], expected)
    without = losses.total({name: term for name, term in terms.items() if name != "words"}, settings, 1)
    torch.testing.assert_close(losses.total(terms, settings, 1), without + 0.3 * expected)
    (gradient,) = torch.autograd.grad(expected, [part.encoder[0].weight])
    assert gradient.abs().max() > 0


def test_no_item_of_a_step_may_have_a_word(features):
    terms = losses.batch_terms(built(features), *GIVEN, ObjectiveSettings(words=0.3), ROWS, words=torch.zeros(3, WORDS))
    assert float(terms["words"].detach()) == 0.0


def test_a_model_with_other_key_words_or_none_is_begun_with_and_is_saved_with_its_own(features, tmp_path):
    for old in (built(features, words=3, seed=1), built(features, words=0, seed=1)):
        model = built(features)
        before = model.tokens.semantic.words.weight.clone()
        warm_start(model, old, np.arange(len(features)), features.text)
        assert torch.equal(model.tokens.semantic.words.weight, before)
        assert torch.equal(model.tokens.semantic.split.weight, old.tokens.semantic.split.weight)
    warm_start(built(features, words=0), model, np.arange(len(features)), features.text)
    model.save_pretrained(tmp_path)
    again = SetRecModel.from_pretrained(tmp_path)
    assert torch.equal(again.tokens.semantic.words.weight, before)
