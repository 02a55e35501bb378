"""Training batches: every next-item target of a user in one pass, or one sample per prefix as the reference.

Both give the model query blocks that each see part of a history. They differ only in the assignment of targets to rows:
all targets of a window share one row, or each target has its own row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from setrec.data.offsets import Entries
from setrec.ragged import Ragged

QUERIES = 3
"""Weight of a target in a batch's budget, relative to an item read: the usual number of its queries."""


@dataclass(frozen=True)
class Windows:
    """Sections of histories. Window w reads items ``start[w]`` up to its last target, and predicts the targets
    ``first[w] .. end[w] - 1``; all three index into the flat item array, ``start < first < end``."""

    start: np.ndarray
    first: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True)
class Batch:
    """Arrays of one step: items (B, L) right-padded, visible (B, Q), targets (B, Q) with -1 where there is none, the
    weights of the targets (B, Q), if they differ, and their ``offset``, if there is one."""

    items: np.ndarray
    visible: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None = None
    offset: Entries | None = None

    @property
    def count(self) -> int:
        """Number of targets."""
        return int((self.targets >= 0).sum())

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return items, visible and targets, int64, on a device."""
        items, visible, targets = (
            torch.from_numpy(x).to(device, torch.int64) for x in (self.items, self.visible, self.targets)
        )
        return items, visible, targets

    def target_weights(self, device: torch.device) -> Tensor | None:
        """Return the weights of the targets other than -1, float32 (T, 1); ``None`` if all weigh the same."""
        if self.weights is None:
            return None
        return torch.from_numpy(self.weights[self.targets >= 0][:, None]).to(device, torch.float32)

    def offset_tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return numbers of the targets other than -1, items, int64, and values, float32, of the offset, (P,) each."""
        if self.offset is None:
            return None
        rows, items, values = map(torch.from_numpy, self.offset)
        return rows.to(device), items.to(device, torch.int64), values.to(device, torch.float32)

    def tokens(self, m: int, n: int) -> tuple[int, int]:
        """Return the number of tokens computed, and of those that are not padding: ``m`` per item, ``n`` per target."""
        read = (self.visible.max(axis=1) * (self.targets >= 0).any(axis=1)).sum()
        return m * self.items.size + n * self.targets.size, int(m * read + n * self.count)


@dataclass(frozen=True)
class Plan(Sequence[Batch]):
    """Batches in order, stored as the numbers of their windows; :meth:`part` builds one part of one batch. ``offsets``
    returns the entries of positions in the flat item array."""

    histories: Ragged
    windows: Windows
    steps: list[np.ndarray]
    offsets: Callable[[np.ndarray], Entries] | None = None

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step: int) -> Batch:  # type: ignore[override]
        return self.part(step)

    def count(self, step: int) -> int:
        """Return the number of targets of a whole batch."""
        w, rows = self.windows, self.steps[step]
        return int((w.end[rows] - w.first[rows]).sum())

    def weight(self, step: int) -> float:
        """Return the total weight of the targets of a whole batch."""
        if self.histories.weights is None:
            return float(self.count(step))
        batch = _batch(self.histories, self.windows, self.steps[step])
        assert batch.weights is not None
        return float(batch.weights.sum(dtype=np.float64))

    def part(self, step: int, number: int = 0, parts: int = 1) -> Batch:
        """Return every ``parts``-th row of a batch from row ``number`` on; one row without targets if there is none.

        Rows are in order of length, so that the parts of a batch cost the same.
        """
        rows = self.steps[step]
        if number < len(rows):
            return _batch(self.histories, self.windows, rows[number::parts], self.offsets)
        empty = _batch(self.histories, self.windows, rows[:1])
        none = None if self.offsets is None else self.offsets(np.empty(0, dtype=np.int64))
        return replace(empty, targets=np.full_like(empty.targets, -1), offset=none)


