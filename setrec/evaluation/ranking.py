"""Full-ranking evaluation: every item of the catalogue is a candidate, nothing is sampled.

Rules, the same for every system: ties are broken by the smaller row number (rows are numbered at random, so this is
unbiased); recall@k = hits / truths; NDCG@k with the ideal over min(k, truths); MRR@k is the reciprocal rank of the
first hit; a repeated item is one truth. ``warm`` ranks only items that occur in training, for the warm truths; ``cold``
only the others, for the cold truths. Each is reported with the user's own history ``kept`` among the candidates and
``removed``; if it is removed, a truth that is in the history cannot be hit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Protocol

import numpy as np

from setrec.data.catalog import BLOCK, TEST, VALID, Histories
from setrec.evaluation.beyond_accuracy import best_items
from setrec.evaluation.intervals import bootstrap_means
from setrec.ragged import Ragged, offsets_of, row_blocks

HISTORIES = ("kept", "removed")
NO_RANK = 1 << 30


class Scorer(Protocol):
    """A function that scores the whole catalogue, float32 (b, I), for a batch of histories."""

    def __call__(self, history: Ragged, /) -> np.ndarray:
        """Return scores (b, I), one row per history."""
        ...


KindScorer = Callable[[Ragged], Mapping[str, np.ndarray]]
"""Scores (b, I) of a batch of histories by kind of slot."""
_ALONE = np.ones((1, 1), dtype=np.float32)
"""The weighting of scores that are not mixed."""
Ranks = dict[tuple[str, str], Ragged]
"""By history protocol and group: 0-based ranks of the group's truths, one row per case; under ``BEST`` the best items
of each case."""
BEST = ("removed", "best items")


@dataclass(frozen=True)
class Cases:
    """Evaluation cases: a history and its held-out items (truths) for each user. ``skipped`` counts users without a
    history."""

    users: np.ndarray
    history: Ragged
    truth: Ragged
    skipped: int = 0

    @classmethod
    def of(cls, histories: Histories, split: int, size: int | None = None, seed: int = 0) -> Cases:
        """Build validation cases (training history, validation items) or test cases (training and validation history,
        test items) of all users, or of ``size`` users as :meth:`sample` draws them, without building the others."""
        users, skipped = case_users(histories, split)
        return cls.at(histories, split, users if size is None else users[drawn(len(users), size, seed)], skipped)

    @classmethod
    def at(cls, histories: Histories, split: int, users: np.ndarray, skipped: int = 0) -> Cases:
        """Build the cases of ``users``, ascending, of those of :func:`case_users`; many are built a block at a time
        (:meth:`setrec.ragged.Ragged.stored`)."""
        offsets = offsets_of(histories.items.lengths[users])
        blocks = [users[start:end] for start, end in row_blocks(offsets, BLOCK)]
        history = Ragged.stored(histories.take(block).events(split - 1) for block in blocks)
        truth = Ragged.stored(_distinct(histories.take(block).of(split)) for block in blocks)
        return cls(users, history, truth, skipped)

    def __len__(self) -> int:
        return len(self.users)

    def sample(self, size: int, seed: int) -> Cases:
        """Sample ``size`` cases by ``seed``, in their order; all if there are no more."""
        return self if len(self) <= size else self.take(drawn(len(self), size, seed))

    def take(self, rows: np.ndarray) -> Cases:
        """Return the cases at ``rows``, in this order."""
        return Cases(self.users[rows], self.history.take(rows), self.truth.take(rows), self.skipped)

    @classmethod
    def joined(cls, parts: Sequence[Cases]) -> Cases:
        """Concatenate the cases of all parts; ``parts`` has at least one."""
        users = np.concatenate([part.users for part in parts])
        history, truth = (Ragged.joined([getattr(part, name) for part in parts]) for name in ("history", "truth"))
        return cls(users, history, truth, sum(part.skipped for part in parts))

    def batch(self, start: int, size: int) -> tuple[Ragged, Ragged]:
        """Return histories and truths of the cases from ``start`` on."""
        rows = np.arange(start, min(start + size, len(self)))
        return self.history.take(rows), self.truth.take(rows)


def case_users(histories: Histories, split: int) -> tuple[np.ndarray, int]:
    """Return the users with items of ``split``, VALID or TEST, and a history before, rows int64 in ascending order, and
    the number of those without a history."""
    if split not in (VALID, TEST):
        raise ValueError("cases are taken from VALID or TEST")
    found = [(block.of(split).lengths > 0, block.upto(split - 1).lengths > 0) for block in histories.blocks()]
    some, readable = (np.concatenate(flags) for flags in zip(*found, strict=True))
    return np.flatnonzero(some & readable), int((some & ~readable).sum())


def drawn(count: int, size: int, seed: int) -> np.ndarray:
    """Return ``size`` of ``count`` rows, drawn by ``seed``, in ascending order; all if there are no more."""
    if count <= size:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, size, replace=False))


@dataclass(frozen=True)
class Group:
    """A part of the table: which truths count, bool (I,), and among which candidates they are ranked, bool (I,)."""

    name: str
    truths: np.ndarray
    candidates: np.ndarray


def warm_cold_groups(trained: np.ndarray) -> list[Group]:
    """Return the groups ``all``, ``warm`` and ``cold`` from the flags of the items that occur in training."""
    every = np.ones_like(trained)
    return [Group("all", every, every), Group("warm", trained, trained), Group("cold", ~trained, ~trained)]


def popularity_groups(counts: np.ndarray) -> list[Group]:
    """Return the groups ``popularity:head``, ``:mid``, ``:tail``: the most popular items that make up a third of the
    training interactions, the next third, and the rest. All items stay candidates."""
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    third = np.empty(len(counts), dtype=np.int64)
    third[order] = np.minimum(3 * before // max(1, counts.sum()), 2)
    every = np.ones(len(counts), dtype=bool)
    return [Group(f"popularity:{name}", third == t, every) for t, name in enumerate(("head", "mid", "tail"))]


def ranks(
    scores: np.ndarray, truth: Ragged, seen: Ragged | None = None, candidates: np.ndarray | None = None
) -> np.ndarray:
    """Return the 0-based rank of every truth among the candidates, without the ``seen`` items of its row.

    A truth that is not a candidate, or was seen, gets ``NO_RANK``.

    Raises:
        DataError: the scores hold a NaN.
    """
    from setrec.evaluation.rank_kernels import count_above

    pool = np.ones(scores.shape[1], dtype=bool) if candidates is None else candidates
    gone = seen if seen is not None else Ragged.of([[]] * len(truth))
    counts = count_above([scores], _ALONE, truth, gone, pool[None])
    return np.where(pool[truth.values] & ~counts.seen, (counts.above - counts.known)[0, 0], NO_RANK)


def user_metrics(ranks: Ragged, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """Return metrics per user from the ranks of the user's truths, NaN without truths."""
    row, rank, users = ranks.row_of_value, ranks.values, len(ranks)
    metrics: dict[str, np.ndarray] = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        for k in ks:
            hit = rank < k
            gain = np.where(hit, 1.0 / np.log2(np.minimum(rank, k) + 2.0), 0.0)
            first = np.full(users, NO_RANK)
            np.minimum.at(first, row, rank)
            ideal = np.cumsum(1.0 / np.log2(np.arange(k) + 2.0))[np.clip(ranks.lengths, 1, k) - 1]
            some = np.where(ranks.lengths > 0, 1.0, np.nan)
            metrics[f"recall@{k}"] = np.bincount(row, hit, users) / ranks.lengths
            metrics[f"ndcg@{k}"] = np.bincount(row, gain, users) / ideal * some
            metrics[f"mrr@{k}"] = np.where(first < k, 1.0 / (first + 1.0), 0.0) * some
    return metrics


