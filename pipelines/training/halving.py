"""Asynchronous successive halving (ASHA, Li et al. 2018, arXiv 1810.05934) that remembers trials by their number.

Ray's scheduler forgets earlier results when a search is resumed. This one receives them again from the book of trials.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from pipelines.config.search_space import TuneSettings
from pipelines.training.trials import METRIC, Trials

STOP = TrialScheduler.STOP


class Halving(ASHAScheduler):
    """Judges each epoch and records it in the book of trials before the trial continues."""

    def __init__(self, s: TuneSettings, epochs: int, book: Trials) -> None:
        super().__init__(
            time_attr="epoch",
            metric=METRIC,
            mode="max",
            max_t=max(epochs, s.grace_epochs),
            grace_period=s.grace_epochs,
            reduction_factor=s.reduction,
        )
        self.book = book
        controller: Any = None  # the scheduler does not use it
        for trial in book.trials:
            previous: Any = SimpleNamespace(trial_id=str(trial.number))
            super().on_trial_add(controller, previous)
            for record in trial.curve:
                super().on_trial_result(controller, previous, record)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """See Ray's scheduler."""
        super().on_trial_add(tune_controller, _by_number(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """See Ray's scheduler."""
        action = super().on_trial_result(tune_controller, _by_number(trial), result)
        number = trial.config["trial"]["number"]
        self.book.record_epoch(
            number, json.loads(result["record"]), halved=action == STOP, exhausted=result["exhausted"]
        )
        return action

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Do nothing, because the last epoch has already been judged."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Do nothing, because the trial may be added again."""


def _by_number(trial: Any) -> Any:
    return SimpleNamespace(trial_id=str(trial.config["trial"]["number"]))
