"""Operations on the rows of matrices: unit length, and the largest entries."""

from __future__ import annotations

import numpy as np


def normalize_rows(rows: np.ndarray) -> np.ndarray:
    """Return ``rows`` (n, w) scaled to Euclidean length 1; rows of zeros stay zero."""
    scaled: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return scaled


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the columns of the ``k`` largest entries of each row of ``scores`` (n, I), int64 (n, min(k, I)).

    The largest come first, equal entries by ascending column.
    """
    k = min(k, scores.shape[1])
    if k in (0, scores.shape[1]):
        return np.argsort(-scores, axis=1, kind="stable")[:, :k]
    least = np.partition(scores, -k, axis=1)[:, -k][:, None]
    above, level = scores > least, scores == least
    row, column = np.nonzero(above | level)
    # Of the entries equal to the k-th largest only the first are selected.
    wanted = (k - above.sum(axis=1))[row]
    counted = level[row, column]
    number = np.cumsum(counted)
    before = np.concatenate([[0], np.cumsum(level.sum(axis=1))])[row]
    taken = ~counted | (number - before <= wanted)
    best = column[taken].reshape(-1, k)
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1)
