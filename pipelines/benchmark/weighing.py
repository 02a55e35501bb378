"""Weights of terms that are summed to a score, tried on validation users: every weighting from one scoring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.benchmark.problem import Problem
from setrec import ranking
from setrec.catalog import TRAIN, VALID
from setrec.ragged import Ragged

BATCH = 256
WEIGHED = 2500
"""Users of each half of validation that weights are chosen on."""
Terms = Callable[[Ragged], Mapping[str, np.ndarray]]
"""Terms of a score by name, each (b, I), of a batch of histories."""


@dataclass(frozen=True)
class Part:
    """Validation users to be ranked: their ``cases``, and the histories ``known`` that may be learned from, which do
    not hold what followed for these users."""

    cases: ranking.Cases
    known: Ragged


def halves(problem: Problem) -> tuple[list[Part], list[np.ndarray]]:
    """Two halves of the validation users, up to :data:`WEIGHED` of each, and for each the users of the other half."""
    cases, parts, others = problem.valid, [], []
    half = np.random.default_rng(0).permutation(len(cases)) % 2 == 0
    for ranked in (half, ~half):
        rows = np.flatnonzero(ranked)
        part = ranking.Cases(cases.users[rows], cases.history.take(rows), cases.truth.take(rows))
        others.append(cases.users[~ranked])
        known = problem.train if problem.timed else _known(problem, others[-1])
        parts.append(Part(part.sample(WEIGHED, 0), known))
    return parts, others


def _known(problem: Problem, users: np.ndarray) -> Ragged:
    """Training histories, and what followed in validation for these ``users``."""
    splits, items = problem.histories.splits, problem.histories.items
    return items.where((splits == TRAIN) | ((splits == VALID) & np.isin(items.row_of_value, users)))


def everything(items: int) -> ranking.Group:
    """All truths among all items."""
    every = np.ones(items, dtype=bool)
    return ranking.Group("all", every, every)


def ndcg_of(
    cases: Sequence[ranking.Cases], terms: Sequence[Terms], grid: Sequence[Mapping[str, float]],
    groups: Sequence[ranking.Group], history: str,
) -> list[np.ndarray]:  # fmt: skip
    """NDCG@10 of every user under every weighting of the ``grid``, float (weightings, users), for each of ``groups``.

    ``cases`` come in parts, each with ``terms`` of its own, in the order of which users stand; ``history`` is the
    protocol. A term that a weighting does not name counts nothing; a user without a truth in a group has NaN.
    """
    found: list[list[np.ndarray]] = [[] for _ in groups]
    pools = np.stack([group.candidates for group in groups])
    for part, named in zip(cases, terms, strict=True):
        for start in range(0, len(part), BATCH):
            read, truth = part.batch(start, BATCH)
            every = ranking.mixed_ranks(named(read), grid, read, truth, pools, history)
            for at, (group, kept) in enumerate(zip(groups, found, strict=True)):
                ranks = every[:, at]
                some = group.truths[truth.values]
                offsets = truth.where(some).offsets
                kept.append(np.stack([_ndcg(Ragged(one[some], offsets)) for one in ranks]))
    return [np.concatenate(one, axis=1) for one in found]


def standard_error(differences: np.ndarray) -> float:
    """Of the mean of users' differences; users without one have NaN."""
    return float(np.nanstd(differences) / np.sqrt(np.sum(~np.isnan(differences))))


def _ndcg(ranks: Ragged) -> np.ndarray:
    return ranking.user_metrics(ranks, (10,))["ndcg@10"]
