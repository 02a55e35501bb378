"""Greedy re-ranking of scored candidates by marginal relevance, with group limits.

The next item is the one with the largest

    (1 - d) relevance(i) - d mean over chosen j of cosine(i, j),

where relevance is the score, shifted and scaled to [0, 1] over the candidates. As cosines are linear in the item, this
equals a query moved away from the mean of the chosen codes. Carbonell and Goldstein (1998) subtract the largest cosine
in place of the mean, which loses more NDCG for the same distance (docs/serving.md). ``d`` = 0 keeps the order of the
scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from setrec.rows import normalize_rows


@dataclass(frozen=True)
class GroupLimit:
    """A limit of ``most`` chosen items per group; ``groups``: the groups of each candidate, none or several."""

    groups: Sequence[Sequence[str]]
    most: int


def rerank(
    scores: np.ndarray, vectors: np.ndarray, k: int, diversity: float, limits: Sequence[GroupLimit] = ()
) -> np.ndarray:
    """Choose up to ``k`` of n candidates, one at a time.

    Args:
        scores: float (n,), descending.
        vectors: vectors that candidates are compared by, float (n, d); read only if ``diversity`` is above 0.
        k: maximum number of chosen candidates.
        diversity: ``d`` above, from 0 to 1.
        limits: candidates that exceed a limit are skipped, so fewer than ``k`` may be chosen.

    Returns:
        Positions of the chosen candidates, int64, in the order of choice.
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
    """Return whether all groups of candidate ``i`` have room, and count it if so."""
    for limit, count in zip(limits, counts, strict=True):
        if any(count.get(group, 0) >= limit.most for group in limit.groups[i]):
            return False
    for limit, count in zip(limits, counts, strict=True):
        for group in limit.groups[i]:
            count[group] = count.get(group, 0) + 1
    return True


def _unit_interval(scores: np.ndarray) -> np.ndarray:
    """Return scores shifted and scaled to [0, 1], float64."""
    shifted = np.asarray(scores, np.float64) - np.min(scores, initial=np.inf)
    scaled: np.ndarray = shifted / max(float(shifted.max(initial=0.0)), 1e-12)
    return scaled
