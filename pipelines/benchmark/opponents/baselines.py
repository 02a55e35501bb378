"""The opponents: popularity, ItemKNN, random walks on the transition graph, and three variants of SASRec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.benchmark.base.problem import Problem
from pipelines.benchmark.base.system import Clock, Fitted, Settings, System, device
from pipelines.benchmark.opponents.transitions import tune_transitions
from setrec.errors import DataError
from setrec.evaluation import ranking
from setrec.models import sasrec
from setrec.models.settings import SasRecSettings
from setrec.scoring import baselines
from setrec.training import sasrec_trainer

VALIDATED = 5000
"""Number of validation users that are ranked by SASRec after every epoch."""
HISTORY = "removed"
"""The history protocol of all choices on validation."""


class PopularitySystem:
    """Popularity by training counts."""

    name = "Popularity"
    grid: Sequence[Settings] = ({},)
    random = False

    def fit(self, problem: Problem, settings: Settings, seed: int, clock: Clock) -> Fitted:
        """See :class:`System`."""
        return Fitted(baselines.Popularity(problem.counts))


class ItemKnnSystem:
    """ItemKNN with neighbours, shrinkage and decay tuned on validation."""

    name = "ItemKNN"
    grid: Sequence[Settings] = ({},)
    random = False

    def fit(self, problem: Problem, settings: Settings, seed: int, clock: Clock) -> Fitted:
        """See :class:`System`."""
        progress = _Steps(clock)
        model, tried = baselines.tune_item_knn(problem.histories, problem.items, progress, users=VALIDATED)
        return Fitted(model, {**model.settings.model_dump(), "tried": len(tried)})


class UntunedItemKnn:
    """ItemKNN with published settings, as a check of the protocol: shrinkage 3, decay 0.8, the last 50 items, all
    neighbours."""

    name = "ItemKNN, as published"
    grid: Sequence[Settings] = ({"shrink": 3.0, "decay": 0.8, "last": 50},)
    random = False

    def fit(self, problem: Problem, settings: Settings, seed: int, clock: Clock) -> Fitted:
        """See :class:`System`."""
        chosen = baselines.ItemKnnSettings(neighbours=problem.items, **settings)
        return Fitted(baselines.ItemKnn(problem.histories, problem.items, chosen))


class TransitionsSystem:
    """The walk on the transition graph tuned on validation, with text similarity if items have texts."""

    name = "Transitions"
    grid: Sequence[Settings] = ({},)
    random = False

    def fit(self, problem: Problem, settings: Settings, seed: int, clock: Clock) -> Fitted:
        """See :class:`System`."""
        model, tried = tune_transitions(
            problem.histories, problem.items, problem.text, _Steps(clock), over=lambda: clock.over
        )
        return Fitted(model, {**model.settings.model_dump(), "tried": len(tried)})


class SasRecSystem:
    """SASRec with the settings ``base`` and one of ``tries``; with item texts if ``text`` is true."""

    random = True

    def __init__(
        self, name: str, base: Mapping[str, Any], tries: Sequence[Mapping[str, Any]], *, text: bool = False
    ) -> None:
        self.name, self.text = name, text
        self.grid: Sequence[Settings] = [{**base, **change} for change in ({}, *tries)]

    def fit(self, problem: Problem, settings: Settings, seed: int, clock: Clock) -> Fitted:
        """See :class:`System`.

        Raises:
            DataError: the system needs texts, and the items have none.
        """
        if self.text and problem.text is None:
            raise DataError(f"{self.name} needs texts, and the items of {problem.name} have none")
        cases, curve = problem.valid.sample(VALIDATED, seed), []

        def report(record: dict[str, Any]) -> None:
            curve.append({name: record[name] for name in ("epoch", "seconds", "loss", "ndcg@10")})
            clock.report(f"NDCG@10 {record['ndcg@10']:.4f}")

        model = sasrec_trainer.train_sasrec(
            problem.histories, problem.items, SasRecSettings(**settings), report=report, seed=seed,
            features=problem.text if self.text else None, seconds=60 * clock.minutes - clock.seconds,
            validate=lambda scorer: ranking.mean_metric(scorer, cases, history=HISTORY), device=device(),
        )  # fmt: skip
        best = max(curve, key=lambda record: record["ndcg@10"])
        return Fitted(sasrec.scorer(model), {"epoch": best["epoch"]}, curve)


class _Steps:
    """Reports the steps of a search to a clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __call__(self, done: int, of: int) -> None:
        self.clock.report(f"{done} of {of}")


FULL = {"epochs": 60, "patience": 10, "layers": 1, "dropout": 0.3, "targets_per_batch": 512}
SAMPLED = {**FULL, "targets_per_batch": 1024, "negatives": 1024}
"""Small batches: within minutes, the number of steps counts."""
_TEXT = {**SAMPLED, "id_dropout": 0.1}
_TRIES = (
    {"dropout": 0.5},
    {"width": 128, "weight_decay": 0.1},
    {"layers": 2, "learning_rate": 1e-3},
    {"dropout": 0.2, "weight_decay": 0.1},
)
OPPONENTS: tuple[System, ...] = (
    PopularitySystem(),
    UntunedItemKnn(),
    ItemKnnSystem(),
    TransitionsSystem(),
    SasRecSystem("SASRec", FULL, (*_TRIES, {"learning_rate": 1e-3})),
    SasRecSystem("SASRec, sampled", SAMPLED, (*_TRIES, {"negatives": 256, "targets_per_batch": 512})),
    SasRecSystem("SASRec + text", _TEXT, ({"id_dropout": 0.3}, {"id_dropout": 0.0}, *_TRIES[:3]), text=True),
)
"""All of them. First settings follow short trials on validation of Beauty; after arXiv 2508.06450, whose one layer and
256 negatives are a try."""
