"""Histories read on from the keys and values of their first items have the codes of histories read whole."""

import pytest
import torch
from small_models import small_model
from transformers import AutoConfig

from setrec.errors import ConfigError
from setrec.models import incremental
from setrec.models.configuration import SetRecConfig
from setrec.models.setrec_model import SetRecModel
from setrec.ragged import Ragged

ROWS = [[3, 1, 4, 11, 5], [9, 2, 6, 7, 8, 10, 12, 13], [5], [20, 21], [3, 1, 4, 11, 5, 30]]
KNOWN = [4, 5, 0, 1, 0]
"""Number of items of each history whose keys and values are known."""


def check(model, weights=None):
    weights = weights or dict.fromkeys(model.kinds, 1.5)
    codes = model.item_codes()
    first = Ragged.of([row[: max(known, 1)] for row, known in zip(ROWS, KNOWN, strict=True)])
    _, states = incremental.user_codes(model, first, weights, codes, [None] * len(ROWS))
    known = [own if count else None for own, count in zip(states, KNOWN, strict=True)]
    whole = Ragged.of(ROWS)
    found, after = incremental.user_codes(model, whole, weights, codes, known)
    expected = model.user_codes(whole, weights, codes)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    _, at_once = incremental.user_codes(model, whole, weights, codes, [None] * len(ROWS))
    for one, other in zip(after, at_once, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("family", ["qwen3", "qwen2"])
@pytest.mark.parametrize(
    ("history", "query_mode"),
    [("fused", "item"), ("fused", "learned"), ("fused", "last_item"), ("set", "learned"), ("set", "last_item")],
)
def test_a_history_read_on_has_the_code_of_one_read_whole(features, family, history, query_mode):
    check(small_model(features, family, history, query_mode=query_mode, history_skip=(0.0, 0.8, 1.0)))


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_so_it_is_behind_any_decoder_with_fewer_key_heads_than_heads_or_a_sliding_window(features, family):
    own = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3} if family != "llama" else {}
    backbone = AutoConfig.for_model(
        family, vocab_size=1, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=None, bos_token_id=None, eos_token_id=None, **own,
    ).to_dict()  # fmt: skip
    sizes = {"items": len(features), "collaborative": 64, "text": 32, "extra": {"structural": 8}, "hidden": [24]}
    torch.manual_seed(0)
    model = SetRecModel(SetRecConfig(backbone=backbone, query_mode="item", word_scale=1.0, **sizes)).eval()
    model.tokens.fill(features)
    check(model)


def test_without_an_instruction_positions_begin_with_the_first_item(features):
    check(small_model(features, history="fused", query_mode="item", instruction=0))


def test_an_encoder_reads_every_history_whole(features):
    model = small_model(features, "t5", "fused")
    with pytest.raises(ConfigError, match="causal backbone"):
        incremental.user_codes(model, Ragged.of([[1]]), {}, model.item_codes(), [None])
