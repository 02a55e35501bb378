"""What takes part in a benchmark: anything that learns from a problem and then scores its whole catalogue."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipelines.benchmark.base.problem import Problem
from setrec.evaluation import ranking

Settings = Mapping[str, Any]
"""Plain values that JSON can hold."""


def device() -> str:
    """Where networks are trained: on the GPU that this process may use, if any. Ray hides GPUs from a fit that was not
    given a share of one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass
class Clock:
    """CPU time of this process for one fit, so that a fit is the same beside other work: ``minutes`` from when it was
    made. ``told`` hears the share of it that is used, and a note."""

    minutes: float
    told: Callable[[float, str], None] = lambda share, note: None
    began: float = field(default_factory=time.process_time)

    @property
    def seconds(self) -> float:
        """CPU seconds since the start."""
        return time.process_time() - self.began

    @property
    def share(self) -> float:
        """The share of the time that is used, above 1 once it is over."""
        return self.seconds / max(1e-9, 60 * self.minutes)

    @property
    def over(self) -> bool:
        """Whether the time is used up."""
        return self.share >= 1

    def tell(self, note: str) -> None:
        """Report how far it is."""
        self.told(min(1.0, self.share), note)


@dataclass
class Fitted:
    """A fitted system. ``chosen``: what it chose on validation besides the settings it was given; ``curve``: a record
    an epoch, with ``epoch``, ``seconds`` and ``ndcg@10`` on validation; ``kinds``: scores by kind of slot, where it has
    slots, and ``weights`` those of the kinds; ``variants``: further ways to score with what was learned, by what tells
    them from the first; ``valid``: NDCG@10 on validation, where the scorer itself must not be asked for it because it
    knows what followed there."""

    scorer: ranking.Scorer
    chosen: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)
    kinds: ranking.KindScorer | None = None
    weights: Mapping[str, float] | None = None
    variants: Mapping[str, ranking.Scorer] = field(default_factory=dict)
    valid: float | None = None


class System(Protocol):
    """A system that takes part.

    ``name`` is unique in a benchmark. ``grid``: the settings that are tried on validation, the default first; all
    systems that train get as many tries and as many minutes each. ``random``: whether a seed changes the result.
    """

    name: str
    grid: Sequence[Settings]
    random: bool

    def fit(self, problem: Problem, settings: Settings, seed: int, clock: Clock) -> Fitted:
        """Learn from ``problem.train`` and choose on ``problem.valid``; ``problem.test`` is not looked at. Training
        ends at the latest when ``clock.over``, with the best epoch on validation so far."""
        ...
