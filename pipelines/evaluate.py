"""The run's ranking table: every system on the same test users, slot weights chosen on validation."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from pipelines import ingest, shard_evaluate
from pipelines.config import EvaluationSettings, JobConfig
from pipelines.progress import bar
from pipelines.runs import Run
from pipelines.shard_evaluate import Workers
from pipelines.system_names import ALONE, OURS, SASREC
from pipelines.systems import Systems
from setrec import baselines, ranking, scoring
from setrec.atomic import atomic_file
from setrec.catalog import TEST, TRAIN, VALID, Catalog, Histories
from setrec.model import SetRecModel
from setrec.ragged import Ragged
from setrec.walk import WalkSettings
from setrec.walk_choice import NO_WALK, WalkChoice


def evaluate(run: Run, config: JobConfig) -> list[dict[str, Any]]:
    """Rank all systems on the test items and write the run's result files; returns the rows of metrics.json.

    Nothing here is chosen on the test items: ItemKNN's settings, SETRec's slot weights and the weight of transitions
    come from validation. All systems know training histories alone. With ``evaluation.actors`` above one, batches of
    users go to actors; metrics are the same.

    Raises:
        ConfigError: the run has not been trained, or a batch failed for good.
    """
    run.require(run.model, "train")
    catalog, histories = ingest.load(run.data)
    items, s = len(catalog), config.evaluation
    groups = ranking.warm_cold_groups(histories.trained(items))
    groups += ranking.popularity_groups(histories.train_counts(items))
    with bar("Tune ItemKNN") as progress:
        knn, knn_tried = baselines.tune_item_knn(histories, items, progress=progress.update)
    given: dict[str, ranking.Scorer] = {
        "Popularity": baselines.Popularity(histories.train_counts(items)),
        "ItemKNN": knn,
    }
    choice = WalkChoice.of(histories.upto(TRAIN), items) if s.transitions else NO_WALK
    load = partial(Systems.load, run.root.resolve(), given, groups, choice, gpu=config.cluster.gpu)
    with shard_evaluate.workers(load, config) as each:
        weights, tried = _choose(each, run, histories, s)
        added, walks_tried = _choose_walk(each, weights, choice, histories, s)
        told: dict[str, Any] = {"weights": weights, "grid": tried, "item_knn": knn_tried}
        told |= {"transitions": None if added is None else added.model_dump(), "transitions_tried": walks_tried}
        run.write_json("weights.json", told)
        cases = ranking.Cases.of(histories, TEST)
        names = [*given, SASREC, OURS, *([] if added is None else [ALONE])]
        results = _rank(each, names, weights, added, cases, groups, s)
    rows = [r for name, found in results.items() for r in _rows(name, found, s)]
    run.write_json("metrics.json", [r for r in rows if not r["group"].startswith("popularity:")])
    run.write_json("popularity_groups.json", [r for r in rows if r["group"].startswith("popularity:")])
    run.write_json("comparisons.json", _comparisons(results, s))
    with atomic_file(run.root / "per_user.parquet") as path:
        _per_user(results, histories).to_parquet(path, index=False)
    ours = Systems(SetRecModel.from_pretrained(run.model), {}, groups, choice).scorer(OURS, weights, added)
    run.write_json("examples.json", _examples(ours, catalog, histories, cases, s.examples))
    return [r for r in rows if not r["group"].startswith("popularity:")]


def choose_weights(
    model: SetRecModel, histories: Histories, s: EvaluationSettings
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The weights of the slot kinds that are best on the validation items, and all that were tried; one model pass."""
    grid = scoring.weight_grid(model.kinds, s.weight_step)
    return ranking.choose_weights(scoring.kind_scorer(model), ranking.Cases.of(histories, VALID), grid)


