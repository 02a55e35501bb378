"""A memory of events beside the model: what followed, whenever somebody stood where this user stands.

Every position of every history is a user code with the item that came next. For a new history the nearest stored
positions vote for their items, as in nearest-neighbour language models (Khandelwal and others 2020, arXiv 1911.00172):

    q_i = sum over neighbours j with item i of softmax(cos_j / temperature)_j,

and an item's score, in the unit of log-probabilities, rises by weight sqrt(q_i). Those models mix two distributions;
adding instead lets votes and scores reinforce each other, and measured no worse.

Storing an event is adding a vector to a FAISS index, so the memory learns from what happened after training, items that
training never saw included, and needs no training itself.
"""

from __future__ import annotations

import faiss
import numpy as np
from pydantic import Field

from serving.exact import flat_scan
from setrec.ragged import Ragged
from setrec.settings import Settings


class MemorySettings(Settings):
    """``neighbours`` vote, with the softmax of their cosines over ``temperature``; ``weight`` of what the vote adds, 0
    for nothing."""

    neighbours: int = Field(200, ge=1)
    temperature: float = Field(0.05, gt=0)
    weight: float = Field(5.0, ge=0)


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
        with flat_scan(len(codes)):
            near, at = self.index.search(_unit(codes), min(count, len(self)))
        return near, self.next[at]

    def raise_scores(
        self, scores: np.ndarray, codes: np.ndarray, settings: MemorySettings, history: Ragged | None = None
    ) -> np.ndarray:
        """Scores (b, I) with what the neighbours of ``codes`` (b, D) add. Items of the ``history`` (b rows) get no
        votes: nobody is told to go where they come from."""
        if settings.weight == 0 or not len(self):
            return scores
        near, items = self.neighbours(codes, settings.neighbours)
        roots = vote_roots(near, items, scores.shape[1], settings.temperature, history)
        return np.asarray(scores + np.float32(settings.weight) * roots, dtype=np.float32)


def vote_roots(
    near: np.ndarray, items: np.ndarray, catalogue: int, temperature: float, history: Ragged | None = None
) -> np.ndarray:
    """Square roots of the votes q, float32 (b, ``catalogue``), of neighbours as :meth:`EventMemory.neighbours` gives
    them; many temperatures share one search."""
    votes = np.exp((near - near.max(axis=1, keepdims=True)) / temperature)
    q = np.zeros((len(near), catalogue), dtype=np.float32)
    np.add.at(q, (np.arange(len(q))[:, None], items), votes / votes.sum(axis=1, keepdims=True))
    if history is not None:
        q[history.row_of_value, history.values] = 0.0
    return np.sqrt(q, out=q)


def _unit(codes: np.ndarray) -> np.ndarray:
    codes = np.ascontiguousarray(codes, dtype=np.float32)
    return codes / np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), 1e-12)
