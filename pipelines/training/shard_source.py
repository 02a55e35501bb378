"""Histories in Parquet shards as a source of training data and of validation users, without holding all of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from setrec.data.catalog import TRAIN, VALID, Histories
from setrec.errors import DataError
from setrec.evaluation.ranking import Cases
from setrec.ragged import Ragged


class ShardSource:
    """A :class:`setrec.data.source.HistorySource` over files of :meth:`Histories.save`.

    Args:
        paths: the files, in order; whole users in each.
        items: size of the catalogue.
        upto: the last split whose events are used for training.
    """

    def __init__(self, paths: Sequence[str | Path], items: int, upto: int = TRAIN) -> None:
        self.paths, self.items, self.upto = list(paths), items, upto
        # A single shard is read once; of several, one is held in addition to the current window.
        self.histories = lru_cache(maxsize=1)(self._histories)
        self.users = cache(self._users)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, shard: int) -> Ragged:
        """Return the training items of the shard's users.

        Raises:
            DataError: the file is damaged, or contains item rows that the catalogue does not have.
        """
        return self.histories(shard).upto(self.upto)

    def _users(self, shard: int) -> int:
        path = self.paths[shard]
        try:
            return int(pq.ParquetFile(path).metadata.num_rows)
        except (pa.ArrowException, OSError) as error:
            raise DataError("not a readable Parquet file (truncated or damaged)", file=path) from error

    def _histories(self, shard: int) -> Histories:
        return Histories.load(self.paths[shard], items=self.items)


def validation_cases(source: ShardSource, size: int, seed: int) -> Cases:
    """Return the validation cases of all users, or of ``size`` users drawn at random if there are more.

    The draw depends on seed and shards only; at most twice the sample and a shard are held. A case's ``users`` entry is
    its row within its shard.
    """
    kept, keys = Cases.of(Histories([], Ragged.of([]), np.empty(0, dtype=np.int8)), VALID), np.empty(0)
    for shard in range(len(source)):
        found = Cases.of(source.histories(shard), VALID)
        keys = np.concatenate([keys, np.random.default_rng([seed, shard]).random(len(found))])
        kept = Cases(
            np.concatenate([kept.users, found.users]),
            Ragged.joined([kept.history, found.history]),
            Ragged.joined([kept.truth, found.truth]),
            kept.skipped + found.skipped,
        )
        if len(kept) > size:
            rows = np.sort(np.argsort(keys, kind="stable")[:size])
            kept, keys = kept.take(rows), keys[rows]
    return kept
