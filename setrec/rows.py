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
    from setrec.row_kernels import largest_columns  # numba takes half a second to import

    best: np.ndarray = largest_columns(np.ascontiguousarray(scores), min(k, scores.shape[1]))
    return best