@dataclass
class PerUser:
    """Metrics of every user: ``tables[history, group]`` maps a metric to one number per case (NaN: no truth in it).
    ``lists`` int32 (U, 10): each user's best items, history removed, see ``setrec.evaluation.beyond_accuracy``."""

    users: np.ndarray
    tables: dict[tuple[str, str], dict[str, np.ndarray]] = field(default_factory=dict)
    lists: np.ndarray | None = None

    def mean(self, metric: str = "ndcg@10", group: str = "all", history: str = "removed") -> float:
        """Return the mean of a metric over the users with a truth in the group; NaN without any."""
        return _mean(self.tables[history, group][metric])

    def rows(self, system: str, *, seed: int = 0, resamples: int = 1000) -> list[dict[str, Any]]:
        """Return one row per history protocol, group and metric, with a bootstrap 95% interval over users."""
        records = []
        for (history, group), metrics in self.tables.items():
            some = ~np.isnan(next(iter(metrics.values())))
            if not some.any():
                continue
            table = np.stack([values[some] for values in metrics.values()], axis=1)
            means = bootstrap_means(table, resamples, seed)
            low, high = np.percentile(means, [2.5, 97.5], axis=0)
            for j, name in enumerate(metrics):
                records.append(
                    {
                        "system": system, "history": history, "group": group, "metric": name,
                        "value": float(table[:, j].mean()), "low": float(low[j]), "high": float(high[j]),
                        "users": int(some.sum()),
                    }
                )  # fmt: skip
        return records


