"""Analyses of a fit: metrics by group of users, agreement of slot kinds, and the influence of ties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import rankdata

from pipelines.benchmark.analysis.calibration import calibration
from pipelines.benchmark.analysis.significance import significance
from pipelines.benchmark.base.problem import Problem
from pipelines.benchmark.base.system import Fitted
from setrec.data.catalog import VALID
from setrec.evaluation import beyond_accuracy, ranking
from setrec.ragged import Ragged
from setrec.rows import top_k

__all__ = ["analyse", "calibration", "significance"]

Row = dict[str, Any]
"""``system``, ``history``, ``group``, ``metric``, ``value``, ``low``, ``high`` (95% over users), ``users``."""
LENGTHS = ((1, 3), (4, 7), (8, 15), (16, None))
"""Items of a history: from, to."""
SAMPLE = 4000
"""Number of test users whose full scores are analysed, drawn by seed 0; tables of metrics contain all users."""
STEPS = 3
"""Maximum number of steps of a transition."""
PAIRED = 250
"""Number of test users whose full rankings by two kinds of slots are compared."""


def analyse(fitted: Fitted, problem: Problem, results: ranking.PerUser, system: str = "") -> dict[str, list[Row]]:
    """Return all analyses of a fit from its test metrics, which include thirds by popularity."""
    cases, groups = problem.test.sample(SAMPLE, 0), ranking.warm_cold_groups(problem.trained)
    return {
        "popularity": by_popularity(system, results, problem.goal),
        "length": by_history_length(system, results, problem),
        "cold": by_cold_share(system, results, problem),
        "transition": by_seen_transition(system, results, problem),
        "beyond": beyond(system, results, problem),
        "calibration": calibration(system, fitted.scorer, problem.valid, cases),
        "overlap": overlap(system, fitted.kinds, problem.test) if fitted.kinds else [],
        "shuffled": shuffled_rows_check(system, fitted.scorer, cases, groups),
    }


def by_popularity(system: str, results: ranking.PerUser, history: str) -> list[Row]:
    """Return metrics of the truths by popularity of the item (``ranking.popularity_groups``)."""
    tables = {key: own for key, own in results.tables.items() if key[0] == history and key[1].startswith("popularity:")}
    return replace(results, tables=tables).rows(system)


def by_history_length(system: str, results: ranking.PerUser, problem: Problem) -> list[Row]:
    """Return metrics over all items by length of the user's history; groups ``length:1-3`` to ``length:16+``."""
    lengths, rows = problem.test.history.lengths, []
    for low, high in LENGTHS:
        chosen = (lengths >= low) & (lengths <= high if high else True)
        rows += _subset(system, results, problem.goal, f"length:{low}-{high}" if high else f"length:{low}+", chosen)
    return rows


def by_cold_share(system: str, results: ranking.PerUser, problem: Problem) -> list[Row]:
    """Return metrics over all items of users whose truths are all warm, partly cold, or all cold; groups
    ``truths:warm``, ``truths:mixed``, ``truths:cold``."""
    truth = problem.test.truth
    share = np.bincount(truth.row_of_value, ~problem.trained[truth.values], len(truth)) / truth.lengths
    parts = {"warm": share == 0, "mixed": (share > 0) & (share < 1), "cold": share == 1}
    return [row for name, own in parts.items() for row in _subset(system, results, problem.goal, f"truths:{name}", own)]


def by_seen_transition(system: str, results: ranking.PerUser, problem: Problem) -> list[Row]:
    """Return metrics over all items of users with a truth that followed their last item within three steps in any
    training or validation history (``next:seen``), and of the others (``next:unseen``). Transition counts can predict
    the first only."""
    known, items = problem.histories.upto(VALID), problem.items
    user, pairs = known.row_of_value, []
    for step in range(1, STEPS + 1):
        same = user[:-step] == user[step:]
        pairs.append(known.values[:-step][same].astype(np.int64) * items + known.values[step:][same])
    last = problem.test.history.values[problem.test.history.offsets[1:] - 1].astype(np.int64)
    truth = problem.test.truth
    followed = np.isin(last[truth.row_of_value] * items + truth.values, np.concatenate(pairs))
    seen = np.bincount(truth.row_of_value, followed, len(truth)) > 0
    parts = {"seen": seen, "unseen": ~seen}
    return [row for name, own in parts.items() for row in _subset(system, results, problem.goal, f"next:{name}", own)]


