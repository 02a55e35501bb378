"""Codes of the bundle's items where they lie, and of live items beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ROOM = 1024
"""Fresh rows there is room for at first."""


class CodeTable:
    """``base`` float32 (I, D), never copied nor written to, then fresh rows. Rows are never changed.

    ``largest``: the largest norm of any row.
    """

    def __init__(self, base: np.ndarray, largest: float) -> None:
        self.base, self.largest = base, largest
        self._table = np.empty((0, base.shape[1]), np.float32)
        self._fresh = 0

    def __len__(self) -> int:
        return len(self.base) + self._fresh

    @property
    def fresh(self) -> np.ndarray:
        """The rows beyond the base's, float32 (n, D); it stays as it is when rows come."""
        return self._table[: self._fresh]

    def add(self, code: np.ndarray) -> int:
        """Add a row with ``code`` float32 (D,) and return its number. Room doubles when there is none."""
        if self._fresh == len(self._table):
            table = np.empty((max(2 * self._fresh, ROOM), self._table.shape[1]), np.float32)
            table[: self._fresh] = self._table
            self._table = table
        self._table[self._fresh] = code
        self.largest = max(self.largest, float(np.linalg.norm(np.asarray(code, dtype=np.float64))))
        self._fresh += 1
        return len(self) - 1

    def take(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Codes of ``rows``, float32 (len(rows), D), copied."""
        rows = np.asarray(rows, dtype=np.int64)
        old = rows < len(self.base)
        if old.all():
            return self.base[rows]
        found = np.empty((len(rows), self._table.shape[1]), np.float32)
        found[old], found[~old] = self.base[rows[old]], self._table[rows[~old] - len(self.base)]
        return found
