"""Where a training stands, and what it has counted since its epoch began."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from setrec.training import distributed
from setrec.training.stream import Position

MEANS = ("loss", "waited", "busy")
"""Sums of which the mean over workers is meant; each worker has its own."""
TOTALS = ("computed", "useful")
"""Sums of which the sum over workers is meant."""


@dataclass
class Progress:
    """All that a resumed run needs beside weights and optimiser.

    ``epoch`` epochs are finished, the next one has come to ``position``; ``sums`` are its running sums: ``loss`` (over
    targets), ``targets`` (of all workers), ``computed`` and ``useful`` tokens, ``waited`` and ``busy`` seconds.
    """

    epoch: int = 0
    position: Position = field(default_factory=Position)
    best: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._clock = time.perf_counter()

    def exhausted(self, epochs: int, patience: int) -> bool:
        """Whether training is over."""
        return self.epoch >= epochs or self.epoch - self.best_epoch >= patience

    def start_clock(self) -> None:
        """What passed until now counts for nothing."""
        self._clock = time.perf_counter()

    def tick(self) -> float:
        """Seconds since the last call, added to those of the run."""
        now = time.perf_counter()
        passed, self._clock = now - self._clock, now
        self.seconds += passed
        return passed

    def add(self, **found: float) -> None:
        """Add to the running sums."""
        self.sums = {**self.sums, **{key: self.sums.get(key, 0) + value for key, value in found.items()}}

    def over_workers(self, world: int, device: torch.device) -> dict[str, float]:
        """The running sums of all workers."""
        total = distributed.all_reduce_sum([self.sums.get(key, 0.0) for key in MEANS + TOTALS], world, device)
        found = dict(zip(MEANS + TOTALS, total, strict=True))
        return {**found, **{key: found[key] / world for key in MEANS}, "targets": self.sums.get("targets", 0)}

    def record(self, sums: dict[str, float]) -> dict[str, Any]:
        """The line of the epoch under way from the sums of all workers."""
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
        """The epoch is over; its line goes to the curve."""
        self.epoch, self.position, self.sums = self.epoch + 1, Position(), {}
        self.curve.append(record)

    def saved(self, world: int, device: torch.device) -> dict[str, Any]:
        """As plain values, the same for any number of workers; called on every worker."""
        self.tick()
        return {**asdict(self), "sums": self.over_workers(world, device)}

    @classmethod
    def of(cls, record: dict[str, Any], rank: int, world: int) -> Progress:
        """One worker's progress from what :meth:`saved` gave; worker 0 takes the sums over, with every worker's share
        of those that are averaged.

        Raises:
            KeyError, TypeError: the record is another version's.
        """
        sums = record["sums"]
        mine = {key: sums[key] * (world if key in MEANS else 1) * (rank == 0) for key in MEANS + TOTALS}
        kept = {**mine, "targets": sums["targets"]}
        return cls(**{**record, "position": Position(**record["position"]), "sums": kept})
