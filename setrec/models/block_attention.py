"""Causal attention over long histories, block by block, for backbones that read one token per item.

The mask of a history of L tokens has L x L entries, of which nothing above the diagonal counts. Here a block of queries
reads the keys up to its own end, so half of the products are left out, and no mask exists. Above :data:`_REPEATED`
tokens the weights of one block at a time are in memory, because the backward pass computes them again.

With a limit each block reads, besides itself, only the ``limit`` earlier blocks with the largest inner product of its
first query and their mean key, for each head (block selection by pooled scores as in NSA, arXiv 2502.11089, and HISA).
Later queries of a block do not choose, since a token would otherwise learn from items after it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LONG = 512
"""Number of tokens from which histories are read block by block (``benchmarks/bench_block_attention.py``)."""
BLOCK = 128
"""Number of queries that are computed together, and of tokens that are selected together."""
_SELECTING = 4
"""Number of blocks that are computed together if each reads few others."""
_REPEATED = 4096
"""Number of tokens above which the backward pass computes the weights again: all of them, half of L x L for each head,
take about 0.3 GB a layer at 4,096 tokens and four heads."""


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float, limit: int | None = None
) -> Tensor:
    """Return attention (B, heads, L, c) of each token over itself and the tokens before it.

    ``query``, ``key``, ``value`` (B, heads, L, c); ``dropout`` of the weights; ``limit``: see the module.
    """
    if limit is not None and query.shape[2] > (limit + 1) * BLOCK:
        return _selected(query, key, value, scale, dropout, limit)
    if not dropout or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scale, is_causal=True)
    # With dropout PyTorch's kernel for CPUs has all weights of all tokens in memory.
    parts = [
        _computed(_block, query.shape[2], query[:, :, start : start + BLOCK], key[:, :, : start + BLOCK],
                  value[:, :, : start + BLOCK], scale, dropout)
        for start in range(0, query.shape[2], BLOCK)
    ]  # fmt: skip
    return torch.cat(parts, dim=2)


def _computed(function: Callable[..., Tensor], length: int, *arguments: Tensor | float) -> Tensor:
    if length <= _REPEATED:
        return function(*arguments)
    found: Tensor = checkpoint(function, *arguments, use_reentrant=False)
    return found


def _block(query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float) -> Tensor:
    """Return attention of the last tokens, ``query`` (B, heads, n, c), over all of ``key`` (B, heads, L, c)."""
    later = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool, device=query.device).triu(1)
    logits = (query * scale) @ key.transpose(2, 3)
    logits[..., key.shape[2] - query.shape[2] :].masked_fill_(later, float("-inf"))
    return F.dropout(logits.softmax(dim=-1), dropout) @ value


def _selected(query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float, limit: int) -> Tensor:
    length = query.shape[2]
    query, key, value = (F.pad(x, (0, 0, 0, -length % BLOCK)).unflatten(2, (-1, BLOCK)) for x in (query, key, value))
    count = query.shape[2]
    earlier = torch.ones(count, count, dtype=torch.bool, device=query.device).tril(-1)
    with torch.no_grad():
        scores = (query[:, :, :, 0] @ key.mean(dim=3).transpose(2, 3)).masked_fill(~earlier, float("-inf"))
        best = scores.topk(limit, dim=-1)
    parts = []
    for start in range(0, count, _SELECTING):
        some = slice(start, start + _SELECTING)
        chosen, there = best.indices[:, :, some], best.values[:, :, some] > -torch.inf
        own = [x[:, :, some] for x in (query, key, value)]
        parts.append(_computed(_over_selected, length, *own, key, value, chosen, there, scale, dropout))
    return torch.cat(parts, dim=2).flatten(2, 3)[:, :, :length]


def _over_selected(
    query: Tensor, own_key: Tensor, own_value: Tensor, key: Tensor, value: Tensor, chosen: Tensor, there: Tensor,
    scale: float, dropout: float,
) -> Tensor:  # fmt: skip
    """Return attention (B, heads, n, BLOCK, c) of blocks of ``query`` over their own keys and those of the blocks
    ``chosen`` int64 (B, heads, n, limit) of ``key`` (B, heads, blocks, BLOCK, c) that are ``there``."""
    batch, heads = (torch.arange(size, device=query.device) for size in query.shape[:2])
    place = batch[:, None, None, None], heads[None, :, None, None], chosen
    keys, values = (table[place].flatten(3, 4) for table in (key, value))
    later = torch.ones(BLOCK, BLOCK, dtype=torch.bool, device=query.device).triu(1)
    query = query * scale
    itself = (query @ own_key.transpose(3, 4)).masked_fill(later, float("-inf"))
    absent = ~there.repeat_interleave(BLOCK, dim=-1)[..., None, :]
    others = (query @ keys.transpose(3, 4)).masked_fill(absent, float("-inf"))
    weights = F.dropout(torch.cat([itself, others], dim=-1).softmax(dim=-1), dropout)
    return weights[..., :BLOCK] @ own_value + weights[..., BLOCK:] @ values
