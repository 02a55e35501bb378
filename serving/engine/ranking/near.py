"""Compiled search for the rows near the top of one history's scores."""

from __future__ import annotations

import heapq

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def near_best(scores, left, k, slack):  # type: ignore[no-untyped-def]
    """Return the rows, int64 ascending, of those in ``left`` bool (R,) whose ``scores`` float32 (R,) are at most
    ``slack`` below the ``k``-th best."""
    found, count = np.empty(len(scores), np.int64), 0
    if k < 1:
        return found[:0]
    best = [np.float32(-np.inf)] * k  # a heap
    for row in range(len(scores)):
        if left[row] and scores[row] > best[0]:
            heapq.heapreplace(best, scores[row])
    least = best[0] - slack
    for row in range(len(scores)):
        if left[row] and scores[row] >= least:
            found[count] = row
            count += 1
    return found[:count].copy()
