"""Ids of all items as flat arrays: what a task needs to turn ids into codes, read where it lies in the object store."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from setrec.errors import DataError


def hashed(ids: pd.Series) -> np.ndarray:
    """A number for each id, uint64, the same in every process."""
    return pd.util.hash_array(ids.to_numpy(dtype=object), categorize=False)


@dataclass(frozen=True)
class ItemTable:
    """I items in the order of the input. ``ids`` large_string (I,); ``rows`` int64 (I,): where each stands in the
    table it came from; ``hashes`` uint64 (I,) ascending, and ``codes`` int32 (I,): whose hash each is.

    About 24 bytes an item, and the ids.
    """

    ids: pa.Array
    rows: np.ndarray
    hashes: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(cls, ids: pd.Series, rows: np.ndarray) -> tuple[ItemTable, np.ndarray]:
        """The table of the distinct ids, and the places in ``ids`` of those that repeat an earlier one.

        Raises:
            DataError: two ids share a hash (one chance in ten million for a million items).
        """
        repeated = ids.duplicated().to_numpy()
        kept = ids[~repeated]
        hashes = hashed(kept)
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
        if len(same):
            pair = kept.iloc[order[same[0] : same[0] + 2]].tolist()
            raise DataError(f"the item ids {pair[0]!r} and {pair[1]!r} share a hash; rename one of them")
        array = pa.array(kept, pa.large_string())
        array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
        table = cls(array, rows[~repeated], hashes[order], order.astype(np.int32))
        return table, np.flatnonzero(repeated)

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, ids: pd.Series) -> np.ndarray:
        """Codes of ids, int32; -1 where an id is in no table."""
        if not len(self) or not len(ids):
            return np.full(len(ids), -1, dtype=np.int32)
        hashes = hashed(ids)
        at = np.minimum(np.searchsorted(self.hashes, hashes), len(self) - 1)
        codes = self.codes[at]
        asked = pa.array(ids, pa.large_string())
        found = pc.equal(self.ids.take(pa.array(codes)), asked).to_numpy(zero_copy_only=False)
        return np.where(found, codes, -1).astype(np.int32)

    def codes_at(self, rows: np.ndarray) -> np.ndarray:
        """Codes of the items that stand at ``rows`` of their table, int64; -1 where none does."""
        at = np.minimum(np.searchsorted(self.rows, rows), max(len(self) - 1, 0))
        return np.where(self.rows[at] == rows, at, -1) if len(self) else np.full(len(rows), -1)
