"""Beam search constrained to codes of the catalogue, for many users and several parts of the catalogue at once.

The codes of all items form a forest with a root for each part of the catalogue. Its nodes are numbered level by level,
so that a step is a few gathers and one top-k for all users, parts and beams together. Sizes: b users, G parts, W beams,
I items, n codes an item, C codes of a level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

NOTHING = -1


@dataclass(frozen=True)
class Forest:
    """``children[l]`` (nodes of level l, most children of one of them): codes that follow a node, ascending, then
    ``NOTHING``; ``first[l]``: the number, in the level below, of a node's first child; ``items`` (I,): the item at each
    leaf; ``roots``: G."""

    children: list[Tensor]
    first: list[Tensor]
    items: Tensor
    roots: int

    @classmethod
    def of(cls, codes: np.ndarray, part: np.ndarray, device: str = "cpu") -> Forest:
        """Build from unique codes (I, n) and the part of the catalogue (I,) of each item."""
        _, root = np.unique(part, return_inverse=True)
        table = np.column_stack([root.reshape(-1), codes])
        order = np.lexsort(table.T[::-1])
        table = table[order]
        changes = np.ones(table.shape, dtype=bool)
        changes[1:] = np.logical_or.accumulate(table[1:] != table[:-1], axis=1)
        node = np.cumsum(changes, axis=0) - 1
        levels = [_level(table[:, at + 1], node[:, at], changes[:, at + 1]) for at in range(codes.shape[1])]
        children, first = ([each.to(device) for each in of] for of in zip(*levels, strict=True))
        return cls(children, first, torch.from_numpy(order).to(device), int(node[-1, 0]) + 1)


def _level(code: np.ndarray, parent: np.ndarray, begins: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return children and first children of one level, from sorted rows; ``begins`` marks the first row of each
    child."""
    code, parent = code[begins], parent[begins]
    first = np.searchsorted(parent, np.arange(parent[-1] + 1))
    slot = np.arange(len(code)) - first[parent]
    children = np.full((len(first), int(slot.max()) + 1), NOTHING)
    children[parent, slot] = code
    return torch.from_numpy(children), torch.from_numpy(first)


class Writer(Protocol):
    """Generates codes step by step for b users, and keeps the state of previous steps."""

    def __call__(self, codes: Tensor | None, beam: Tensor | None) -> Tensor:
        """Return log probabilities (b, beams, C) of the next codes, in the first step (b, 1, C) for ``None``.

        ``codes`` (b, beams): written last; ``beam`` (b, beams): the beam of the step before that each continues.
        """
        ...


def beam_search(writer: Writer, forest: Forest, width: int) -> tuple[Tensor, Tensor]:
    """Return the ``width`` most likely items of each part by beam search: items and log probabilities, both (b, G * W).

    Beams without items have minus infinity and a meaningless item.
    """
    log_p = writer(None, None)[:, None]
    users, parts = len(log_p), forest.roots
    log_p = log_p.expand(-1, parts, -1, -1)
    node = forest.items.new_tensor(range(parts))[:, None].expand(users, parts, 1)
    total = log_p.new_zeros(users, parts, 1)
    for level, (children, first) in enumerate(zip(forest.children, forest.first, strict=True)):
        codes = children[node]
        grown = total[..., None] + log_p.gather(3, codes.clamp(min=0))
        grown = grown.masked_fill(codes == NOTHING, -torch.inf).flatten(2)
        total, at = grown.topk(min(width, grown.shape[2]))
        beam, slot = at // codes.shape[3], at % codes.shape[3]
        # A beam without items continues from the first node, which exists; its total excludes it from the answer.
        node = torch.where(total > -torch.inf, first[node].gather(2, beam) + slot, 0)
        if level + 1 < len(forest.children):
            came = beam + node.new_tensor(range(parts))[:, None] * (log_p.shape[2] if level else 0)
            written = codes.flatten(2).gather(2, at).clamp(min=0)
            log_p = writer(written.flatten(1), came.flatten(1)).unflatten(1, (parts, -1))
    return forest.items[node].flatten(1), total.flatten(1)


def catalogue_scores(items: Tensor, log_p: Tensor, size: int) -> Tensor:
    """Return scores (b, I): log probabilities of the given items and minus infinity for every other item."""
    scores = log_p.new_full((len(items), size + 1), -torch.inf)
    # Beams without items go to a separate column, so that they do not overwrite an item.
    scores.scatter_(1, torch.where(log_p > -torch.inf, items, size), log_p)
    return scores[:, :size]
