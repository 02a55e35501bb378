"""Popularity ranking, the answer for users without a history: the items with the most training interactions."""

from __future__ import annotations

import numpy as np

_CHUNK = 4096


class PopularityRanking:
    """Items by training interactions, int64 (I,), ties by smaller row; added rows have none and come last."""

    def __init__(self, counts: np.ndarray) -> None:
        self.counts = counts
        self._order = np.argsort(-counts, kind="stable")
        self._place = np.empty(len(counts), np.float32)
        self._place[self._order] = np.linspace(0, 1, len(counts), dtype=np.float32)

    def best(self, k: int, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first ``k`` of ``allowed`` bool (R,), or all if there are fewer: rows int64 and counts float64."""
        found: list[np.ndarray] = []
        missing = k
        for start in range(0, len(self._order), _CHUNK):
            if missing <= 0:
                break
            piece = self._order[start : start + _CHUNK]
            found.append(piece[allowed[piece]][:missing])
            missing -= len(found[-1])
        beyond = np.flatnonzero(allowed[len(self.counts) :])[: max(missing, 0)] + len(self.counts)
        rows = np.concatenate([*found, beyond]).astype(np.int64)
        return rows, self.of(rows)

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Return the relative positions of ``rows`` in this order, from 0, the first, to 1, float32; added rows are
        last."""
        return np.where(rows < len(self._place), self._place[np.minimum(rows, len(self._place) - 1)], np.float32(1))

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Return training interactions of ``rows``, float64."""
        counts = np.where(rows < len(self.counts), self.counts[np.minimum(rows, len(self.counts) - 1)], 0)
        return counts.astype(np.float64)
