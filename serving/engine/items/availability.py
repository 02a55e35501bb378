"""When items may be answered: from a moment on, until a moment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

FROM, UNTIL = "available_from", "available_until"
"""Attributes of the catalogue, seconds since 1970 (UTC), that say it of the bundle's items."""


class Availability:
    """Rows with a window of time; all others are always available."""

    def __init__(self, attributes: Mapping[str, Sequence[Sequence[str]]], items: int) -> None:
        """``attributes``: of each name the values of every item of the bundle. What is no number counts as absent."""
        starts, ends = (_numbers(attributes.get(name), items) for name in (FROM, UNTIL))
        rows = np.flatnonzero(~(np.isnan(starts) & np.isnan(ends)))
        self._rows: list[int] = rows.tolist()
        self._starts = np.where(np.isnan(starts[rows]), -math.inf, starts[rows]).tolist()
        self._ends = np.where(np.isnan(ends[rows]), math.inf, ends[rows]).tolist()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: int, start: float | None, end: float | None) -> None:
        """Say when a row is available; ``None`` leaves a side open."""
        if start is not None or end is not None:
            self._rows.append(row)
            self._starts.append(-math.inf if start is None else start)
            self._ends.append(math.inf if end is None else end)

    def unavailable(self, now: float) -> np.ndarray:
        """Rows, int64, that may not be answered at ``now``, seconds since 1970."""
        if not self._rows:
            return np.empty(0, np.int64)
        outside = (np.array(self._starts) > now) | (np.array(self._ends) <= now)
        return np.array(self._rows, dtype=np.int64)[outside]


def _numbers(values: Sequence[Sequence[str]] | None, items: int) -> np.ndarray:
    """The first value of each item as a number, NaN where there is none, float64 (items,)."""
    found = np.full(items, np.nan)
    for row, texts in enumerate(values or ()):
        for text in texts[:1]:
            try:
                found[row] = float(text)
            except ValueError:
                continue
    return found
