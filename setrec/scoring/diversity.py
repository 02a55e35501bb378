"""Greedy re-ranking of scored candidates: marginal relevance, away from what is chosen already, within group limits.

The next item is the one of largest

    (1 - d) relevance(i) - d mean over chosen j of cosine(i, j),

where relevance is the score, shifted and scaled to [0, 1] over the candidates. As cosines are linear in the item, this
asks again with a query that is moved away from the mean of the chosen codes. Carbonell and Goldstein (1998) subtract
the largest cosine in place of the mean, which loses more NDCG for the same distance (docs/serving.md). ``d`` = 0 keeps
the order of the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from setrec.rows import normalize_rows


@dataclass(frozen=True)
class GroupLimit:
    """At most ``most`` of the chosen items are in one group; ``groups``: those of each candidate, none or several."""

    groups: Sequence[Sequence[str]]
    most: int


def rerank(
    scores: np.ndarray, vectors: np.ndarray, k: int, diversity: float, limits: Sequence[GroupLimit] = ()
) -> np.ndarray:
    """Choose up to ``k`` of n candidates, one after the other.

    Args:
        scores: float (n,), falling.
        vectors: what candidates are compared by, float (n, d); read only where ``diversity`` is above 0.
        k: how many.
        diversity: ``d`` above, from 0 to 1.
        limits: candidates beyond them are passed over, so fewer than ``k`` may be chosen.

    Returns:
        Places of the chosen, int64, in the order of choice.
    """
    n = len(scores)
    value, mean = (1 - diversity) * _unit_interval(scores), np.zeros(n)
    unit = normalize_rows(vectors) if diversity else np.empty((n, 0), np.float32)
    left, counts = np.ones(n, dtype=bool), [dict[str, int]() for _ in limits]
    chosen: list[int] = []
    while len(chosen) < k and left.any():
        # The first of equal values: candidates come in the order of their scores.
        i = int(np.argmax(np.where(left, value - diversity * mean, -np.inf)))
        left[i] = False
        if not _admit(i, limits, counts):
            continue
        chosen.append(i)
        if diversity:
            mean = unit @ unit[chosen].mean(axis=0)
    return np.array(chosen, dtype=np.int64)


def _admit(i: int, limits: Sequence[GroupLimit], counts: Sequence[dict[str, int]]) -> bool:
    """Whether there is room for candidate ``i`` in all of its groups; if so it is counted."""
    for limit, count in zip(limits, counts, strict=True):
        if any(count.get(group, 0) >= limit.most for group in limit.groups[i]):
            return False
    for limit, count in zip(limits, counts, strict=True):
        for group in limit.groups[i]:
            count[group] = count.get(group, 0) + 1
    return True


def _unit_interval(scores: np.ndarray) -> np.ndarray:
    """Scores shifted and scaled to [0, 1], float64."""
    shifted = np.asarray(scores, np.float64) - np.min(scores, initial=np.inf)
    scaled: np.ndarray = shifted / max(float(shifted.max(initial=0.0)), 1e-12)
    return scaled
