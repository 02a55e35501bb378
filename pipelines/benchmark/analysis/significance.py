"""Significance of differences between systems, paired over users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from setrec.evaluation.intervals import bootstrap_means, holm, two_sided_p
from setrec.evaluation.ranking import PerUser, averaged

RESAMPLES = 5000
"""Resamples; no p-value is below 2 / 5001 before correction."""
MEAN = "mean"
"""The seed of rows whose metrics were averaged over seeds, user by user."""

Runs = PerUser | Sequence[PerUser]
"""Metrics of every user: averaged over seeds, or of each seed separately (a deterministic system has one)."""
Key = tuple[str, str, str]
"""History protocol, group, metric."""


def significance(
    system: str, ours: Runs, others: Mapping[str, Runs], *, resamples: int = RESAMPLES, seed: int = 0
) -> list[dict[str, Any]]:
    """Return paired bootstrap tests over users of our system minus each opponent, for every metric, group and history
    protocol.

    If seeds are given separately there are rows for each (``seed`` 0, 1, ...; seed by seed, or against the only run of
    an opponent) and for the means over them (``seed`` "mean"). A row has ``system``, ``against``, ``seed``,
    ``history``, ``group``, ``metric``, ``difference``, ``low``, ``high`` (95%), ``p_alone`` (two-sided), ``p``
    (corrected by Holm's rule for the number of opponents) and ``users``. Users are resampled; the variation between
    seeds is not included in the interval.

    Raises:
        ValueError: two systems were not measured on the same users.
    """
    mine = _by_seed(ours)
    against = {name: _by_seed(runs) for name, runs in others.items()}
    rows: list[dict[str, Any]] = []
    for number, own in mine.items():
        pairs = {name: _partner(runs, number) for name, runs in against.items()}
        met = {name: other for name, other in pairs.items() if other is not None}
        if met:
            rows += _tested({"system": system, "seed": number}, own, met, resamples, seed)
    return rows


def _by_seed(runs: Runs) -> dict[int | str, PerUser]:
    """Return the metrics of each seed and their means; of a single run the means only."""
    every = [runs] if isinstance(runs, PerUser) else list(runs)
    if len(every) == 1:
        return {MEAN: every[0]}
    if any(not np.array_equal(one.users, every[0].users) for one in every):
        raise ValueError("seeds of a system were not measured on the same users")
    return {**dict(enumerate(every)), MEAN: averaged(every)}


def _partner(runs: Mapping[int | str, PerUser], number: int | str) -> PerUser | None:
    """Return the opponent's run with the same seed, or its only run."""
    return runs.get(number, runs[MEAN] if len(runs) == 1 else None)


def _tested(
    head: Mapping[str, Any], own: PerUser, others: Mapping[str, PerUser], resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Return the rows of one seed. Groups are resampled separately, because a group excludes users without a truth in
    it."""
    rows = []
    for group in dict.fromkeys(group for _, group in own.tables):
        keys = [(h, g, metric) for (h, g), metrics in own.tables.items() if g == group for metric in metrics]
        table = np.stack([_differences(own, other, keys) for other in others.values()], axis=1)
        some = ~np.isnan(table).all(axis=(1, 2))
        if np.isnan(table[some]).any():
            raise ValueError(f"systems were not measured on the same users of {group}")
        if some.any():
            rows += _group_rows(head, list(others), keys, table[some], resamples, seed)
    return rows


def _differences(own: PerUser, other: PerUser, keys: Sequence[Key]) -> np.ndarray:
    """Return differences (users, keys), our system minus the other."""
    if not np.array_equal(own.users, other.users):
        raise ValueError("systems were not measured on the same users")
    columns = [own.tables[h, group][metric] - other.tables[h, group][metric] for h, group, metric in keys]
    return np.stack(columns, axis=1)


def _group_rows(
    head: Mapping[str, Any], names: Sequence[str], keys: Sequence[Key], table: np.ndarray, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Return rows from the differences (users, opponents, keys), with the same resamples for all."""
    means = bootstrap_means(table.reshape(len(table), -1), resamples, seed)
    shape = (len(names), len(keys))
    low, high = (side.reshape(shape) for side in np.percentile(means, [2.5, 97.5], axis=0))
    alone = two_sided_p(means).reshape(shape)
    corrected = holm(alone)
    return [
        {
            **head, "against": name, "history": history, "group": group, "metric": metric,
            "difference": float(table[:, i, j].mean()), "low": float(low[i, j]), "high": float(high[i, j]),
            "p": float(corrected[i, j]), "p_alone": float(alone[i, j]), "users": len(table),
        }
        for i, name in enumerate(names)
        for j, (history, group, metric) in enumerate(keys)
    ]  # fmt: skip
