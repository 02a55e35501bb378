"""Bootstrap intervals and tests over users."""

from __future__ import annotations

import numpy as np

CELLS_AT_ONCE = 1 << 22
"""Number of draws in memory at a time, about 80 MB."""


def bootstrap_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return means (resamples, m) of resamples with replacement of the rows of ``values`` (users, m)."""
    rng, users = np.random.default_rng(seed), len(values)
    step = max(1, CELLS_AT_ONCE // users)
    parts = []
    for at in range(0, resamples, step):
        size = min(step, resamples - at)
        # Counting drawn users is 7 times as fast as drawing multinomial counts, with the same distribution.
        drawn = rng.integers(0, users, (size, users)) + np.arange(size)[:, None] * users
        times = np.bincount(drawn.ravel(), minlength=size * users).reshape(size, users)
        parts.append(times @ values / users)
    return np.concatenate(parts)


def paired_difference(a: np.ndarray, b: np.ndarray, resamples: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean of a - b over the same users and its 95% interval: ``(difference, low, high)``."""
    difference = (np.asarray(a) - np.asarray(b))[:, None]
    low, high = np.percentile(bootstrap_means(difference, resamples, seed), [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)


def standard_error(differences: np.ndarray) -> float:
    """Return the standard error of the mean of users' differences; users without one have NaN."""
    return float(np.nanstd(differences) / np.sqrt(max(1, np.sum(~np.isnan(differences)))))


def two_sided_p(means: np.ndarray) -> np.ndarray:
    """Return two-sided p-values (m,) of "the mean is 0" from resampled means (resamples, m), by inverting the
    percentile interval.

    Twice the share of resamples on the rarer side of 0, including the sample itself: at most 0.05 exactly if the 95%
    percentile interval excludes 0 (up to one resample), and at least 2 / (resamples + 1).
    """
    rarer = np.minimum((means <= 0).sum(axis=0), (means >= 0).sum(axis=0))
    p: np.ndarray = np.minimum(1.0, 2.0 * (rarer + 1) / (len(means) + 1))
    return p


def holm(p: np.ndarray) -> np.ndarray:
    """Return p-values (m, ...) with Holm's correction along the first axis (Holm 1979), which controls the family-wise
    error rate under any dependence."""
    order = np.argsort(p, axis=0, kind="stable")
    left = np.arange(len(p), 0, -1).reshape(-1, *[1] * (p.ndim - 1))
    raised = np.minimum(1.0, np.maximum.accumulate(np.take_along_axis(p, order, axis=0) * left, axis=0))
    corrected = np.empty_like(raised)
    np.put_along_axis(corrected, order, raised, axis=0)
    return corrected
