"""Compiled ranking: the number of candidates above each truth, for many weighted sums of scores in one pass.

Rows are independent, so threads share nothing and their number does not affect the results. A row is read once, in
blocks: each weighting is mixed into a block that stays in the L1 cache and is compared there with all truths of the
row, so no table of mixed scores is written. Seen items are counted like all others, and those above a truth are also
counted separately.

Threads are Python threads, as compiled code releases the GIL; numba's parallel loops take twice as long to compile and
need a threading library that does not support forks nor, on some machines, concurrent calls. Importing this module
takes half a second, so it is imported on first use; compiled code is cached on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit

from setrec.errors import DataError
from setrec.ragged import Ragged

BLOCK = 2048
"""Number of candidates mixed at a time: 8 kB of mixture and as much of each kind, which fits the L1 cache."""
ROWS = 32
"""Number of rows per task of a thread."""


@dataclass(frozen=True)
class Counts:
    """Counts of items above the truths (T in all rows together): ``above`` of all items in a pool, and ``known`` of the
    row's seen items in it, both int64 (weightings, pools, T); ``seen``: which truths are seen items, bool (T,)."""

    above: np.ndarray
    known: np.ndarray
    seen: np.ndarray


def count_above(
    kinds: Sequence[np.ndarray], weights: np.ndarray, truth: Ragged, seen: Ragged, pools: np.ndarray
) -> Counts:
    """Count the items of each pool that rank above each truth, under every weighting of the kinds.

    ``kinds``: scores, each (b, I), of one type; ``weights``: float32 (weightings, kinds); ``pools``: bool (pools, I).
    A mixture is the sum of weight times kind, first kind first, each step rounded to the scores' type, as
    ``sum([np.float32(w) * kind ...])`` is. Ties go to the smaller row number. Uses as many threads as torch.

    Raises:
        DataError: a mixed score is NaN.
        ValueError: the shapes do not fit together, or a row number lies outside the catalogue.
    """
    scores = _stacked(kinds)
    _check(scores, weights, truth, seen, pools)
    rows, total = scores.shape[1], len(truth.values)
    above = np.zeros((len(weights), len(pools), total), dtype=np.int64)
    known, met = np.zeros_like(above), np.zeros(total, dtype=np.bool_)
    given = (
        scores, np.asarray(weights, dtype=np.float32).astype(scores.dtype), *_flat(truth), *_flat(seen),
        np.array(pools), pools.all(axis=1), BLOCK, above, known, met,
    )  # fmt: skip

    def part(start: int) -> int:
        return int(_count(start, min(start + ROWS, rows), *given))

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as threads:
        if sum(threads.map(part, range(0, rows, ROWS))):
            raise DataError("scores contain a NaN and cannot be ranked")
    return Counts(above, known, met)


def _stacked(kinds: Sequence[np.ndarray]) -> np.ndarray:
    """Stack scores, (kinds, b, I), in the result type with float32; a single kind of that type is not copied."""
    scores = np.asarray(kinds[0])[None] if len(kinds) == 1 else np.stack(kinds)
    # Writable, because numba compiles again for read-only arrays.
    return np.require(scores, np.result_type(scores.dtype, np.float32), ["C", "W"])


def _check(scores: np.ndarray, weights: np.ndarray, truth: Ragged, seen: Ragged, pools: np.ndarray) -> None:
    """Check shapes and bounds, which compiled code does not check."""
    kinds, rows, items = scores.shape
    if weights.shape[1:] != (kinds,) or pools.shape[1:] != (items,) or not len(truth) == len(seen) == rows:
        raise ValueError("scores, weights, truths, seen items and pools are not of the same rows, kinds and items")
    for given in (truth.values, seen.values):
        if len(given) and not 0 <= given.min() <= given.max() < items:
            raise ValueError(f"a row number lies outside the catalogue of {items} items")


def _flat(rows: Ragged) -> tuple[np.ndarray, np.ndarray]:
    return np.array(rows.values, dtype=np.int64), np.array(rows.offsets, dtype=np.int64)


