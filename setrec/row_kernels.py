"""Compiled selection of the largest entries of rows."""

from __future__ import annotations

import heapq

import numpy as np
from numba import njit

_BLOCK = 64
"""Number of entries that are skipped together if none of them can be among the largest."""


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def largest_columns(scores, k):  # type: ignore[no-untyped-def]
    """Return the columns of the ``k`` <= I largest entries of each row of ``scores`` (n, I), none of them NaN, int64
    (n, k); the largest first, equal ones by ascending column.

    The k-th largest of the largest entries of blocks is at most the k-th largest entry, so most blocks are not read
    again.
    """
    rows, columns = scores.shape
    best = np.zeros((rows, k), np.int64)
    if k == 0:
        return best
    tops = np.empty(-(-columns // _BLOCK), scores.dtype)
    for r in range(rows):
        row = scores[r]
        for b in range(len(tops)):
            block = row[b * _BLOCK : (b + 1) * _BLOCK]
            top = block[0]
            for x in block:
                top = x if x > top else top  # max is not vectorised
            tops[b] = top
        bound = np.partition(tops, len(tops) - k)[len(tops) - k] if len(tops) > k else row.min()
        heap = [(row[0], 0) for _ in range(0)]
        for b in range(len(tops)):
            if tops[b] < bound:
                continue
            for c in range(b * _BLOCK, min(columns, (b + 1) * _BLOCK)):
                if row[c] < bound:
                    continue
                if len(heap) < k:
                    heapq.heappush(heap, (row[c], -c))
                elif row[c] > heap[0][0]:
                    heapq.heapreplace(heap, (row[c], -c))
        for place in range(len(heap) - 1, -1, -1):
            best[r, place] = -heapq.heappop(heap)[1]
    return best
