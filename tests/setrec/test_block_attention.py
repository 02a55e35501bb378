"""Attention by blocks is causal attention; with a limit, that over the blocks chosen."""

import pytest
import torch
from small_models import small_model

from setrec.errors import ConfigError
from setrec.models import backbones, block_attention
from setrec.models.block_attention import BLOCK, causal_attention

SCALE = 0.3


def tables(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, length, 8, generator=generator).requires_grad_() for _ in range(3)]


def dense(query, key, value, sees):
    logits = (SCALE * query @ key.transpose(2, 3)).masked_fill(~sees, float("-inf"))
    return logits.softmax(dim=-1) @ value


def chosen(query, key, limit):
    """Who sees whom, by the definition: for each block its own and the best earlier ones."""
    length = query.shape[2]
    sees = torch.zeros(*query.shape[:2], length, length, dtype=torch.bool)
    for b in range(2):
        for h in range(3):
            for start in range(0, length, BLOCK):
                scores = [
                    float(query[b, h, start].detach() @ key[b, h, e : e + BLOCK].detach().mean(dim=0))
                    for e in range(0, start, BLOCK)
                ]
                best = sorted(range(len(scores)), key=lambda e: -scores[e])[:limit]
                for e in [*best, start // BLOCK]:
                    sees[b, h, start : start + BLOCK, e * BLOCK : (e + 1) * BLOCK] = True
    return sees & torch.ones(length, length, dtype=torch.bool).tril()


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize(("length", "repeated"), [(5, 9), (700, 9), (700, 9000), (5 * BLOCK, 9000)])
def test_answers_and_gradients_are_those_of_attention_under_a_mask(length, repeated, limit, monkeypatch):
    monkeypatch.setattr(block_attention, "_REPEATED", repeated)
    # Dropout takes its own path on a CPU; a share that drops nothing leaves the same answer.
    monkeypatch.setattr(block_attention.F, "dropout", lambda x, _: x)
    query, key, value = tables(length)
    sees = torch.ones(length, length, dtype=torch.bool).tril() if limit is None else chosen(query, key, limit)
    expected = dense(query, key, value, sees)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((expected * weight).sum(), [query, key, value])
    for dropout in (0.0, 0.5):
        found = causal_attention(query, key, value, SCALE, dropout, limit)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for one, other in zip(torch.autograd.grad((found * weight).sum(), [query, key, value]), gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_long_history_is_answered_as_under_the_dense_mask(features, monkeypatch):
    model = small_model(features, "qwen3", "fused", query_mode="item", max_items=400)
    items = torch.randint(0, len(features), (2, 400))
    visible = torch.tensor([[400, 300, 0], [1, 399, 128]])
    expected = model.outputs(items, visible)
    monkeypatch.setattr(backbones, "LONG", 300)
    torch.testing.assert_close(model.outputs(items, visible), expected, rtol=1e-4, atol=1e-4)


def test_with_blocks_chosen_no_answer_depends_on_a_later_item(features):
    model = small_model(features, "qwen3", "fused", query_mode="item", max_items=600, read_blocks=1)
    items = torch.randint(0, len(features), (1, 600))
    visible = torch.arange(600)[None]
    before = model.outputs(items, visible)
    for first in (200, 450):
        changed = items.clone()
        changed[:, first:] = torch.randint(0, len(features), (1, 600 - first))
        after = model.outputs(changed, visible)
        torch.testing.assert_close(after[:, : first + 1], before[:, : first + 1], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(after[:, first + 1 :], before[:, first + 1 :], atol=1e-3)


def test_blocks_cannot_be_chosen_where_queries_follow_the_history(features):
    with pytest.raises(ConfigError, match="query_mode: item"):
        small_model(features, "qwen3", "fused", query_mode="last_item", read_blocks=2)
