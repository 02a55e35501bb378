"""The gain of each kind of slot: one training per set of slots and seed, otherwise equal, on the same test users.

Removing a slot from a trained model would measure what that model loses; training without it measures its value.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from pipelines.common.progress import Bar, bar
from pipelines.common.run_directory import Run
from pipelines.config.job import JobConfig, validate
from pipelines.config.sections import EvaluationSettings
from pipelines.data import directory
from pipelines.evaluation.scorer import search_weights
from pipelines.features.item_features import text_vectors
from pipelines.training.worker import trainer_of
from setrec.data.catalog import TEST, Histories
from setrec.evaluation import ranking
from setrec.evaluation.intervals import paired_difference
from setrec.models.setrec_model import SetRecModel
from setrec.scoring.model_scores import model_scorer

METRICS = ("ndcg@10", "recall@10")


def variants(config: JobConfig, semantic: bool) -> dict[str, JobConfig]:
    """Return configurations by name, each with one more kind of slot than the one before; ``semantic``: texts exist."""
    none, own = ("model.semantic_tokens=0", "model.text_slot=0"), ()
    sets: dict[str, tuple[tuple[str, ...], bool]] = {"Collaborative": (none, False)}
    if semantic:
        sets["+ semantic"] = (own, False)
    sets["+ structural"] = (own if semantic else none, True)
    return {
        name: _changed(config, *texts, f"structural.enabled={str(graph).lower()}")
        for name, (texts, graph) in sets.items()
    }


def _changed(config: JobConfig, *overrides: str) -> JobConfig:
    return validate(config.model_dump(mode="json"), "ablation", list(overrides))


def ablate(run: Run, config: JobConfig, seeds: int = 1) -> dict[str, Any]:
    """Train every variant with ``seeds`` seeds, weights chosen on validation, and write ``ablation.json``.

    Metrics of a user are averaged over seeds before users are resampled. Returns ``rows`` as in metrics.json,
    ``differences`` of each variant to the one before on all, warm and cold items, and the ``trainings``: chosen weights
    and validation curve of each.
    """
    results: dict[str, ranking.PerUser] = {}
    trainings: list[dict[str, Any]] = []
    for name, own in variants(config, text_vectors(run) is not None).items():
        with bar(f"Train {name}") as progress:
            results[name], records = _measured(run, own, seeds, progress)
            progress.update(1, 1, f"test NDCG@10 {results[name].mean():.4f}")
        trainings += [{"system": name, **record} for record in records]
    s = config.evaluation
    rows = [row for name, found in results.items() for row in found.rows(name, seed=s.seed, resamples=s.resamples)]
    record = {"rows": rows, "differences": _differences(results, s), "trainings": trainings}
    run.write_json("ablation.json", record)
    return record


def _measured(run: Run, config: JobConfig, seeds: int, progress: Bar) -> tuple[ranking.PerUser, list[dict[str, Any]]]:
    """Return the test metrics of every user by one variant, averaged over its trainings, and a record of each."""
    catalog, histories = directory.load(run.data)
    found, records = [], []
    for seed in range(config.training.seed, config.training.seed + seeds):
        model, curve = _fit(run, _changed(config, f"training.seed={seed}"), progress)
        weights = search_weights(model, histories, None, len(catalog), timed=config.timed, components=()).weights.slots
        found.append(_rank(model, weights, histories, len(catalog), config.evaluation))
        records.append({"seed": seed, "weights": weights, "validation": curve})
    return ranking.averaged(found), records


def _fit(run: Run, config: JobConfig, progress: Bar) -> tuple[SetRecModel, list[float]]:
    """Return the model of the best epoch, and validation NDCG@10 by epoch."""
    trainer = trainer_of(run, config)
    while not trainer.finished:
        done = trainer.epoch()
        progress.update(done["epoch"], done["epochs"], f"seed {config.training.seed}, NDCG@10 {done['ndcg@10']:.4f}")
    return trainer.restore_best(), [record["ndcg@10"] for record in trainer.progress.curve]


def _rank(
    model: SetRecModel, weights: dict[str, float], histories: Histories, items: int, s: EvaluationSettings
) -> ranking.PerUser:
    groups = ranking.warm_cold_groups(histories.trained(items))
    cases = ranking.Cases.of(histories, TEST, s.users, s.seed)
    return ranking.evaluate(model_scorer(model, weights), cases, groups, ks=s.ks)


def _differences(results: dict[str, ranking.PerUser], s: EvaluationSettings) -> list[dict[str, Any]]:
    """Return each variant minus the one before, user by user, history removed."""
    found = []
    for group in ("all", "warm", "cold"):
        for against, name in pairwise(results):
            for metric in METRICS:
                ours, other = (results[n].tables["removed", group].get(metric) for n in (name, against))
                if ours is None or other is None or np.isnan(ours).all():
                    continue
                some = ~np.isnan(ours)
                d, low, high = paired_difference(ours[some], other[some], s.resamples, s.seed)
                found.append(
                    {"system": name, "against": against, "group": group, "metric": metric, "users": int(some.sum()),
                     "difference": d, "low": low, "high": high}
                )  # fmt: skip
    return found
