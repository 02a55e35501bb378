"""The interface of the systems in a benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipelines.benchmark.base.problem import Problem
from setrec.evaluation import ranking

Settings = Mapping[str, Any]
"""Plain values as in JSON."""


def device() -> str:
    """Return the device of training: the GPU of this process, if any. Ray hides GPUs from a fit without a share of
    one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass
class Clock:
    """The budget of one fit in CPU ``minutes`` of this process, so that other load does not change the result.
    ``on_progress`` is called with the used share and a note."""

    minutes: float
    on_progress: Callable[[float, str], None] = lambda share, note: None
    began: float = field(default_factory=time.process_time)

    @property
    def seconds(self) -> float:
        """CPU seconds since the start."""
        return time.process_time() - self.began

    @property
    def share(self) -> float:
        """The used share of the budget, above 1 once it is exceeded."""
        return self.seconds / max(1e-9, 60 * self.minutes)

    @property
    def over(self) -> bool:
        """Whether the budget is used up."""
        return self.share >= 1

    def report(self, note: str, done: float = 0.0) -> None:
        """Report progress; ``done``: share of the work, for a fit that may end before the budget does."""
        self.on_progress(min(1.0, max(self.share, done)), note)


@dataclass
class Fitted:
    """A fitted system. ``chosen``: hyperparameters chosen on validation in addition to the settings; ``curve``: a
    record an epoch, with ``epoch``, ``seconds`` and ``ndcg@10`` on validation; ``kinds``: scores by kind of slot, if it
    has slots, and ``weights`` those of the kinds; ``variants``: further scorers of the same fit, by a name for their
    difference; ``valid``: NDCG@10 on validation, for scorers that were trained on validation events and cannot measure
    it."""

    scorer: ranking.Scorer
    chosen: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)
    kinds: ranking.KindScorer | None = None
    weights: Mapping[str, float] | None = None
    variants: Mapping[str, ranking.Scorer] = field(default_factory=dict)
    valid: float | None = None


class System(Protocol):
    """A system of a benchmark.

    ``name`` is unique in a benchmark. ``grid``: the settings that are tried on validation, the default first; all
    systems that train get as many tries and as many minutes each. ``random``: whether a seed changes the result.
    """

    name: str
    grid: Sequence[Settings]
    random: bool

    def fit(self, problem: Problem, settings: Settings, seed: int, clock: Clock) -> Fitted:
        """Fit on ``problem.train`` and choose on ``problem.valid``, without access to ``problem.test``. Training ends
        at the latest when ``clock.over``, with the best epoch on validation so far."""
        ...