def averaged(runs: Sequence[PerUser]) -> PerUser:
    """Average the metrics of every user over runs (seeds) on the same users."""
    tables = {
        key: {metric: np.mean([one.tables[key][metric] for one in runs], axis=0) for metric in metrics}
        for key, metrics in runs[0].tables.items()
    }
    return PerUser(runs[0].users, tables)


def evaluate(
    scorer: Scorer,
    cases: Cases,
    groups: Sequence[Group],
    *,
    ks: Sequence[int] = (5, 10, 20),
    batch: int = 256,
    progress: Callable[[int, int], None] | None = None,
    lists: bool = False,
) -> PerUser:
    """Rank every case's truths in every group, history kept and removed, from one scoring of the catalogue. With
    ``lists`` each user's best items are kept too (:attr:`PerUser.lists`).

    Raises:
        DataError: a score is NaN.
    """
    return evaluate_each({"": scorer}, cases, groups, ks=ks, batch=batch, progress=progress, lists=lists)[""]


def evaluate_each(
    scorers: Mapping[str, Scorer],
    cases: Cases,
    groups: Sequence[Group],
    *,
    ks: Sequence[int] = (5, 10, 20),
    batch: int = 256,
    progress: Callable[[int, int], None] | None = None,
    lists: bool = False,
) -> dict[str, PerUser]:
    """Evaluate several scorers (see :func:`evaluate`) batch by batch on the same history objects, so that they can
    share intermediate results."""
    ranks_of: dict[str, list[Ranks]] = {name: [] for name in scorers}
    for start in range(0, len(cases), batch):
        history, truth = cases.batch(start, batch)
        for name, scorer in scorers.items():
            ranks_of[name].append(batch_ranks(scorer, history, truth, groups, lists=lists))
        if progress is not None:
            progress(min(start + batch, len(cases)), len(cases))
    return {name: joined(cases.users, parts, groups, ks) for name, parts in ranks_of.items()}


def joined(users: np.ndarray, parts: Sequence[Ranks], groups: Sequence[Group], ks: Sequence[int]) -> PerUser:
    """Return the metrics of all ``users`` from the ranks of their batches, in order."""
    keys = [(h, group.name) for group in groups for h in HISTORIES]
    tables = {key: user_metrics(_stack([part[key] for part in parts]), ks) for key in keys}
    lists = [part[BEST].values for part in parts if BEST in part]
    return PerUser(users, tables, np.concatenate(lists).reshape(len(users), -1) if lists else None)


def batch_ranks(
    scorer: Scorer, history: Ragged, truth: Ragged, groups: Sequence[Group], *, lists: bool = False
) -> Ranks:
    """Rank one batch of cases for :func:`evaluate`.

    Raises:
        DataError: a score is NaN.
    """
    from setrec.evaluation.rank_kernels import count_above

    # Most groups share their candidates: each pool is counted once.
    pool_of = {group.candidates.tobytes(): group.candidates for group in groups}
    number = {key: at for at, key in enumerate(pool_of)}
    scores = scorer(history)
    counts = count_above([scores], _ALONE, truth, history, np.stack(list(pool_of.values())))
    rank = {"kept": counts.above[0], "removed": np.where(counts.seen, NO_RANK, counts.above[0] - counts.known[0])}
    ranks_of = {BEST: Ragged.of(best_items(scores, history))} if lists else {}
    for h, group in product(HISTORIES, groups):
        counted = group.truths[truth.values]
        ranks_of[h, group.name] = Ragged(
            rank[h][number[group.candidates.tobytes()]][counted], truth.where(counted).offsets
        )
    return ranks_of


