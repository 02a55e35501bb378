"""The book of a search: every trial's settings, curve and end, in one file that is complete at any time.

It is written after every judged epoch and contains everything that a search needs to continue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipelines.common.run_directory import Run
from setrec.errors import ConfigError

FILE = "trials.json"
METRIC = "ndcg@10"
Stop = Literal["finished", "halved", "time", "failed"]
"""Why a trial ended: epochs or patience exhausted, worse than others, time limit of the search, error."""


@dataclass
class Trial:
    """``settings`` by configuration key; ``curve``: one record per judged epoch; no ``stop`` while it runs."""

    number: int
    settings: dict[str, Any]
    curve: list[dict[str, Any]] = field(default_factory=list)
    stop: Stop | None = None
    reason: str = ""

    @property
    def over(self) -> bool:
        """Return whether the trial is complete; a trial that ran out of time may continue."""
        return self.stop in ("finished", "halved", "failed")

    @property
    def best(self) -> float | None:
        """Return the best validation NDCG@10 of its epochs."""
        return max((record[METRIC] for record in self.curve), default=None)

    @property
    def seconds(self) -> float:
        """Training time."""
        return float(self.curve[-1]["seconds"]) if self.curve else 0.0

    def record(self) -> dict[str, Any]:
        """Return the trial as stored in the file."""
        return {**asdict(self), "epochs": len(self.curve), "best": self.best, "seconds": self.seconds}


class Trials:
    """All trials of a run's search. ``on_epoch`` is called with the trial after each epoch."""

    def __init__(self, run: Run, trials: list[Trial], on_epoch: Callable[[Trial], None] = lambda trial: None) -> None:
        self.run, self.trials, self.on_epoch = run, trials, on_epoch

    @classmethod
    def read(cls, run: Run) -> list[Trial]:
        """Return the trials of an earlier search; empty if there was none.

        Raises:
            ConfigError: the file is damaged.
        """
        try:
            found = run.read_json(FILE) or []
            return [Trial(t["number"], t["settings"], t["curve"], t["stop"], t["reason"]) for t in found]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{run.root / FILE} is damaged") from error

    def record_epoch(self, number: int, record: dict[str, Any], *, halved: bool, exhausted: bool) -> None:
        """Record an epoch, and the trial's end after the last one. A repeated epoch changes nothing."""
        trial = self.trials[number]
        if record["epoch"] > len(trial.curve):
            trial.curve.append(record)
            trial.stop = "finished" if exhausted else "halved" if halved else None
            self.save()
            self.on_epoch(trial)

    def end(self, number: int, stop: Stop, reason: str = "") -> None:
        """Record an end that does not follow from an epoch."""
        self.trials[number].stop, self.trials[number].reason = stop, reason
        self.save()

    def save(self) -> None:
        """Write the file, atomically."""
        self.run.write_json(FILE, [trial.record() for trial in self.trials])

    def best(self) -> Trial:
        """Return the trial with the best epoch on validation; of equals the first.

        Raises:
            ConfigError: no trial has finished an epoch; the message has the reason of the first.
        """
        some = [trial for trial in self.trials if trial.best is not None]
        if not some:
            reason = next((trial.reason for trial in self.trials if trial.reason), "the time was too short")
            raise ConfigError(f"no trial finished an epoch: {reason}")
        return max(some, key=lambda trial: trial.best or 0.0)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without ``on_epoch``, because Ray stores a copy with its own records."""
        return {"run": self.run, "trials": self.trials, "on_epoch": _ignore}


def _ignore(trial: Trial) -> None:
    pass
