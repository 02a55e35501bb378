"""Ranking health: metrics of the coverage, novelty and popularity of answers."""

from __future__ import annotations

import numpy as np

from serving.engine.state import State
from serving.telemetry import metrics


class ShownItems:
    """Counts answered items, with one call per batch."""

    def __init__(self, items: int) -> None:
        self._shown = np.zeros(items, dtype=bool)

    def count(self, state: State, rows: np.ndarray) -> None:
        """Count ``rows``, int64, of the items that a batch of requests was answered with."""
        if not len(rows):
            return
        new = int(np.count_nonzero(state.new[rows]))
        metrics.SHOWN.labels("new").inc(new)
        metrics.SHOWN.labels("trained").inc(len(rows) - new)
        # One observation per batch, not per item: a histogram costs some microseconds.
        metrics.SHOWN_POPULARITY.observe(float(state.popularity.places(rows).mean()))
        self._shown[rows[rows < len(self._shown)]] = True
        metrics.CATALOGUE_SHOWN.set(np.count_nonzero(self._shown) / len(self._shown))