@njit(cache=True, nogil=True)
def _count(  # type: ignore[no-untyped-def]
    first, last, scores, weights, truth, truth_at, seen, seen_at, pools, whole, block, above, known, met
):
    """Fill ``above``, ``known`` and ``met`` for rows from ``first`` to ``last``; return the number of NaN scores."""
    nans, out = 0, np.zeros(scores.shape[2], dtype=np.bool_)
    mixed = np.empty(min(block, scores.shape[2]), dtype=scores.dtype)
    for row in range(first, last):
        a, z = truth_at[row], truth_at[row + 1]
        own = _mixed_at(scores, weights, row, truth[a:z])
        nans += _count_row(scores, weights, row, truth, a, own, pools, whole, mixed, above)
        items = _distinct(seen[seen_at[row] : seen_at[row + 1]], out)
        _count_known(truth, a, own, items, _mixed_at(scores, weights, row, items), pools, known)
        for t in range(a, z):
            met[t] = out[truth[t]]
        for item in items:
            out[item] = False
    return nans


@njit(cache=True, nogil=True)
def _distinct(items, out):  # type: ignore[no-untyped-def]
    """Return the distinct items, and flag them in ``out``."""
    distinct, count = np.empty(len(items), dtype=np.int64), 0
    for item in items:
        if not out[item]:
            out[item] = True
            distinct[count] = item
            count += 1
    return distinct[:count]


@njit(cache=True, nogil=True)
def _mixed_at(scores, weights, row, items):  # type: ignore[no-untyped-def]
    """Return mixed scores (weightings, items) of some items of a row."""
    mixed = np.empty((len(weights), len(items)), dtype=scores.dtype)
    for g in range(len(weights)):
        for i in range(len(items)):
            value = weights[g, 0] * scores[0, row, items[i]]
            for k in range(1, len(scores)):
                value += weights[g, k] * scores[k, row, items[i]]
            mixed[g, i] = value
    return mixed


@njit(cache=True, nogil=True)
def _count_row(scores, weights, row, truth, a, own, pools, whole, mixed, above):  # type: ignore[no-untyped-def]
    """Fill ``above`` for the truths from ``a`` on, whose mixed scores are ``own``; return the number of NaN scores."""
    total, nans = scores.shape[2], 0
    for start in range(0, total, len(mixed)):
        size = min(len(mixed), total - start)
        for g in range(len(weights)):
            nans += _mix(scores, weights, g, row, start, mixed[:size])
            for i in range(own.shape[1]):
                # Items of equal score rank higher only up to the truth's own row number.
                cut = min(max(truth[a + i] - start, 0), size)
                for p in range(len(pools)):
                    pool = pools[p, start : start + size]
                    above[g, p, a + i] += _above(mixed[:size], cut, own[g, i], pool, whole[p])
    return nans


@njit(cache=True, nogil=True)
def _mix(scores, weights, g, row, start, mixed):  # type: ignore[no-untyped-def]
    """Compute one block of a weighted sum, and return the number of NaN scores."""
    for k in range(len(scores)):
        weight, kind = weights[g, k], scores[k, row, start : start + len(mixed)]
        if k == 0:
            for j in range(len(mixed)):
                mixed[j] = weight * kind[j]
        else:
            for j in range(len(mixed)):
                mixed[j] += weight * kind[j]
    nans = 0
    for j in range(len(mixed)):
        nans += mixed[j] != mixed[j]
    return nans


@njit(cache=True, nogil=True)
def _above(mixed, cut, own, pool, whole):  # type: ignore[no-untyped-def]
    """Return the number of candidates of a block above a score ``own``, or equal and before ``cut``."""
    before, after, count = mixed[:cut], mixed[cut:], 0
    if whole:
        for j in range(len(before)):
            count += before[j] >= own
        for j in range(len(after)):
            count += after[j] > own
        return count
    counted = pool[cut:]
    for j in range(len(before)):
        count += (before[j] >= own) & pool[j]
    for j in range(len(after)):
        count += (after[j] > own) & counted[j]
    return count


@njit(cache=True, nogil=True)
def _count_known(truth, a, own, items, scores, pools, known):  # type: ignore[no-untyped-def]
    """Fill ``known`` for the truths from ``a`` on, from the row's seen ``items`` and their mixed scores."""
    for g in range(len(own)):
        for i in range(own.shape[1]):
            for s in range(len(items)):
                item, score = items[s], scores[g, s]
                if score > own[g, i] or (score == own[g, i] and item < truth[a + i]):
                    for p in range(len(pools)):
                        known[g, p, a + i] += pools[p, item]