def beyond(system: str, results: ranking.PerUser, problem: Problem) -> list[Row]:
    """Return beyond-accuracy metrics of the lists (``setrec.evaluation.beyond_accuracy``)."""
    if results.lists is None:
        return []
    vectors = None if problem.texts is None else problem.texts.sentences
    return beyond_accuracy.rows(system, results.lists, problem.counts, vectors)


def _subset(system: str, results: ranking.PerUser, history: str, group: str, chosen: np.ndarray) -> list[Row]:
    """Return rows over all items of the users whose flag in ``chosen`` is true."""
    own = {metric: values[chosen] for metric, values in results.tables[history, "all"].items()}
    return ranking.PerUser(results.users[chosen], {(history, group): own}).rows(system)


def overlap(
    system: str, kinds: ranking.KindScorer, cases: ranking.Cases, *, users: int = PAIRED, k: int = 10, batch: int = 128
) -> list[Row]:
    """Return the agreement of the rankings by two kinds of slots, history removed, for every pair (group ``a, b``).

    ``common@k``: share of the k best of one that are among the k best of the other. ``spearman``: correlation of the
    ranks, equal scores sharing their mean rank; users whose scores by one kind are all equal have none.
    """
    cases = cases.sample(users, 0)
    values_of: dict[tuple[str, str], list[np.ndarray]] = {}
    for start in range(0, len(cases), batch):
        history, _ = cases.batch(start, batch)
        scores = {kind: _without(own, history) for kind, own in kinds(history).items()}
        best = {kind: top_k(own, k) for kind, own in scores.items()}
        ranked = {kind: _centred(rankdata(own, axis=1)) for kind, own in scores.items()}
        for a, b in combinations(scores, 2):
            common = [len(np.intersect1d(x, y)) / len(x) for x, y in zip(best[a], best[b], strict=True)]
            values_of.setdefault((a, b), []).append(np.stack([common, (ranked[a] * ranked[b]).sum(axis=1)], axis=1))
    rows = []
    for (a, b), parts in values_of.items():
        for at, metric in enumerate((f"common@{k}", "spearman")):
            values = np.concatenate(parts)[:, at]
            tables = {("removed", f"{a}, {b}"): {metric: values}}
            rows += ranking.PerUser(cases.users, tables).rows(system)
    return rows


def _without(scores: np.ndarray, history: Ragged) -> np.ndarray:
    """Return a copy with the items of the history set to minus infinity."""
    scores = scores.copy()
    scores[history.row_of_value, history.values] = -np.inf
    return scores


def _centred(ranks: np.ndarray) -> np.ndarray:
    """Return rows of mean 0 and length 1, NaN if all entries are equal; their products are correlations."""
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        ranks = ranks / np.linalg.norm(ranks, axis=1, keepdims=True)
    return ranks


def shuffled_rows_check(
    system: str,
    scorer: ranking.Scorer,
    cases: ranking.Cases,
    groups: Sequence[ranking.Group],
    *,
    ks: Sequence[int] = (10,),
    seed: int = 0,
    batch: int = 256,
) -> list[Row]:
    """Return metrics before and after a random permutation of the items' rows, which breaks ties differently.

    Both come from one scoring. ``value``, ``low`` and ``high`` are for the original numbering, ``shuffled`` is the
    other value, ``inside`` whether the interval contains it: if not, the rank of a system depends on ties.
    """
    items = len(groups[0].truths)
    new = np.random.default_rng(seed).permutation(items).astype(np.int32)
    old = np.argsort(new)
    renamed = [ranking.Group(group.name, group.truths[old], group.candidates[old]) for group in groups]
    plain, shuffled = [], []
    for start in range(0, len(cases), batch):
        history, truth = cases.batch(start, batch)
        scores = scorer(history)
        plain.append(_ranks(scores, history, truth, groups))
        moved, sought = (replace(part, values=new[part.values]) for part in (history, truth))
        shuffled.append(_ranks(scores[:, old], moved, sought, renamed))
    rows = ranking.joined(cases.users, plain, groups, ks).rows(system)
    other = ranking.joined(cases.users, shuffled, renamed, ks)
    for row in rows:
        value = other.mean(row["metric"], row["group"], row["history"])
        row |= {"shuffled": value, "inside": bool(row["low"] <= value <= row["high"])}
    return rows


def _ranks(scores: np.ndarray, history: Ragged, truth: Ragged, groups: Sequence[ranking.Group]) -> ranking.Ranks:
    return ranking.batch_ranks(lambda _: scores, history, truth, groups)
