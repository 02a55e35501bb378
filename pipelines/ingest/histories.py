"""Histories from interactions in chronological order: split, and shards on disk. Both engines provide the blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from pipelines.data.directory import SHARD_ROWS, write_histories
from pipelines.data.settings import DataSettings
from setrec.data.catalog import Histories
from setrec.data.interactions import tied
from setrec.data.splits import TEST, TRAIN, VALID, GlobalTime, LeaveOneOut, held_out_items, leave_one_out
from setrec.ragged import Ragged


@dataclass(frozen=True)
class HistoryBlock:
    """Interactions of whole users, chronological. ``user`` (ascending numbers), ``item`` codes, ``time``, and optional
    ``split`` and ``weight``: arrays of one length; ``names``: returns the ids of users by number."""

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    names: Callable[[np.ndarray], list[str]]
    split: np.ndarray | None = None
    weight: np.ndarray | None = None


class Interactions(Protocol):
    """The remaining interactions in an engine, in the order of their users and times."""

    def blocks(self) -> Iterator[HistoryBlock]:
        """Yield all of them; users in the order of their first occurrence."""
        ...

    def times_at(self, ranks: list[int]) -> list[float]:
        """Return the times at the given ranks of all sorted times."""
        ...


@dataclass
class Split:
    """Labels of interactions. ``cuts``: for a split by global time, the instants of validation and test; ``cold``, bool
    (I,): items held out of training."""

    config: DataSettings
    cuts: tuple[float, float] | None
    cold: np.ndarray

    @classmethod
    def of(cls, interactions: Interactions, config: DataSettings, counts: np.ndarray) -> Split:
        """Find the cuts, and choose the items to hold out; ``counts`` int64 (I,) of interactions of each item."""
        cuts = None
        if isinstance(split := config.split, GlobalTime):
            total = int(counts.sum())
            # The small step down keeps 0.1 + 0.2 of 100 at 30 despite rounding.
            ranks = [total - math.ceil(total * share - 1e-9) for share in (split.valid + split.test, split.test)]
            valid, test = interactions.times_at(ranks)
            cuts = (valid, test)
        found = cls(config, cuts, np.zeros(len(counts), dtype=bool))
        if config.cold_share:
            trained = np.zeros(len(counts), dtype=bool)
            for block in interactions.blocks():
                asked = True if block.weight is None else block.weight > 0
                trained[block.item[(found.labels(block) == TRAIN) & asked]] = True
            found.cold = held_out_items(trained, config.cold_share, config.seed)
        return found

    def labels(self, block: HistoryBlock) -> np.ndarray:
        """Return the label of each interaction, int8."""
        if self.cuts is not None:
            valid, test = self.cuts
            return np.where(block.time >= test, TEST, np.where(block.time >= valid, VALID, TRAIN)).astype(np.int8)
        if isinstance(self.config.split, LeaveOneOut):
            starts = np.flatnonzero(np.r_[True, block.user[1:] != block.user[:-1]])
            events = Ragged(block.item, np.r_[starts, len(block.user)], block.weight)
            return _leave_one_out(events, self.config.split.min_history)
        assert block.split is not None, "such a split is a column, and a column is read"
        return block.split.astype(np.int8)


def _leave_one_out(events: Ragged, min_history: int) -> np.ndarray:
    """Return labels of events, int8. Events with a weight below 0 are never held out, but known with the one before."""
    if events.weights is None:
        return leave_one_out(events.offsets, min_history)
    asked = events.weights > 0
    held = events.where(asked)
    labels, before = np.r_[leave_one_out(held.offsets, min_history), np.int8(TRAIN)], np.cumsum(asked) - 1
    return np.where(before >= held.offsets[:-1][events.row_of_value], labels[before], np.int8(TRAIN))


@dataclass
class Written:
    """Counts over the shards. ``splits`` (3,); ``trained`` bool (I,): items that occur in training."""

    trained: np.ndarray
    users: int = 0
    held: int = 0
    tied: int = 0
    tied_last: int = 0
    splits: np.ndarray = field(default_factory=lambda: np.zeros(3, dtype=np.int64))


def write(interactions: Interactions, split: Split, row_of: np.ndarray, folder: Path) -> Written:
    """Write ``folder/part-*.parquet``, each of whole users; ``row_of`` int32 (I,): the catalogue's row of each code."""
    found = Written(np.zeros(len(row_of), dtype=bool))

    def parts() -> Iterator[Histories]:
        for block in interactions.blocks():
            labels = split.labels(block)
            keep = ~((labels == TRAIN) & split.cold[block.item])
            users, items, labels = block.user[keep], block.item[keep], labels[keep]
            weights = None if block.weight is None else block.weight[keep]
            found.held += int((~keep).sum())
            if not len(users):
                continue
            ends = np.flatnonzero(np.r_[users[1:] != users[:-1], True]) + 1
            ties = tied(users, block.time[keep])
            found.users += len(ends)
            found.tied, found.tied_last = found.tied + int(ties.sum()), found.tied_last + int(ties[ends - 1].sum())
            found.splits += np.bincount(labels, minlength=3)
            offsets = np.r_[0, ends].astype(np.int64)
            histories = Histories(block.names(users[ends - 1]), Ragged(row_of[items], offsets, weights), labels)
            found.trained[histories.upto(TRAIN).values] = True
            yield histories

    write_histories(folder, parts(), SHARD_ROWS)
    return found
