"""Sources of training histories: shards of whole users, each small enough for memory."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from setrec.ragged import Ragged


class HistorySource(Protocol):
    """Training histories in shards. Repeated reads of a shard return the same data."""

    def __len__(self) -> int:
        """Return the number of shards."""
        ...

    def users(self, shard: int) -> int:
        """Return the number of users of a shard, without reading it."""
        ...

    def read(self, shard: int) -> Ragged:
        """Return the training items of the users of a shard, one row per user, oldest first."""
        ...


class MemorySource:
    """Histories in memory, as one shard."""

    def __init__(self, histories: Ragged) -> None:
        self.histories = histories

    def __len__(self) -> int:
        return 1

    def users(self, shard: int) -> int:
        """See :class:`HistorySource`."""
        return len(self.histories)

    def read(self, shard: int) -> Ragged:
        """See :class:`HistorySource`."""
        return self.histories


def item_counts(source: HistorySource, items: int) -> np.ndarray:
    """Return the training interactions of each item, int64 (I,), in one pass with one shard in memory at a time."""
    counts = np.zeros(items, dtype=np.int64)
    for shard in range(len(source)):
        counts += np.bincount(source.read(shard).values, minlength=items)
    return counts
