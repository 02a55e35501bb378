"""Availability of items: start and end times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

FROM, UNTIL = "available_from", "available_until"
"""Attributes of the catalogue with start and end times of the bundle's items, seconds since 1970 (UTC)."""


class Availability:
    """Rows with a window of time; all others are always available."""

    def __init__(self, attributes: Mapping[str, Sequence[Sequence[str]]], items: int) -> None:
        """``attributes``: values of every item of the bundle by name. Values that are not numbers are ignored."""
        starts, ends = (_numbers(attributes.get(name), items) for name in (FROM, UNTIL))
        rows = np.flatnonzero(~(np.isnan(starts) & np.isnan(ends)))
        self._rows: list[int] = rows.tolist()
        self._starts = np.where(np.isnan(starts[rows]), -math.inf, starts[rows]).tolist()
        self._ends = np.where(np.isnan(ends[rows]), math.inf, ends[rows]).tolist()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: int, start: float | None, end: float | None) -> None:
        """Set the times when a row is available; ``None`` leaves a side open."""
        if start is not None or end is not None:
            self._rows.append(row)
            self._starts.append(-math.inf if start is None else start)
            self._ends.append(math.inf if end is None else end)

    def unavailable(self, now: float) -> np.ndarray:
        """Return rows, int64, that are not available at ``now``, seconds since 1970."""
        if not self._rows:
            return np.empty(0, np.int64)
        outside = (np.array(self._starts) > now) | (np.array(self._ends) <= now)
        return np.array(self._rows, dtype=np.int64)[outside]


def _numbers(values: Sequence[Sequence[str]] | None, items: int) -> np.ndarray:
    """Return the first value of each item as a number, float64 (items,), NaN if there is none."""
    numbers = np.full(items, np.nan)
    for row, texts in enumerate(values or ()):
        for text in texts[:1]:
            try:
                numbers[row] = float(text)
            except ValueError:
                continue
    return numbers