def cut(histories: Ragged, max_items: int, rng: np.random.Generator) -> Windows:
    """Return windows that contain every target of every history exactly once (the first item is never a target).

    A history longer than ``max_items`` is cut so that targets beyond the first window see at least half of
    ``max_items`` items; ``rng`` places the cuts, so that all numbers of visible items are trained.
    """
    step, lengths = max(1, max_items // 2), histories.lengths
    phases = rng.integers(0, step, len(histories))
    until = np.minimum(lengths, 1 + max_items - np.where(lengths - 1 > max_items, phases, 0))
    pieces = np.where(lengths > 1, 1 - (until - lengths) // step, 0)
    row = np.repeat(np.arange(len(histories)), pieces)
    piece = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    end = np.minimum(lengths[row], until[row] + piece * step)
    first = np.where(piece == 0, 1, until[row] + (piece - 1) * step)
    start, begin = np.maximum(0, end - 1 - max_items), histories.offsets[:-1][row]
    return Windows(begin + start, begin + first, begin + end)


def one_pass(histories: Ragged, max_items: int, targets_per_batch: int, rng: np.random.Generator) -> Plan:
    """Return an epoch of shuffled batches, with all targets of a window in one row and windows of similar length
    together.

    ``targets_per_batch`` is a budget of tokens, equal to that many targets with the item before each; padding counts,
    and so do items that are read only as context.
    """
    w = cut(histories, max_items, rng)
    read, asked, jitter = w.end - 1 - w.start, w.end - w.first, rng.random(len(w))
    # The first window of a history reads only its targets; a later one reads far more, and would pad the others.
    later = w.first - w.start > 1
    order = np.lexsort((jitter, read, asked, later))
    groups = np.split(order, [int((~later).sum())])
    steps = [rows for group in groups for rows in _packed(group, read, asked, targets_per_batch)]
    return Plan(histories, w, [steps[i] for i in rng.permutation(len(steps))])


def _packed(rows: np.ndarray, read: np.ndarray, asked: np.ndarray, budget: float) -> Iterator[np.ndarray]:
    """Yield ``rows`` in order, as many at a time as fit the budget when padded to the longest."""
    begin = 0
    while begin < len(rows):
        one = (read[rows[begin]] + QUERIES * asked[rows[begin]]) / (1 + QUERIES)
        some = rows[begin : begin + int(budget / one) + 1]
        longest = np.maximum.accumulate(read[some]) + QUERIES * np.maximum.accumulate(asked[some])
        cost = longest / (1 + QUERIES) * np.arange(1, len(some) + 1)
        fit = max(1, int(np.searchsorted(cost, budget, side="right")))
        yield some[:fit]
        begin += fit


def per_prefix(
    histories: Ragged, max_items: int, targets_per_batch: int, rng: np.random.Generator, *, by_length: bool = False
) -> Plan:
    """Return an epoch of shuffled batches with one row per target, as in published code; the reference.

    ``by_length`` groups prefixes of similar length, which saves padding.
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
    begins = rng.permutation(starts) if by_length else starts
    return Plan(histories, w, [order[at : at + targets_per_batch] for at in begins])


def _batch(
    histories: Ragged, w: Windows, rows: np.ndarray, offsets: Callable[[np.ndarray], Entries] | None = None
) -> Batch:
    values, weights = histories.values, histories.weights
    start, first, end = w.start[rows][:, None], w.first[rows][:, None], w.end[rows][:, None]
    read = np.arange(int((end - 1 - start).max()))[None, :]
    asked = np.arange(int((end - first).max()))[None, :]
    items = np.where(start + read < end - 1, values[np.minimum(start + read, len(values) - 1)], 0)
    valid = first + asked < end
    at = np.minimum(first + asked, len(values) - 1)
    targets = np.where(valid, values[at], -1)
    visible = np.where(valid, first - start + asked, 0)
    weights = None if weights is None else np.where(valid, weights[at], 0)
    return Batch(items, visible, targets, weights, None if offsets is None else offsets(at[valid]))
