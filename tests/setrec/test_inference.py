"""The pass of serving gives the user codes of the model, for whole histories and for those read on."""

import numpy as np
import pytest
import torch
from small_models import small_model
from transformers import AutoConfig

from setrec.models.backbones import inject_lora
from setrec.models.configuration import SetRecConfig
from setrec.models.inference import stored_model
from setrec.models.inference.history_pass import InferencePass, can_read
from setrec.models.setrec_model import SetRecModel
from setrec.models.settings import LegSettings, LoraSettings
from setrec.ragged import Ragged

ROWS = [[3, 1, 4, 11, 5], [9, 2, 6, 7, 8, 10, 12, 13], [5], [20, 21], [3, 1, 4, 11, 5, 30], []]
KNOWN = [4, 5, 0, 1, 0, 0]
"""Number of items of each history whose keys and values are known."""


def check(model):
    weights = {kind: 1.5 - 0.3 * number for number, kind in enumerate(model.kinds)}
    codes, whole = model.item_codes(), Ragged.of(ROWS, np.int64)
    expected = model.user_codes(whole, weights, codes).numpy()
    assert can_read(model)
    reader = InferencePass(model, weights)
    known = [None] * len(ROWS)
    for keep in (False, True):
        found, states = reader.user_codes(whole, codes.numpy(), known if keep else (), keep=keep)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    held = reader.inputs(codes.numpy())
    assert sum(part[0].nbytes for own in held for part in own if part is not None) == reader.input_bytes
    of_held, _ = reader.user_codes(whole, codes.numpy(), inputs=held)
    np.testing.assert_allclose(of_held, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    first = Ragged.of([row[:count] for row, count in zip(ROWS, KNOWN, strict=True)], np.int64)
    _, before = reader.user_codes(first, codes.numpy(), keep=True)
    known = [own if count else None for own, count in zip(before, KNOWN, strict=True)]
    found, after = reader.user_codes(whole, codes.numpy(), known, keep=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    for one, other in zip(after, states, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for row, own in zip(ROWS, expected, strict=True):  # alone as in a batch
        alone, _ = reader.user_codes(Ragged.of([row], np.int64), codes.numpy())
        np.testing.assert_allclose(alone[0], own, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    torch.testing.assert_close(torch.from_numpy(expected), model.user_codes(whole, weights, codes))


@pytest.mark.parametrize("family", ["qwen3", "qwen2"])
@pytest.mark.parametrize(("instruction", "leg"), [(0, None), (4, None), (4, LegSettings(size="small"))])
def test_the_pass_has_the_models_user_codes_from_whole_histories_and_from_known_keys(
    features, family, instruction, leg
):
    options = {"query_mode": "item", "history_skip": (0.0, 0.8, 1.0), "instruction": instruction}
    options["collaborative_leg"] = leg
    check(small_model(features, family, "fused", **options))


@pytest.mark.parametrize("none", [(), ("collaborative",), ("semantic", "text"), ("collaborative", "semantic", "text")])
def test_a_leg_without_weight_is_not_read_and_the_user_codes_are_the_models(features, none):
    model = small_model(features, "qwen3", "fused", query_mode="item", collaborative_leg=LegSettings())
    weights = {kind: 0.0 if kind in none else 1.5 for kind in model.kinds}
    whole, codes = Ragged.of(ROWS, np.int64), model.item_codes()
    reader = InferencePass(model, weights)
    legs = [any(weights[kind] for kind in kinds) for kinds in model.legs]
    assert len(reader.inputs(codes.numpy())) == max(1, sum(legs))
    expected = model.user_codes(whole, weights, codes).numpy()
    found, _ = reader.user_codes(whole, codes.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * max(1e-3, np.abs(expected).max()))


def llama(features, **changes):
    """A model with fewer key heads than heads, and with a word scale like a pretrained one."""
    backbone = AutoConfig.for_model(
        "llama", vocab_size=1, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=None, bos_token_id=None, eos_token_id=None,
    ).to_dict()  # fmt: skip
    sizes = {"items": len(features), "collaborative": 64, "text": 32, "extra": {"structural": 8}, "hidden": [24]}
    torch.manual_seed(0)
    options = {"query_mode": "item", "word_scale": 0.7} | changes
    model = SetRecModel(SetRecConfig(backbone=backbone, **options, **sizes)).eval()
    model.tokens.fill(features)
    return model


def test_so_it_has_with_fewer_key_heads_a_word_scale_and_no_skip_connection(features):
    check(llama(features))


def test_so_it_has_with_adapters_whose_products_are_merged(features):
    model = llama(features)
    inject_lora(model.backbone.model, LoraSettings(rank=2), model.backbone.lora_targets)
    for name, own in model.backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(own)
    check(model.eval())


@pytest.mark.parametrize(
    ("family", "leg"), [("qwen2", None), ("qwen3", None), ("llama", None), ("qwen3", LegSettings(size="small"))]
)
def test_a_model_read_from_its_files_answers_like_the_model_and_holds_no_table_of_items(
    features, family, leg, tmp_path
):
    options = {"query_mode": "item", "history_skip": (0.0, 0.8, 1.0), "repeat_bias": True, "collaborative_leg": leg}
    model = llama(features) if family == "llama" else small_model(features, family, "fused", **options)
    model.save_pretrained(tmp_path)
    stored = stored_model.load(tmp_path)
    weights = {kind: 1.5 - 0.3 * number for number, kind in enumerate(model.kinds)}
    whole, codes = Ragged.of(ROWS, np.int64), model.item_codes()
    expected, _ = InferencePass(model, weights).user_codes(whole, codes.numpy())
    np.testing.assert_array_equal(stored.user_codes(whole, weights, codes).numpy(), expected)
    assert (stored.kinds, stored.code_columns, stored.max_items) == (model.kinds, model.code_columns, model.max_items)
    assert stored.repeat_bias(weights) == model.repeat_bias(weights)
    texts = torch.from_numpy(features.text[:3])
    torch.testing.assert_close(stored.text_codes(texts), model.text_codes(texts), rtol=0, atol=0)
    held = [own for own in [*stored.tokens.parameters(), *stored.tokens.buffers()] if own.device.type != "meta"]
    assert not any(len(own) == len(features) for own in held if own.dim())


def test_models_that_the_pass_cannot_read_are_not_read_from_their_files(features, tmp_path):
    for name, model in {
        "t5": small_model(features, "t5", "fused"),
        "set": small_model(features, "qwen3", "set", query_mode="last_item"),
        "half": llama(features).bfloat16(),
        "lora": llama(features, lora=LoraSettings(rank=2).model_dump()),
    }.items():
        model.save_pretrained(tmp_path / name)
        assert stored_model.load(tmp_path / name) is None


@pytest.mark.parametrize(("family", "history", "query_mode"), [
    ("t5", "fused", "auto"), ("qwen3", "fused", "learned"), ("qwen3", "set", "last_item"),
])  # fmt: skip
def test_other_models_read_for_themselves(features, family, history, query_mode):
    assert not can_read(small_model(features, family, history, query_mode=query_mode))
