"""Offsets of the logits at training positions, in memory-mapped files.

An offset is a fixed part of a logit (as in generalised linear models): a model trained with one learns what it lacks. A
position is the place of a target among the values of all training histories, shard after shard. It has offsets for a
few listed items; those of all others are 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from setrec.errors import DataError
from setrec.ragged import Ragged

Entries = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Number of the position within those asked for, ascending, item row int32 and offset float16, one each."""
_KINDS = {"bounds": np.int64, "items": np.int32, "values": np.float16, "shards": np.int64}


@dataclass(frozen=True)
class Offsets:
    """Offsets of P positions: position p has the entries ``bounds[p, 0]`` to ``bounds[p, 1]``, int64 (P, 2), of
    ``items`` int32 and ``values`` float16. ``shards`` int64 (S + 1,): the first position of each shard, and P."""

    bounds: np.ndarray
    items: np.ndarray
    values: np.ndarray
    shards: np.ndarray

    def take(self, positions: np.ndarray) -> Entries:
        """Return the entries of ``positions`` int64, in their order."""
        start, stop = self.bounds[positions].T
        lengths = stop - start
        row = np.repeat(np.arange(len(lengths)), lengths)
        at = np.arange(len(row)) + (start - (np.cumsum(lengths) - lengths))[row]
        return row, self.items[at], self.values[at]

    def of_shards(self, shards: Sequence[int]) -> Callable[[np.ndarray], Entries]:
        """Return :meth:`take` for positions in the joined histories of ``shards``."""
        order = np.asarray(shards, dtype=np.int64)
        lengths = np.diff(self.shards)[order]
        first = np.cumsum(lengths) - lengths
        shift = self.shards[order] - first
        return lambda at: self.take(at + shift[np.searchsorted(first, at, side="right") - 1])

    @staticmethod
    def save(folder: Path, shards: np.ndarray, parts: Iterable[tuple[np.ndarray, Ragged, np.ndarray]]) -> None:
        """Write offsets into ``folder`` as they come: positions, a row of items for each, and the items' values."""
        bounds, written = np.zeros((int(shards[-1]), 2), dtype=np.int64), 0
        with (folder / "items").open("wb") as items, (folder / "values").open("wb") as values:
            for positions, rows, offsets in parts:
                bounds[positions] = written + np.stack([rows.offsets[:-1], rows.offsets[1:]], axis=1)
                rows.values.astype(np.int32).tofile(items)
                offsets.astype(np.float16).tofile(values)
                written += len(rows.values)
        bounds.tofile(folder / "bounds")
        shards.astype(np.int64).tofile(folder / "shards")

    @classmethod
    def load(cls, folder: Path) -> Offsets:
        """Map what :meth:`save` wrote.

        Raises:
            DataError: files are missing or do not fit each other.
        """
        try:
            found = {name: _mapped(folder / name, kind) for name, kind in _KINDS.items()}
            offsets = cls(**{**found, "bounds": found["bounds"].reshape(-1, 2)})
        except (OSError, ValueError) as error:
            raise DataError("holds no offsets; remove it", file=folder) from error
        if not offsets.bounds.max(initial=0) == len(offsets.items) == len(offsets.values):
            raise DataError("is damaged; remove it", file=folder)
        return offsets


def _mapped(path: Path, kind: type) -> np.ndarray:
    # An empty file cannot be mapped.
    return np.memmap(path, kind, "r").view(np.ndarray) if path.stat().st_size else np.empty(0, kind)
