"""The order of training: the targets of each step, as a pure function of seed, epoch and shards.

The shards are put in a new order for every epoch and read a few at a time. The users of such a **window** are mixed and
their histories packed by length into batches, which come in random order; then the next window is read. Memory holds
two windows (one in use, one being prepared), independent of the data's size. A window as large as the data mixes all
users.

Every worker iterates over the same steps and builds its own rows of each. A :class:`Position` marks where an epoch was
interrupted; steps before it are neither read nor built again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from setrec.data.offsets import Offsets
from setrec.data.source import HistorySource
from setrec.ragged import Ragged
from setrec.training import batches
from setrec.training.batches import Batch, Plan
from setrec.training.settings import Samples


@dataclass(frozen=True)
class Position:
    """A position in an epoch: ``step`` steps are done; ``window`` is the current or next one and began at step
    ``first``."""

    step: int = 0
    window: int = 0
    first: int = 0


@dataclass(frozen=True)
class Step:
    """One optimiser step of one worker.

    ``parts``: the rows, split into as many batches as gradients are accumulated over. ``count`` and ``weight``: number
    and total weight of the step's targets over all workers. ``before`` and ``after``: shares of the epoch's users seen
    before and after the step. ``then``: the position after the step.
    """

    parts: list[Batch]
    count: int
    weight: float
    before: float
    after: float
    then: Position


@dataclass(frozen=True)
class Stream:
    """The steps of a worker, by epoch and position.

    ``rank`` of ``world`` workers. A step has ``world * accumulate`` parts; part r + world * j is the j-th of worker r.
    ``offsets``: those of the source's positions, if training uses any.
    """

    source: HistorySource
    max_items: int
    targets_per_batch: int
    seed: int
    samples: Samples = "one_pass"
    window: int = 8
    accumulate: int = 1
    rank: int = 0
    world: int = 1
    offsets: Offsets | None = None

    def steps(self, epoch: int, at: Position = Position()) -> Iterator[Step]:
        """Yield the steps of an epoch (from 0) after ``at``."""
        windows = self._windows(epoch)
        users = np.cumsum([0, *(sum(map(self.source.users, shards)) for shards in windows)])
        seen = users / max(1, users[-1])
        for number in range(at.window, len(windows)):
            first = at.first
            plan = self.plan(epoch, number, windows[number])
            ends = np.linspace(seen[number], seen[number + 1], len(plan) + 1)
            for index in range(at.step - first, len(plan)):
                at = Position(first + index + 1, number, first)
                count, weight = plan.count(index), plan.weight(index)
                yield Step(self._parts(plan, index), count, weight, ends[index], ends[index + 1], at)
            at = Position(first + len(plan), number + 1, first + len(plan))

    def plan(self, epoch: int, number: int, shards: list[int]) -> Plan:
        """Return the batches of a window."""
        rng = np.random.default_rng([self.seed, epoch, number])
        make = batches.one_pass if self.samples == "one_pass" else batches.per_prefix
        histories = Ragged.joined([self.source.read(shard) for shard in shards])
        plan = make(histories, self.max_items, self.targets_per_batch, rng)
        return plan if self.offsets is None else replace(plan, offsets=self.offsets.of_shards(shards))

    def _windows(self, epoch: int) -> list[list[int]]:
        shards = len(self.source)
        # No window has this number, so the order of shards shares no random numbers with a window.
        order = np.random.default_rng([self.seed, epoch, shards]).permutation(shards).tolist()
        return [order[begin : begin + self.window] for begin in range(0, shards, self.window)]

    def _parts(self, plan: Plan, index: int) -> list[Batch]:
        parts = self.world * self.accumulate
        return [plan.part(index, self.rank + self.world * j, parts) for j in range(self.accumulate)]
