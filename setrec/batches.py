"""Training batches: every next-item target of a user in one pass, or one sample per prefix as the reference.

Both are the same thing to the model, query blocks that each see part of a history, and differ only in how
targets are dealt out: all of a window's targets share one row, or each target has a row of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from setrec.ragged import Ragged


@dataclass(frozen=True)
class Windows:
    """Stretches of histories. Window w reads items ``start[w]`` up to its last target, and is asked for the targets
    ``first[w] .. end[w] - 1``; all three index into the flat item array, ``start < first < end``."""

    start: np.ndarray
    first: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True)
class Batch:
    """Arrays of one step: items (B, L) right-padded, visible (B, Q), targets (B, Q) with -1 where nothing is asked."""

    items: np.ndarray
    visible: np.ndarray
    targets: np.ndarray

    @property
    def count(self) -> int:
        """Number of targets."""
        return int((self.targets >= 0).sum())

    def shard(self, rank: int, world: int) -> Batch:
        """Every ``world``-th row from ``rank`` on; a shard without rows gets one that asks for nothing."""
        rows = slice(rank, None, world)
        if rank >= len(self.items):
            return Batch(self.items[:1], self.visible[:1], np.full_like(self.targets[:1], -1))
        return Batch(self.items[rows], self.visible[rows], self.targets[rows])


def cut(histories: Ragged, max_items: int, rng: np.random.Generator) -> Windows:
    """Windows that ask for every target of every history exactly once (the first item of a history is never one).

    A history longer than ``max_items`` is cut so that targets beyond the first window see at least half of
    ``max_items`` items; where the cuts fall changes with ``rng``, so that all lengths of sight are trained.
    """
    step = max(1, max_items // 2)
    start, first, end = [], [], []
    phases = rng.integers(0, step, len(histories))
    for begin, stop, phase in zip(histories.offsets[:-1], histories.offsets[1:], phases, strict=True):
        target = begin + 1
        until = min(stop, begin + 1 + max_items - (phase if stop - begin - 1 > max_items else 0))
        while target < stop:
            start.append(max(begin, until - 1 - max_items))
            first.append(target)
            end.append(until)
            target, until = until, min(stop, until + step)
    return Windows(*(np.asarray(x, dtype=np.int64) for x in (start, first, end)))


def one_pass(histories: Ragged, max_items: int, targets_per_batch: int, rng: np.random.Generator) -> list[Batch]:
    """An epoch of batches with all targets of a window in one row, windows of like length together, order shuffled."""
    w = cut(histories, max_items, rng)
    jitter = rng.random(len(w))
    order = np.lexsort((jitter, w.first - w.start, w.end - w.first))
    asked = (w.end - w.first)[order]
    batches, begin = [], 0
    while begin < len(order):
        # Lengths ascend, so a batch's cost is its last window's length times its rows.
        stop = begin + 1
        while stop < len(order) and (stop + 1 - begin) * asked[stop] <= targets_per_batch:
            stop += 1
        batches.append(_batch(histories.values, w, order[begin:stop]))
        begin = stop
    return [batches[i] for i in rng.permutation(len(batches))]


def per_prefix(
    histories: Ragged, max_items: int, targets_per_batch: int, rng: np.random.Generator, *, by_length: bool = False
) -> Iterator[Batch]:
    """An epoch of batches with one row per target, shuffled, as published code trains; the reference.

    ``by_length`` puts prefixes of like length together, which saves padding.
    """
    is_target = np.ones(len(histories.values), dtype=bool)
    is_target[histories.offsets[:-1][histories.lengths > 0]] = False
    first = np.flatnonzero(is_target)
    begin = histories.offsets[histories.row_of_value[first]]
    w = Windows(np.maximum(begin, first - max_items), first, first + 1)
    order = rng.permutation(len(w))
    if by_length:
        order = order[np.argsort((w.first - w.start)[order], kind="stable")]
    starts = np.arange(0, len(order), targets_per_batch)
    for at in rng.permutation(starts) if by_length else starts:
        yield _batch(histories.values, w, order[at : at + targets_per_batch])


def _batch(values: np.ndarray, w: Windows, rows: np.ndarray) -> Batch:
    start, first, end = w.start[rows][:, None], w.first[rows][:, None], w.end[rows][:, None]
    read = np.arange(int((end - 1 - start).max()))[None, :]
    asked = np.arange(int((end - first).max()))[None, :]
    items = np.where(start + read < end - 1, values[np.minimum(start + read, len(values) - 1)], 0)
    valid = first + asked < end
    targets = np.where(valid, values[np.minimum(first + asked, len(values) - 1)], -1)
    visible = np.where(valid, first - start + asked, 0)
    return Batch(items, visible, targets)
