"""Whitening of codes by the second moments of queries.

Inner products do not depend on the coordinates: <q, c> = <A^-T q, A c> for every invertible A. Cells, graphs and
quantisers do: they group codes that are near each other in the arbitrary coordinates of the model. With A = (E[q
q^T])^(1/2) over queries of the model, |A (c - c')|^2 is the mean squared difference of the scores of c and c', so that
near codes have similar scores, and fewer cells contain the best ones. The gain depends on the codes.
"""

from __future__ import annotations

import numpy as np

_RIDGE = 0.03
"""Share of the mean variance added to every direction: future queries may have directions absent from the sample."""


def from_queries(queries: np.ndarray | None, width: int) -> np.ndarray:
    """Return A, float32 (D, D), symmetric, from queries float32 (Q, D); the identity without queries."""
    if queries is None or not len(queries):
        return np.eye(width, dtype=np.float32)
    second = queries.T.astype(np.float64) @ queries.astype(np.float64) / len(queries)
    scale = np.trace(second) / width
    if not scale > 0:
        return np.eye(width, dtype=np.float32)
    values, vectors = np.linalg.eigh(second / scale + _RIDGE * np.eye(width))
    root: np.ndarray = ((vectors * np.sqrt(values)) @ vectors.T).astype(np.float32)
    return root


def for_queries(matrix: np.ndarray) -> np.ndarray:
    """Return A^-1, which multiplies row vectors of queries from the right, where A multiplies codes as columns."""
    return np.ascontiguousarray(np.linalg.inv(matrix.astype(np.float64)).astype(np.float32))
