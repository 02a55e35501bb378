"""Codes of the items of a bundle, without a copy, and of live items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ROOM = 1024
"""Initial capacity for added rows."""


class CodeTable:
    """A table of ``base`` codes, float32 (I, D), which are neither copied nor modified, followed by added rows.

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
        """The added rows, float32 (n, D); the array does not change when rows are added."""
        return self._table[: self._fresh]

    def add(self, code: np.ndarray) -> int:
        """Append ``code``, float32 (D,), and return its row. Capacity doubles when it is exhausted."""
        if self._fresh == len(self._table):
            table = np.empty((max(2 * self._fresh, ROOM), self._table.shape[1]), np.float32)
            table[: self._fresh] = self._table
            self._table = table
        self._table[self._fresh] = code
        self.largest = max(self.largest, float(np.linalg.norm(np.asarray(code, dtype=np.float64))))
        self._fresh += 1
        return len(self) - 1

    def take(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return a copy of the codes of ``rows``, float32 (len(rows), D)."""
        rows = np.asarray(rows, dtype=np.int64)
        old = rows < len(self.base)
        if old.all():
            codes: np.ndarray = self.base[rows]
            return codes
        codes = np.empty((len(rows), self._table.shape[1]), np.float32)
        codes[old], codes[~old] = self.base[rows[old]], self._table[rows[~old] - len(self.base)]
        return codes
