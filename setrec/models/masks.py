"""Sparse attention masks and shared positions, as pure functions of lengths (SETRec section 3.2).

A sequence is ``[instruction (a)] [item 1 (m tokens)] ... [item L] [query block 1 (n)] ... [query block Q]``.
``m`` is n (a token per slot) or 1 (the slots of an item summed into one input token).

* Tokens of one item do not see each other; they see the instruction and all tokens of earlier items.
* All tokens of item k share position a + k.
* Query block q sees the instruction and the first ``visible[q]`` items, at position a + ``visible[q]``; a query sees
  itself and no other query.

So one pass may carry a block of queries for every position of a history: blocks cannot influence the history or each
other, and each answers as if the history ended with its visible items. Histories are padded on the right, which no
query sees; padding therefore needs no separate mask. ``H = a + L * m`` is the length of the history part.
"""

from __future__ import annotations

import torch
from torch import Tensor


def history_positions(a: int, items: int, m: int, device: torch.device | None = None) -> Tensor:
    """Return the position of every history token, int64 (H,): those of the instruction ascend, an item's tokens share
    one."""
    blocks = torch.arange(items, device=device).repeat_interleave(m) + a
    return torch.cat([torch.arange(a, device=device), blocks])


def history_mask(a: int, items: int, m: int, *, causal_instruction: bool, device: torch.device | None = None) -> Tensor:
    """Return the attention mask of the history, bool (H, H); rows attend to columns.

    ``causal_instruction``: whether instruction tokens see only earlier ones (decoder-only backbones) or all of the
    instruction (encoders).
    """
    position = history_positions(a, items, m, device)
    itself = torch.eye(len(position), dtype=torch.bool, device=device)
    earlier = position[None, :] < position[:, None]
    if not causal_instruction:
        earlier[:a, :a] = True
    return earlier | itself


def query_mask(visible: Tensor, n: int, a: int, items: int, m: int) -> Tensor:
    """Return the mask from queries to the history, bool (B, Q * n, H), from the number of visible items, ``visible``
    int (B, Q)."""
    position = history_positions(a, items, m, visible.device)
    return position[None, None, :] < query_positions(visible, n, a)[:, :, None]


def query_positions(visible: Tensor, n: int, a: int) -> Tensor:
    """Return the position of each query, int64 (B, Q * n): that of the next item, shared by the n queries of a
    block."""
    return (a + visible.long()).repeat_interleave(n, dim=1)


def last_seen(vectors: Tensor, at: Tensor) -> Tensor:
    """Return vectors (B, Q, d) of the tokens ``at`` (B or 1, Q) of (B, L, d); zero before the first token, so that
    padding does not change an empty history."""
    if not vectors.shape[1]:
        return vectors.new_zeros(len(vectors), at.shape[1], vectors.shape[2])
    rows = torch.arange(len(vectors), device=vectors.device)[:, None]
    return vectors[rows, at.clamp(min=0).expand(len(vectors), -1)] * (at >= 0)[..., None]
