"""A memory of events beside the model: what followed, whenever somebody stood where this user stands.

Every position of every history is a user code with the item that came next. For a new history the nearest stored
positions vote for their items, and the vote is mixed with the model's own distribution, as in nearest-neighbour
language models (Khandelwal and others 2020, arXiv 1911.00172):

    p(i) = (1 - weight) softmax(s)_i + weight * sum over neighbours j with item i of softmax(cos_j / temperature)_j

Storing an event is adding a vector to a FAISS index, so the memory learns from what happened after training, items that
training never saw included, and needs no training itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import numpy as np
from pydantic import Field

from setrec.settings import Settings

FLOOR = 1e-30
"""Least probability: scores stay finite."""


class MemorySettings(Settings):
    """``neighbours`` vote, with the softmax of their cosines over ``temperature``; ``weight`` of the vote against the
    model, 0 for none."""

    neighbours: int = Field(200, ge=1)
    temperature: float = Field(0.05, gt=0)
    weight: float = Field(0.1, ge=0, lt=1)


class EventMemory:
    """User codes and the items that followed them, in an exact FAISS index: 4 bytes times D + 1 an event."""

    def __init__(self, width: int) -> None:
        self.index = faiss.IndexFlatIP(width)
        self.next = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.next)

    def add(self, codes: np.ndarray, items: np.ndarray) -> None:
        """Store codes float32 (T, D) and the item rows that followed, int (T,)."""
        self.index.add(_unit(codes))
        self.next = np.concatenate([self.next, items.astype(np.int64)])

    def neighbours(self, codes: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines float32 and next items int64 of the nearest positions, both (b, count or all there are)."""
        near, at = self.index.search(_unit(codes), min(count, len(self)))
        return near, self.next[at]

    def mix(
        self, scores: np.ndarray, codes: np.ndarray, settings: MemorySettings, seen: Sequence[np.ndarray] | None = None
    ) -> np.ndarray:
        """Log-probabilities float32 (b, I) from the model's scores (b, I) and the votes of the neighbours of ``codes``
        (b, D). Items in ``seen`` (rows of item rows) get no votes: nobody is told to go where they come from."""
        if settings.weight == 0 or not len(self):
            return scores
        return mixed(scores, *self.neighbours(codes, settings.neighbours), settings, seen)


def mixed(
    scores: np.ndarray,
    near: np.ndarray,
    items: np.ndarray,
    settings: MemorySettings,
    seen: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """:meth:`EventMemory.mix` for neighbours at hand: many settings share one search."""
    near, items = near[:, : settings.neighbours], items[:, : settings.neighbours]
    votes = np.exp((near - near.max(axis=1, keepdims=True)) / settings.temperature)
    q = np.zeros_like(scores)
    np.add.at(q, (np.arange(len(q))[:, None], items), votes)
    return blended(scores, q, settings.weight, seen)


def blended(
    scores: np.ndarray, votes: np.ndarray, weight: float, seen: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """Log-probabilities float32 (b, I): the softmax of ``scores`` with a share ``weight`` of the ``votes`` (b, I), not
    negative, which are scaled to add up to one in every row. Items in ``seen`` get none."""
    q = votes.copy()
    for row, known in enumerate(seen or ()):
        q[row, known] = 0.0
    q *= weight / np.maximum(q.sum(axis=1, keepdims=True), FLOOR)
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p *= (1 - weight) / p.sum(axis=1, keepdims=True)
    return np.log(np.maximum(p + q, FLOOR)).astype(np.float32)


def _unit(codes: np.ndarray) -> np.ndarray:
    codes = np.ascontiguousarray(codes, dtype=np.float32)
    return codes / np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), 1e-12)
