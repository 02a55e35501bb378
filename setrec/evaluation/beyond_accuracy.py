"""Beyond-accuracy metrics of recommendation lists: coverage, Gini index, popularity, novelty and diversity.

A list contains a user's best items of the whole catalogue, with the history removed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from setrec.evaluation.intervals import bootstrap_means
from setrec.ragged import Ragged
from setrec.rows import top_k

LENGTH = 10
"""Number of items in a list."""
_USERS = 1024
"""Number of users whose items' vectors are in memory at a time."""


def best_items(scores: np.ndarray, history: Ragged, count: int = LENGTH) -> np.ndarray:
    """Return the rows of the ``count`` items with the largest scores (b, I) outside the histories, int32 (b, count),
    best first; -1 where a history leaves fewer items."""
    left = scores.astype(np.result_type(scores, np.float32))
    left[history.row_of_value, history.values] = -np.inf
    best = top_k(left, count)
    items = np.full((len(left), count), -1, dtype=np.int32)
    items[:, : best.shape[1]] = np.where(np.isneginf(np.take_along_axis(left, best, axis=1)), -1, best)
    return items


def gini(counts: np.ndarray) -> float:
    """Return the Gini index of item exposure: 0 if all items are shown equally often, near 1 if one is always shown."""
    shown = np.sort(counts.astype(np.float64))
    total = shown.sum()
    if not total:
        return 0.0
    place = np.arange(1, len(shown) + 1)
    return float((2 * place - len(shown) - 1) @ shown / (len(shown) * total))


def user_values(lists: np.ndarray, counts: np.ndarray, vectors: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return per-user means over the lists (U, k), by metric.

    ``popularity``: training interactions of the items; ``novelty``: bits of surprise, -log2 of an item's share of the
    training interactions, each item counted once more than it occurs (Vargas and Castells 2011); ``new_items``: share
    of items without training interactions; ``distance``, with unit vectors (I, w) of the items: one minus the cosine
    of two items of the list.
    """
    there = lists >= 0
    some = np.maximum(there.sum(axis=1), 1)
    rows = np.maximum(lists, 0)
    surprise = -np.log2((counts + 1) / (counts.sum() + len(counts)))

    def mean(values: np.ndarray) -> np.ndarray:
        means: np.ndarray = np.where(there, values[rows], 0).sum(axis=1) / some
        return means

    means = {
        "popularity": mean(counts.astype(np.float64)), "novelty": mean(surprise), "new_items": mean(counts == 0)
    }  # fmt: skip
    if vectors is not None:
        parts = [_distance(lists[at : at + _USERS], vectors) for at in range(0, len(lists), _USERS)]
        means["distance"] = np.concatenate(parts) if parts else np.zeros(0)
    return means


def _distance(lists: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    there = lists >= 0
    unit = np.where(there[..., None], vectors[np.maximum(lists, 0)], 0).astype(np.float64)
    total, count = unit.sum(axis=1), there.sum(axis=1)
    pairs = count * (count - 1)
    alike = (total * total).sum(axis=1) - (unit * unit).sum(axis=(1, 2))
    return np.where(pairs > 0, 1 - alike / np.maximum(pairs, 1), 0)


def rows(
    system: str,
    lists: np.ndarray,
    counts: np.ndarray,
    vectors: np.ndarray | None = None,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> list[dict[str, Any]]:
    """Return rows like :meth:`setrec.evaluation.ranking.PerUser.rows`, with metrics ``coverage@10`` (share of the
    catalogue that is in some list), ``gini@10`` and those of :func:`user_values`. The first two are of all lists
    together and have no interval.

    Shapes: lists int (U, k), counts int (I,): training interactions; vectors float32 (I, w) of length 1.
    """
    shown = np.bincount(lists[lists >= 0], minlength=len(counts))
    values = user_values(lists, counts, vectors)
    table = np.stack(list(values.values()), axis=1)
    low, high = np.percentile(bootstrap_means(table, resamples, seed), [2.5, 97.5], axis=0)
    whole = {"coverage": float((shown > 0).mean()), "gini": gini(shown)}
    given = {name: (value, value, value) for name, value in whole.items()}
    given |= {name: (float(table[:, j].mean()), float(low[j]), float(high[j])) for j, name in enumerate(values)}
    return [
        {
            "system": system, "history": "removed", "group": "all", "metric": f"{name}@{lists.shape[1]}",
            "value": value, "low": below, "high": above, "users": len(lists),
        }
        for name, (value, below, above) in given.items()
    ]  # fmt: skip
