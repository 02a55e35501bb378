"""Progress of a training, and running sums of its current epoch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from setrec.training import distributed
from setrec.training.stream import Position

MEANS = ("loss", "waited", "busy")
"""Running sums that are averaged over workers."""
TOTALS = ("computed", "useful")
"""Running sums that are added up over workers."""


@dataclass
class Progress:
    """State of a resumed run other than weights and optimiser.

    ``best`` is the best validation NDCG@10 of the model, ``legs`` that of each leg and ``leg_epochs`` the epochs of
    these; ``best_epoch`` is the last of them.
    ``epoch`` epochs are finished, ``position`` is the place in the next one; ``sums`` are its running sums: ``loss``
    (over targets), ``targets`` (of all workers), ``computed`` and ``useful`` tokens, ``waited`` and ``busy`` seconds.
    """

    epoch: int = 0
    position: Position = field(default_factory=Position)
    best: float = -1.0
    legs: list[float] = field(default_factory=list)
    leg_epochs: list[int] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._clock = time.perf_counter()

    def judge(self, values: Sequence[float], legs: int) -> list[bool]:
        """Note validation NDCG@10 of the model and of each leg; return for each leg whether the current epoch is its
        best so far. The model's value alone counts for every leg; without values every epoch is the best."""
        if not values:
            self.best_epoch, self.leg_epochs = self.epoch + 1, [self.epoch + 1] * legs
            return [True] * legs
        before = self.legs or [-1.0] * legs
        each = list(values[1:]) or [values[0]] * legs
        better = [new > old for new, old in zip(each, before, strict=True)]
        self.legs = [max(pair) for pair in zip(each, before, strict=True)]
        self.best = max(self.best, values[0])
        known = self.leg_epochs or [0] * legs
        self.leg_epochs = [self.epoch + 1 if new else old for new, old in zip(better, known, strict=True)]
        self.best_epoch = max(self.leg_epochs)
        return better

    def exhausted(self, epochs: int, patience: int) -> bool:
        """Return whether training is over."""
        return self.epoch >= epochs or self.epoch - self.best_epoch >= patience

    def start_clock(self) -> None:
        """Start the clock; time before this call does not count."""
        self._clock = time.perf_counter()

    def tick(self) -> float:
        """Return the seconds since the last call, and add them to those of the run."""
        now = time.perf_counter()
        passed, self._clock = now - self._clock, now
        self.seconds += passed
        return passed

    def add(self, **values: float) -> None:
        """Add to the running sums."""
        self.sums = {**self.sums, **{key: self.sums.get(key, 0) + value for key, value in values.items()}}

    def over_workers(self, world: int, device: torch.device) -> dict[str, float]:
        """Return the running sums of all workers."""
        total = distributed.all_reduce_sum([self.sums.get(key, 0.0) for key in MEANS + TOTALS], world, device)
        sums = dict(zip(MEANS + TOTALS, total, strict=True))
        return {**sums, **{key: sums[key] / world for key in MEANS}, "targets": self.sums.get("targets", 0)}

    def record(self, sums: dict[str, float]) -> dict[str, Any]:
        """Return the record of the current epoch from the sums of all workers."""
        busy = max(1e-9, sums["busy"])
        return {
            "epoch": self.epoch + 1,
            "loss": sums["loss"] / max(1, sums["targets"]),
            "targets": int(sums["targets"]),
            "tokens_per_second": round(sums["computed"] / busy),
            "padding_share": round(1 - sums["useful"] / max(1, sums["computed"]), 4),
            "loading_share": round(sums["waited"] / busy, 4),
        }

    def finish(self, record: dict[str, Any]) -> None:
        """End the epoch and add its record to the curve."""
        self.epoch, self.position, self.sums = self.epoch + 1, Position(), {}
        self.curve.append(record)

    def saved(self, world: int, device: torch.device) -> dict[str, Any]:
        """Return the progress as plain values, the same for any number of workers; called on every worker."""
        self.tick()
        return {**asdict(self), "sums": self.over_workers(world, device)}

    @classmethod
    def of(cls, record: dict[str, Any], rank: int, world: int) -> Progress:
        """Return one worker's progress from the values of :meth:`saved`; worker 0 gets the sums, and every worker its
        share of the averaged ones.

        Raises:
            KeyError, TypeError: the record is another version's.
        """
        sums = record["sums"]
        mine = {key: sums[key] * (world if key in MEANS else 1) * (rank == 0) for key in MEANS + TOTALS}
        kept = {**mine, "targets": sums["targets"]}
        return cls(**{**record, "position": Position(**record["position"]), "sums": kept})
