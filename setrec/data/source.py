"""Where training histories come from: shards of whole users, each small enough to be held."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from setrec.ragged import Ragged


class HistorySource(Protocol):
    """Training histories in shards. Reading a shard twice gives the same."""

    def __len__(self) -> int:
        """Number of shards."""
        ...

    def users(self, shard: int) -> int:
        """Number of users of a shard, known without reading it."""
        ...

    def read(self, shard: int) -> Ragged:
        """The training items of the users of a shard, one row per user, oldest first."""
        ...


class MemorySource:
    """Histories at hand, as one shard."""

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
    """Training interactions of each item, int64 (I,); one pass over the shards, one of them held at a time."""
    counts = np.zeros(items, dtype=np.int64)
    for shard in range(len(source)):
        counts += np.bincount(source.read(shard).values, minlength=items)
    return counts