def _choose(
    each: Workers, run: Run, histories: Histories, s: EvaluationSettings
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    grid = scoring.weight_grid(SetRecModel.from_pretrained(run.model).kinds, s.weight_step)
    with bar("Choose weights") as progress:
        weights, tried = shard_evaluate.choose_weights(
            each, ranking.Cases.of(histories, VALID), grid, batch=s.batch_size, progress=progress.update
        )
        progress.update(1, 1, "weights " + ", ".join(f"{kind} {w:.1f}" for kind, w in weights.items()))
    return weights, tried


def _choose_walk(
    each: Workers, weights: dict[str, float], choice: WalkChoice, histories: Histories, s: EvaluationSettings
) -> tuple[WalkSettings | None, list[dict[str, Any]]]:
    """The walk that is added to our scores, ``None`` where the model alone is best, and all that were tried."""
    if not choice.walks:
        return None, []
    with bar("Weigh transitions") as progress:
        best, tried = shard_evaluate.choose_walk(
            each, ranking.Cases.of(histories, VALID), weights, choice, batch=s.batch_size, progress=progress.update
        )
        progress.update(1, 1, f"weight {best.weight:g}")
    return best if best.weight else None, tried


def _rank(
    each: Workers,
    names: list[str],
    weights: dict[str, float],
    added: WalkSettings | None,
    cases: ranking.Cases,
    groups: list[ranking.Group],
    s: EvaluationSettings,
) -> dict[str, ranking.PerUser]:
    results = {}
    with bar("Rank the whole catalogue") as progress:
        for number, name in enumerate(names):

            def told(done: int, total: int, number: int = number) -> None:
                progress.update(number * total + done, len(names) * total)

            results[name] = shard_evaluate.rank(
                each, name, weights, cases, groups, walk=added, ks=s.ks, batch=s.batch_size, progress=told
            )
        progress.update(1, 1, f"{len(cases)} users, {len(groups[0].truths)} items, {len(names)} systems")
    return results


def _rows(name: str, found: ranking.PerUser, s: EvaluationSettings) -> list[dict[str, Any]]:
    return found.rows(name, seed=s.seed, resamples=s.resamples)


def _comparisons(results: dict[str, ranking.PerUser], s: EvaluationSettings) -> list[dict[str, Any]]:
    """Paired differences of ours to each opponent over the same users, NDCG@10 and recall@10."""
    from setrec.intervals import paired_difference

    found = []
    for history in ranking.HISTORIES:
        for metric in ("ndcg@10", "recall@10"):
            ours = results[OURS].tables[history, "all"].get(metric)
            for name, other in results.items():
                if name == OURS or ours is None:
                    continue
                d, low, high = paired_difference(ours, other.tables[history, "all"][metric], s.resamples, s.seed)
                found.append(
                    {"system": OURS, "against": name, "history": history, "metric": metric,
                     "difference": d, "low": low, "high": high}
                )  # fmt: skip
    return found


def _per_user(results: dict[str, ranking.PerUser], histories: Histories) -> pd.DataFrame:
    frames = []
    for name, found in results.items():
        users = [histories.user_ids[u] for u in found.users]
        for (history, group), metrics in found.tables.items():
            if not group.startswith("popularity:"):
                frames.append(
                    pd.DataFrame({"system": name, "history": history, "group": group, "user_id": users, **metrics})
                )
    return pd.concat(frames, ignore_index=True)


def _examples(
    scorer: ranking.Scorer, catalog: Catalog, histories: Histories, cases: ranking.Cases, count: int
) -> list[dict[str, Any]]:
    """The first ``count`` test users: the end of the history, ten recommendations, what was held out."""
    found = []
    for case in range(min(count, len(cases))):
        history, truth = cases.history[case], cases.truth[case]
        scores = scorer(Ragged.of([history]))[0].copy()
        scores[history] = -np.inf
        best = np.lexsort((np.arange(len(scores)), -scores))[:10]
        found.append(
            {
                "user_id": histories.user_ids[cases.users[case]],
                "history": [_item(catalog, row) for row in history[-10:]],
                "recommendations": [
                    {**_item(catalog, row), "score": float(scores[row]), "hit": bool(row in truth)} for row in best
                ],
                "held_out": [_item(catalog, row) for row in truth],
            }
        )
    return found


def _item(catalog: Catalog, row: int) -> dict[str, Any]:
    return {
        "item_id": catalog.item_ids[row],
        "title": catalog.titles[row],
        "attributes": {name: column[row] for name, column in catalog.attributes.items()},
    }
