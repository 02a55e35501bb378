"""The ranking table of a run: every system on the same test users, slot weights chosen on validation."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from pipelines.common.progress import bar
from pipelines.common.run_directory import EVALUATED, Run
from pipelines.config.job import JobConfig
from pipelines.config.sections import EvaluationSettings
from pipelines.data import directory
from pipelines.evaluation import shard_evaluate
from pipelines.evaluation.reranker import load_reranker
from pipelines.evaluation.scorer import SCORER, hybrid_scorer, known_at_test, record, search_weights
from pipelines.evaluation.shard_evaluate import Workers
from pipelines.evaluation.system_names import ALONE, ITEM_KNN, OURS, POPULARITY, RERANKED, SASREC, WITHOUT
from pipelines.evaluation.systems import Systems
from pipelines.features import item_features, lineage
from setrec.atomic import atomic_file
from setrec.data.catalog import TEST, Catalog, Histories
from setrec.errors import ConfigError, DataError
from setrec.evaluation import beyond_accuracy, ranking
from setrec.models.setrec_model import SetRecModel
from setrec.scoring import baselines, registry
from setrec.scoring.search.weight_search import Found
from setrec.scoring.text_similarity import TextFeatures


def evaluate(run: Run, config: JobConfig) -> list[dict[str, Any]]:
    """Rank all systems on the test items and write the run's result files; return the rows of metrics.json.

    Nothing is chosen on the test items: ItemKNN's settings and the weights of the hybrid scorer come from validation.
    With ``evaluation.actors`` above one, actors rank batches of users; metrics are the same.

    Raises:
        ConfigError: the run has not been trained, a component is unknown, or a batch failed permanently. DataError:
            there are no users to evaluate on.
    """
    made_from = {"model": lineage.require_model(run, config), "data": lineage.of_data(run)}
    run.claim(*EVALUATED)
    catalog, histories = directory.load(run.data)
    items, s = len(catalog), config.evaluation
    cases = ranking.Cases.of(histories, TEST, s.users, s.seed)
    if not len(cases):
        raise DataError("no user has a test item and a history before it: nothing to evaluate on", file=run.data)
    groups = ranking.warm_cold_groups(histories.trained(items))
    groups += ranking.popularity_groups(histories.train_counts(items))
    weights, without = choose_weights(run, catalog, histories, config)
    given, knn_tried = _untrained(histories, items, s)
    second = load_reranker(run, weights.weights)
    load = partial(
        Systems.load, run.root.resolve(), config, given, groups, weights.weights, without.weights, second and second[0]
    )
    names = [*given, *([SASREC] if "sasrec" in s.opponents else []), OURS, ALONE, WITHOUT]
    names += [RERANKED] if second else []
    with shard_evaluate.workers(load, config) as each:
        results = _rank(each, names, cases, groups, s)
    run.discard(*EVALUATED)  # not before: an interrupted ranking leaves the earlier results
    chosen = {**record(weights), "without_model": record(without), "item_knn": knn_tried}
    run.write_json(SCORER, {**chosen, "made_from": made_from})
    rows = [r for name, found in results.items() for r in _rows(name, found, s)]
    run.write_json("metrics.json", [r for r in rows if not r["group"].startswith("popularity:")])
    run.write_json("popularity_groups.json", [r for r in rows if r["group"].startswith("popularity:")])
    run.write_json("comparisons.json", _comparisons(results, s))
    texts = item_features.text_features(run, catalog)
    run.write_json("beyond_accuracy.json", _beyond_accuracy(results, histories.train_counts(items), texts, s))
    with atomic_file(run.root / "per_user.parquet") as path:
        per_user_table(results, histories).to_parquet(path, index=False)
    model = SetRecModel.from_pretrained(run.model)
    ours = hybrid_scorer(model, weights.weights, known_at_test(histories), histories.trained(items), texts)
    run.write_json("examples.json", _examples(ours, catalog, histories, cases, s.examples))
    return [r for r in rows if not r["group"].startswith("popularity:")]


def choose_weights(run: Run, catalog: Catalog, histories: Histories, config: JobConfig) -> tuple[Found, Found]:
    """Return the weights of the run's scorer, and of its components without the model, both from validation.

    Raises:
        ConfigError: ``evaluation.components`` contains a name that is not registered.
    """
    names = config.evaluation.components
    if unknown := [name for name in names or () if name not in registry.kinds()]:
        raise ConfigError(f"evaluation.components: no '{unknown[0]}'; there are {', '.join(registry.kinds())}")
    with bar("Search weights") as progress:
        choose = partial(
            search_weights, histories=histories, texts=item_features.text_features(run, catalog), items=len(catalog),
            timed=config.timed, components=names,
        )  # fmt: skip
        found = choose(SetRecModel.from_pretrained(run.validated))
        progress.update(1, 2, "with the model")
        without = choose(None)
        used = ", ".join(found.weights.used) or "no component"
        progress.update(2, 2, f"{used}; validation NDCG@10 {found.valid:.4f}")
    return found, without


def _untrained(
    histories: Histories, items: int, s: EvaluationSettings
) -> tuple[dict[str, ranking.Scorer], list[dict[str, Any]]]:
    """Return the opponents without gradient training, and the settings tried for ItemKNN."""
    given: dict[str, ranking.Scorer] = {}
    tried: list[dict[str, Any]] = []
    if "popularity" in s.opponents:
        given[POPULARITY] = baselines.Popularity(histories.train_counts(items))
    if "item_knn" in s.opponents:
        with bar("Tune ItemKNN") as progress:
            given[ITEM_KNN], tried = baselines.tune_item_knn(histories, items, progress=progress.update)
    return given, tried


def _rank(
    each: Workers, names: list[str], cases: ranking.Cases, groups: list[ranking.Group], s: EvaluationSettings
) -> dict[str, ranking.PerUser]:
    results = {}
    with bar("Rank the whole catalogue") as progress:
        for number, name in enumerate(names):

            def on_progress(done: int, total: int, number: int = number) -> None:
                progress.update(number * total + done, len(names) * total)

            results[name] = shard_evaluate.rank(
                each, name, cases, groups, ks=s.ks, batch=s.batch_size, progress=on_progress
            )
        progress.update(1, 1, f"{len(cases)} users, {len(groups[0].truths)} items, {len(names)} systems")
    return results


def _rows(name: str, found: ranking.PerUser, s: EvaluationSettings) -> list[dict[str, Any]]:
    return found.rows(name, seed=s.seed, resamples=s.resamples)


def _comparisons(results: dict[str, ranking.PerUser], s: EvaluationSettings) -> list[dict[str, Any]]:
    """Return paired differences of ours to each opponent over the same users, NDCG@10 and recall@10."""
    from setrec.evaluation.intervals import paired_difference

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


def _beyond_accuracy(
    results: dict[str, ranking.PerUser], counts: np.ndarray, texts: TextFeatures | None, s: EvaluationSettings
) -> list[dict[str, Any]]:
    vectors = None if texts is None else texts.sentences
    return [
        row
        for name, found in results.items()
        if found.lists is not None
        for row in beyond_accuracy.rows(name, found.lists, counts, vectors, seed=s.seed, resamples=s.resamples)
    ]


def per_user_table(results: dict[str, ranking.PerUser], histories: Histories) -> pd.DataFrame:
    """Return the metrics of every user by system, history and group, as in ``per_user.parquet``."""
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
    """Return the first ``count`` test users: the end of the history, ten recommendations, the held-out items."""
    found = []
    for case in range(min(count, len(cases))):
        history, truth = cases.history[case], cases.truth[case]
        scores = scorer(cases.history.take(np.array([case])))[0].copy()
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
