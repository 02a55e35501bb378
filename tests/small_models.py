"""Small recommenders and a small text encoder for tests."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from setrec.models.item_tokens import ItemFeatures
from setrec.models.setrec_model import SetRecModel
from setrec.models.settings import BackboneSettings, ModelSettings

ITEMS = 40
WORDS = ["toy", "story", "heat", "drama", "war", "of", "the", "stars", "and", "peace"]
"""The vocabulary of :func:`tiny_bert`, from id 4 on."""


def small_model(features: ItemFeatures, family: str = "qwen3", history: str = "set", **changes) -> SetRecModel:
    """A two-layer model in evaluation mode, the same weights at every call."""
    offset = changes.pop("offset", False)
    torch.manual_seed(7)
    plain = {
        "semantic_tokens": 3, "hidden": (48, 24), "text_slot": 0, "query_mode": "last_item", "id_dropout": 0.0,
        "collaborative_leg": None,
    }  # fmt: skip
    settings = ModelSettings(backbone=BackboneSettings(family=family), history=history, **(plain | changes))
    model = SetRecModel.build(settings, features, offset=offset).eval()
    # Biases start at zero, where a forgotten constant would go unnoticed.
    with torch.no_grad():
        for name, parameter in model.tokens.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
        model.queries.normal_(std=1.0)
    return model


def tiny_bert(path: Path) -> Path:
    """A randomly initialised BERT of two layers with a tokenizer of ten words, saved in ``path``."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(special + WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=14, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(path)
    return path
