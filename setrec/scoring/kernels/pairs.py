"""Compiled sums over pairs of items that lie a few steps apart in histories, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
from numba import njit

from setrec.ragged import Ragged, offsets_of, row_blocks

_ENTRIES = 1 << 22
"""Entries of the rows in memory at a time, 12 bytes each; a row has at most one for every item."""


def pair_sums(
    histories: Ragged, items: int, reach: int, fade: float = 1.0, backward: float = 1.0
) -> Iterator[sp.csr_matrix]:
    """Yield the rows of a matrix over pairs of items, float64 (I, I), in blocks (n, I), without entries that are not
    above 0. Columns are in ascending order.

    Every time j != i follows i at distance d <= ``reach`` in a history, entry (i, j) gains fade^(d - 1) times the
    weight of the event of j, and (j, i) ``backward`` times as much by the weight of the event of i; an event whose own
    weight is not above 0 adds nothing to its row. Sums are the same for every size of blocks.

    Memory in addition to the histories: 5 bytes an interaction, 16 ``reach`` bytes an item, and the block.
    """
    count = len(histories.values)
    starts = offsets_of(np.bincount(histories.values, minlength=items))
    places = _places(histories.values, starts, np.empty(count, np.int32 if count < 1 << 31 else np.int64))
    first = np.zeros(count + 1, dtype=bool)
    first[histories.offsets] = True
    weights = np.empty(0, np.float32) if histories.weights is None else histories.weights
    room = offsets_of(np.minimum(np.diff(starts) * 2 * reach, items))
    ahead, behind = np.zeros((items, reach)), np.zeros((items, reach))
    fades = np.array([fade ** (distance - 1) for distance in range(1, reach + 1)])
    for start, end in row_blocks(room, _ENTRIES):
        size = room[end] - room[start]
        columns, sums = np.empty(size, np.int32), np.empty(size)
        offsets = _rows(
            start, end, places, starts, histories.values, first, weights, fades, backward, ahead, behind, columns, sums
        )
        used = int(offsets[-1])  # the arrays have room for more
        yield sp.csr_matrix((sums[:used].copy(), columns[:used].copy(), offsets), (end - start, items))


@njit(cache=True, nogil=True)
def _places(values, starts, places):  # type: ignore[no-untyped-def]
    """Fill ``places`` with where each item occurs, ascending, from ``starts`` of the item on."""
    at = starts.copy()
    for place in range(len(values)):
        item = values[place]
        places[at[item]] = place
        at[item] += 1
    return places


@njit(cache=True, nogil=True)
def _rows(  # type: ignore[no-untyped-def]
    start, end, places, starts, values, first, weights, fades, backward, ahead, behind, columns, sums
):
    """Write the rows ``start`` to ``end``; return their offsets. ``ahead`` and ``behind`` hold sums by distance, which
    are zero before and after."""
    offsets, items = np.zeros(end - start + 1, np.int64), len(ahead)
    met, seen = np.empty(items, np.int32), np.zeros(items, np.bool_)
    for row in range(start, end):
        count = 0
        for occurrence in range(starts[row], starts[row + 1]):
            place = places[occurrence]
            if len(weights) and weights[place] <= 0:
                continue
            for d in range(len(fades)):
                if first[place + d + 1]:
                    break
                count = _add(row, place + d + 1, values, weights, fades, d, ahead, seen, met, count)
            for d in range(len(fades)):
                if backward == 0 or first[place - d]:
                    break
                count = _add(row, place - d - 1, values, weights, fades, d, behind, seen, met, count)
        written = offsets[row - start]
        for item in np.sort(met[:count]):
            before, after = 0.0, 0.0
            for d in range(len(fades)):
                after, before = after + ahead[item, d], before + behind[item, d]
                ahead[item, d], behind[item, d] = 0.0, 0.0
            seen[item] = False
            if after + backward * before > 0:
                columns[written], sums[written] = item, after + backward * before
                written += 1
        offsets[row - start + 1] = written
    return offsets


@njit(cache=True, nogil=True)
def _add(row, place, values, weights, fades, d, sums, seen, met, count):  # type: ignore[no-untyped-def]
    """Add the event at ``place`` to the sums at distance ``d`` + 1; return the number of items in ``met``."""
    item = values[place]
    if item == row:
        return count
    sums[item, d] += fades[d] * weights[place] if len(weights) else fades[d]
    if not seen[item]:
        seen[item] = True
        met[count] = item
        count += 1
    return count
