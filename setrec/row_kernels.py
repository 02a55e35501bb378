"""Compiled selection of the largest entries of rows."""

from __future__ import annotations

import heapq

import numpy as np
from numba import njit

_BLOCK = 64
"""Number of entries that are compared with the k-th largest so far at once."""


@njit(cache=True, nogil=True)
def largest_columns(scores, k):  # type: ignore[no-untyped-def]
    """Return the columns of the ``k`` <= I largest entries of each row of ``scores`` (n, I), int64 (n, k); the largest
    first, equal ones by ascending column."""
    rows, columns = scores.shape
    best = np.empty((rows, k), np.int64)
    if k == 0:
        return best
    for r in range(rows):
        row = scores[r]
        heap = [(row[c], -c) for c in range(k)]
        heapq.heapify(heap)
        least = heap[0][0]
        for start in range(k, columns, _BLOCK):
            block = row[start : start + _BLOCK]
            above = 0
            for x in block:
                above |= x > least
            if above:
                for c in range(len(block)):
                    if block[c] > least:
                        heapq.heapreplace(heap, (block[c], -(start + c)))
                        least = heap[0][0]
        for place in range(k - 1, -1, -1):
            best[r, place] = -heapq.heappop(heap)[1]
    return best
