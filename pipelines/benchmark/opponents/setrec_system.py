"""SETRec as a system of the benchmark: the default configuration, or overrides of it (``pipelines.recipes``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipelines import recipes
from pipelines.benchmark.base.problem import Problem
from pipelines.benchmark.base.system import Clock, Fitted, Settings, device
from pipelines.common.run_directory import Run
from pipelines.config.job import JobConfig
from pipelines.evaluation.scorer import hybrid_scorer, known_at_test, search_weights
from pipelines.features import item_features
from pipelines.training.worker import refit_trainer, trainer_of, wrapper
from setrec.errors import ConfigError
from setrec.models.setrec_model import SetRecModel
from setrec.scoring.model_scores import ModelOnly, ModelScores
from setrec.scoring.search.weight_search import Found
from setrec.training.trainer import Trainer

CONTINUED = 2
"""Epochs of a refit that continues the model because the time left is not enough to train a new one."""


class SetRecSystem:
    """A :class:`pipelines.benchmark.base.system.System`; its settings are overrides of the configuration."""

    random = True

    def __init__(self, name: str, overrides: Mapping[str, Any], tries: Sequence[Mapping[str, Any]] = ()) -> None:
        """``tries``: further overrides, on top of ``overrides``, of the grid's settings after the first."""
        self.name = name
        self.grid: Sequence[Settings] = [recipes.merged(overrides, one) for one in ({}, *tries)]

    def fit(self, problem: Problem, settings: Settings, seed: int, clock: Clock) -> Fitted:
        """See :class:`System`."""
        prepared, config = _prepared(problem)
        config = recipes.applied(config, settings, f"training.seed={seed}")
        run = item_features.shared_view(prepared, config, prepared.root / "collaborative")
        on_device = wrapper(config, 1, torch.device(device()))
        s = config.training
        epochs, again = s.epochs, CONTINUED if s.refit_epochs is None else s.refit_epochs
        share = epochs / (epochs + again)  # share of the time for the training before the refit
        trainer = trainer_of(run, config, wrap=on_device, spent=lambda: clock.share / share)
        curve = _train(trainer, clock, "epoch", 0, epochs + again)
        model = _on_cpu(trainer.restore_best())
        clock.report("searches weights")
        weights = _weights(problem, config, model)
        if again and not clock.over:
            used = clock.share
            if used > 0.5:  # a new model takes as long
                config = recipes.applied(config, {}, f"training.refit_epochs={again}")
            again = config.training.refit_length
            trainer = refit_trainer(model, run, config, wrap=on_device, spent=lambda: (clock.share - used) / (1 - used))
            _train(trainer, clock, "refit, epoch", epochs, epochs + again)
            model = _on_cpu(trainer.restore_best())
        slots = weights.weights.of_model_alone
        term = ModelScores(model, slots)
        scorer = hybrid_scorer(model, weights.weights, known_at_test(problem.histories), problem.trained, problem.texts)
        variants = {"model alone": ModelOnly(term)} if weights.weights.used else {}
        return Fitted(scorer, _chosen(weights), curve, term.by_kind, slots, variants, weights.valid)


class WithoutModel:
    """The components of the hybrid score without a trained model; their weights are searched in the same way."""

    name = "SETRec, without model"
    grid: Sequence[Settings] = ({},)
    random = False

    def fit(self, problem: Problem, settings: Settings, seed: int, clock: Clock) -> Fitted:
        """See :class:`System`."""
        weights = _weights(problem, _prepared(problem)[1], None)
        scorer = hybrid_scorer(None, weights.weights, known_at_test(problem.histories), problem.trained, problem.texts)
        return Fitted(scorer, _chosen(weights), valid=weights.valid)


def _prepared(problem: Problem) -> tuple[Run, JobConfig]:
    if problem.run is None or problem.config is None:
        raise ConfigError(f"{problem.name} is not prepared as a run")
    return problem.run, problem.config


def _train(trainer: Trainer, clock: Clock, name: str, before: int, total: int) -> list[dict[str, Any]]:
    """Train until the epochs or the time are used up, or until early stopping. ``before``: epochs already done."""
    while True:
        trainer.epoch(on_step=lambda epochs: clock.report(f"{name} {epochs:.1f}", (before + epochs) / total))
        if trainer.spent() >= 1 or trainer.finished:
            return trainer.progress.curve


def _on_cpu(model: SetRecModel) -> SetRecModel:
    torch.nn.Module.to(model, "cpu")
    return model


def _weights(problem: Problem, config: JobConfig, model: SetRecModel | None) -> Found:
    return search_weights(
        model, problem.histories, problem.texts, problem.items, timed=problem.timed,
        components=config.evaluation.components,
    )  # fmt: skip


def _chosen(search: Found) -> dict[str, Any]:
    return {"weights": search.weights.model_dump(mode="json"), "components": search.gains, "tried": len(search.tried)}
