"""Compiled reading of item graphs: sums over the arcs of histories without an array of all arcs."""

from __future__ import annotations

import numpy as np
from numba import njit

from setrec.ragged import Ragged

_SCAN = 16
"""Scanning all items for the reached ones is faster than sorting them if at least one item in this many is reached."""


def read_arcs(
    rows: Ragged, weights: np.ndarray, arcs: Ragged, shares: np.ndarray, held: Ragged, items: int
) -> tuple[Ragged, np.ndarray]:
    """Return the sums over each history of weight times share by target, without the items ``held``: targets int64 in
    ascending order, one row per history, and a positive sum, float64, for each.

    ``rows``: the rows of arcs that each history reads, with ``weights`` float64, one each. ``arcs``: targets of each
    row, with ``shares`` float32, one each. ``held``: one row per history.
    """
    lengths = np.diff(arcs.offsets)[rows.values]
    starts = np.concatenate([[0], np.cumsum(lengths)])[rows.offsets]
    room = np.minimum(np.diff(starts), items)
    targets, sums = np.empty(room.sum() + 1, np.int64), np.empty(room.sum() + 1)
    offsets = _read(
        rows.values.astype(np.int64), rows.offsets, weights, arcs.values, arcs.offsets, shares,
        held.values.astype(np.int64), held.offsets, room, targets, sums, np.zeros(items),
    )  # fmt: skip
    return Ragged(targets[: offsets[-1]], offsets), sums[: offsets[-1]]


@njit(cache=True, nogil=True)
def add_entries(  # type: ignore[no-untyped-def]
    scores, places, offsets, values, weight, new_weight, new
):
    """Add entries, ``places`` and ``values`` float32 with one row by ``offsets`` per row of ``scores``, to ``scores``
    float32 (b, I) at their ``weight``, or ``new_weight`` where ``new`` bool (I,)."""
    for b in range(len(scores)):
        for at in range(offsets[b], offsets[b + 1]):
            item = places[at]
            scores[b, item] += (new_weight if new[item] else weight) * values[at]


@njit(cache=True, nogil=True)
def add_rows(  # type: ignore[no-untyped-def]
    scores, values, offsets, weights, columns, starts, shares
):
    """Add to each row of ``scores`` float32 (b, I) the rows ``values`` (one row by ``offsets`` per row of ``scores``)
    of a sparse matrix (``columns``, ``starts``, ``shares`` float32), at their ``weights`` float32."""
    for b in range(len(scores)):
        for at in range(offsets[b], offsets[b + 1]):
            row, weight = values[at], weights[at]
            for arc in range(starts[row], starts[row + 1]):
                scores[b, columns[arc]] += weight * shares[arc]


@njit(cache=True, nogil=True)
def _read(  # type: ignore[no-untyped-def]
    rows, row_offsets, weights, arcs, arc_offsets, shares, held, held_offsets, room, targets, sums, total
):
    items, offsets = len(total), np.zeros(len(row_offsets), np.int64)
    for b in range(len(room)):
        start, count = offsets[b], 0
        scan = _SCAN * room[b] >= items
        for at in range(row_offsets[b], row_offsets[b + 1]):
            weight, row = weights[at], rows[at]
            for arc in range(arc_offsets[row], arc_offsets[row + 1]):
                target, more = arcs[arc], weight * shares[arc]
                if not scan and total[target] == 0.0 and more > 0.0:
                    targets[start + count] = target
                    count += 1
                total[target] += more
        for at in range(held_offsets[b], held_offsets[b + 1]):
            total[held[at]] = 0.0
        if scan:
            for item in range(items):  # without a branch, which would be mispredicted
                more = total[item]
                targets[start + count], sums[start + count] = item, more
                count += 1 if more > 0.0 else 0
                total[item] = 0.0
        else:
            reached = np.sort(targets[start : start + count])
            count = 0
            for item in reached:
                if total[item] > 0.0:
                    targets[start + count], sums[start + count] = item, total[item]
                    count += 1
                    total[item] = 0.0
        offsets[b + 1] = start + count
    return offsets
