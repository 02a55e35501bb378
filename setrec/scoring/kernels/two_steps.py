"""Compiled two-step walk: W = P + damping P^2, one row at a time, so that P^2 is never in memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit

_ROWS = 1 << 12


def two_steps(
    offsets: np.ndarray, items: np.ndarray, shares: np.ndarray, damping: float, keep: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the ``keep`` largest entries of every row of W, without the diagonal: lengths int64 (I,), items int32 (I,
    keep) and shares float32 (I, keep), of which the first ``length`` of a row are valid. Of equal entries those that
    the walk reaches first are kept. Uses as many threads as torch.

    P: ``offsets`` int64 (I + 1,), ``items`` and ``shares`` of its entries, all above zero.
    """
    count = len(offsets) - 1
    lengths, targets = np.zeros(count, dtype=np.int64), np.zeros((count, keep), dtype=np.int32)
    values = np.zeros((count, keep), dtype=np.float32)

    def part(start: int) -> None:
        _rows(start, min(start + _ROWS, count), offsets, items, shares, damping, lengths, targets, values)

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as threads:
        list(threads.map(part, range(0, count, _ROWS)))
    return lengths, targets, values


@njit(cache=True, nogil=True)
def _rows(first, last, offsets, items, shares, damping, lengths, targets, values):  # type: ignore[no-untyped-def]
    count, keep = len(offsets) - 1, targets.shape[1]
    total, met = np.zeros(count), np.empty(count, dtype=np.int64)
    for row in range(first, last):
        reached = _walk(row, offsets, items, shares, damping, total, met)
        own = total[met[:reached]]
        limit = np.partition(own, reached - keep)[reached - keep] if reached > keep else 0.0
        equal = keep - np.sum(own > limit)
        for at in range(reached):
            if own[at] > limit or (own[at] == limit and equal > 0):
                equal -= own[at] == limit
                targets[row, lengths[row]], values[row, lengths[row]] = met[at], own[at]
                lengths[row] += 1
            total[met[at]] = 0.0


@njit(cache=True, nogil=True)
def _walk(row, offsets, items, shares, damping, total, met):  # type: ignore[no-untyped-def]
    """Add the shares of a walk from ``row`` to ``total``; return the number of items reached, listed in ``met``."""
    reached = 0
    for a in range(offsets[row], offsets[row + 1]):
        reached = _add(row, items[a], shares[a], total, met, reached)
        if damping > 0:
            for b in range(offsets[items[a]], offsets[items[a] + 1]):
                reached = _add(row, items[b], damping * shares[a] * shares[b], total, met, reached)
    return reached


@njit(cache=True, nogil=True)
def _add(row, item, share, total, met, reached):  # type: ignore[no-untyped-def]
    if item == row:
        return reached
    if total[item] == 0.0:
        met[reached] = item
        reached += 1
    total[item] += share
    return reached
