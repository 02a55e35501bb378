"""Lists of different lengths as two flat arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from setrec.mapped import on_disk


@dataclass(frozen=True)
class Ragged:
    """Row ``r`` is ``values[offsets[r]:offsets[r + 1]]``; ``offsets`` has one entry more than there are rows.

    ``weights`` float32, one per value, if the values have different weights.
    """

    values: np.ndarray
    offsets: np.ndarray
    weights: np.ndarray | None = None

    @classmethod
    def of(cls, rows: Iterable[Sequence[int] | np.ndarray], dtype: type = np.int32) -> Ragged:
        """Pack ``rows``."""
        arrays: list[np.ndarray] = [np.asarray(row, dtype=dtype) for row in rows]
        lengths = np.fromiter((len(a) for a in arrays), dtype=np.int64, count=len(arrays))
        values = np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)
        return cls(values.astype(dtype, copy=False), offsets_of(lengths))

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Ragged:
        """Concatenate the rows of all parts; ``parts`` has at least one."""
        offsets = offsets_of(np.concatenate([part.lengths for part in parts]))
        weights = None
        if any(part.weights is not None for part in parts):
            each = [np.ones(len(p.values), np.float32) if p.weights is None else p.weights for p in parts]
            weights = np.concatenate(each)
        return cls(np.concatenate([part.values for part in parts]), offsets, weights)

    @classmethod
    def stored(cls, parts: Iterable[Ragged]) -> Ragged:
        """Concatenate the rows of all parts as :meth:`joined`, with one part in memory at a time.

        Values and weights are on disk (:func:`setrec.mapped.on_disk`), offsets in memory. All parts have weights, or
        none has.
        """
        columns = ((p.lengths, p.values) if p.weights is None else (p.lengths, p.values, p.weights) for p in parts)
        lengths, values, *weights = on_disk(columns)
        return cls(values, offsets_of(lengths), weights[0] if weights else None)

    @property
    def lengths(self) -> np.ndarray:
        """Return the length of each row."""
        lengths: np.ndarray = self.offsets[1:] - self.offsets[:-1]  # np.diff takes ten times as long for a few rows
        return lengths

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    def take(self, rows: np.ndarray) -> Ragged:
        """Return the given rows, in the given order."""
        lengths = self.offsets[1:][rows] - self.offsets[:-1][rows]  # of these rows only: there may be millions
        offsets = offsets_of(lengths)
        source = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Ragged(self.values[source], offsets, None if self.weights is None else self.weights[source])

    def where(self, keep: np.ndarray) -> Ragged:
        """Return only the entries whose flag in ``keep`` (one per value) is true; rows may become empty."""
        counts = offsets_of(keep)
        weights = None if self.weights is None else self.weights[keep]
        return Ragged(self.values[keep], counts[self.offsets], weights)

    @property
    def row_of_value(self) -> np.ndarray:
        """Return for each value the row it belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def pad(self, length: int | None = None, fill: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return the **last** ``length`` entries of each row, left-aligned and right-padded.

        Returns ``(matrix (rows, length), kept lengths (rows,))``; ``length`` defaults to the longest row.
        """
        longest = int(self.lengths.max(initial=0))
        length = longest if length is None else min(length, longest)
        kept = np.minimum(self.lengths, length)
        matrix = np.full((len(self), length), fill, dtype=self.values.dtype)
        columns = np.arange(length)[None, :]
        mask = columns < kept[:, None]
        source = (self.offsets[1:] - kept)[:, None] + columns
        matrix[mask] = self.values[source[mask]]
        return matrix, kept


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Return the offsets, int64, of rows with these lengths."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def row_blocks(offsets: np.ndarray, size: int) -> Iterator[tuple[int, int]]:
    """Yield the first row and the row after the last of blocks of rows with up to ``size`` values, at least one row
    each; together they are all rows, and of no rows one empty block."""
    start, rows = 0, len(offsets) - 1
    if not rows:
        yield 0, 0
    while start < rows:
        end = max(start + 1, int(np.searchsorted(offsets, offsets[start] + size, side="right")) - 1)
        yield start, end
        start = end