def mean_metric(scorer: Scorer, cases: Cases, metric: str = "ndcg@10", history: str = "removed") -> float:
    """Return one metric over all items, for validation."""
    every = np.ones(int(scorer(cases.batch(0, 1)[0]).shape[1]), dtype=bool)
    k = int(metric.partition("@")[2])
    return evaluate(scorer, cases, [Group("all", every, every)], ks=(k,)).mean(metric, "all", history)


def choose_weights(
    kind_scorer: KindScorer,
    cases: Cases,
    grid: Sequence[Mapping[str, float]],
    *,
    metric: str = "ndcg@10",
    batch: int = 256,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return the weights of the slot kinds with the best metric on (validation) cases, history removed, and the metric
    of all weights.

    All weightings share one pass of the model; ties go to the first in the grid.
    """
    k, values = int(metric.partition("@")[2]), []
    for start in range(0, len(cases), batch):
        ranks = weighted_ranks(kind_scorer, *cases.batch(start, batch), grid)
        values.append([user_metrics(rank, (k,))[metric] for rank in ranks])
    means = [_mean(np.concatenate([part[number] for part in values])) for number in range(len(grid))]
    best = int(np.argmax(means))
    return dict(grid[best]), [{"weights": dict(w), metric: v} for w, v in zip(grid, means, strict=True)]


def weighted_ranks(
    kind_scorer: KindScorer, history: Ragged, truth: Ragged, grid: Sequence[Mapping[str, float]]
) -> list[Ragged]:
    """Return the ranks of the truths under every weighting of the grid, history removed, for one batch of cases.

    Raises:
        DataError: a mixed score is NaN.
    """
    kinds = kind_scorer(history)
    every = np.ones((1, next(iter(kinds.values())).shape[1]), dtype=bool)
    return [Ragged(rank[0], truth.offsets) for rank in mixed_ranks(kinds, grid, history, truth, every, "removed")]


def mixed_ranks(
    kinds: Mapping[str, np.ndarray],
    grid: Sequence[Mapping[str, float]],
    history: Ragged,
    truth: Ragged,
    pools: np.ndarray,
    protocol: str,
) -> np.ndarray:
    """Return ranks, int64 (weightings, pools, T), of T truths under weighted sums of scores by kind, each (b, I), among
    the items of each pool, bool (pools, I), in a history protocol. A kind that a weighting does not name has weight 0.

    Raises:
        DataError: a mixed score is NaN.
    """
    from setrec.evaluation.rank_kernels import count_above

    ranked = np.empty((len(grid), len(pools), len(truth.values)), dtype=np.int64)
    # Sums are rounded in the order of their terms, so weightings are grouped by the order of their kinds.
    for names in dict.fromkeys(tuple(weights) for weights in grid):
        numbers = [number for number, weights in enumerate(grid) if tuple(weights) == names]
        table = np.array([list(grid[number].values()) for number in numbers], dtype=np.float32)
        counts = count_above([kinds[name] for name in names], table, truth, history, pools)
        removed = np.where(counts.seen, NO_RANK, counts.above - counts.known)
        ranked[numbers] = removed if protocol == "removed" else counts.above
    return ranked


def _distinct(rows: Ragged) -> Ragged:
    """Remove repetitions within a row; with repeated truths NDCG could exceed 1."""
    key = rows.row_of_value * (int(rows.values.max(initial=0)) + 1) + rows.values
    first = np.zeros(len(key), dtype=bool)
    first[np.unique(key, return_index=True)[1]] = True
    return rows.where(first)


def _mean(values: np.ndarray) -> float:
    some = values[~np.isnan(values)]
    return float(some.mean()) if len(some) else float("nan")


def _stack(parts: Sequence[Ragged]) -> Ragged:
    if not parts:
        return Ragged.of([])
    values = np.concatenate([p.values for p in parts])
    lengths = np.concatenate([p.lengths for p in parts])
    return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
