"""Bootstrap intervals over users."""

from __future__ import annotations

import numpy as np

CELLS_AT_ONCE = 1 << 24


def bootstrap_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means of ``resamples`` resamples with replacement of the rows of ``values`` (users, m); (resamples, m)."""
    rng, users = np.random.default_rng(seed), len(values)
    even = np.full(users, 1.0 / users)
    step = max(1, CELLS_AT_ONCE // users)
    parts = [
        rng.multinomial(users, even, size=min(step, resamples - at)) @ values / users
        for at in range(0, resamples, step)
    ]
    return np.concatenate(parts)


def paired_difference(a: np.ndarray, b: np.ndarray, resamples: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of a - b over the same users and its 95% interval: ``(difference, low, high)``."""
    difference = (np.asarray(a) - np.asarray(b))[:, None]
    low, high = np.percentile(bootstrap_means(difference, resamples, seed), [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)
