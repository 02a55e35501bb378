"""The transition graph: how often one item followed another, over one and two steps.

A trained model cannot store exact transition counts (arXiv 2605.07125 finds that a few hops of this graph alone beat
trained models on public data sets). An arc i -> j weighs ``fade`` ** (d - 1) for every time j followed i at distance d
<= ``reach`` in a user's history, and ``backward`` times as much from j to i. With W the weights, the transition
probability is

    P[i, j] = W[i, j] / (shrink + sum over k of W[i, k]),

so ``shrink`` reduces the probabilities of items with few outgoing transitions, which are unreliable. If events weigh
differently, an arc counts as much as the event it leads to, 1 on average; an arc to a disliked item lowers the weight,
to at least 0, and no arc starts at such an event. The component's graph is G = P + damping P^2, of which the ``arcs``
largest entries of every row are kept.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from pydantic import Field, FiniteFloat

from setrec.ragged import Ragged
from setrec.scoring.item_graph import GraphComponent, ItemGraph, Reading, largest
from setrec.settings import Settings

ARCS = 64
"""Number of arcs per item, 8 bytes each."""
_ROWS = 1 << 16


class TransitionSettings(Settings):
    """Settings of the graph; see the module. ``damping`` weighs the second step."""

    reach: int = Field(3, ge=1)
    fade: float = Field(0.5, ge=0, le=1)
    backward: float = Field(0.5, ge=0, le=1)
    shrink: FiniteFloat = Field(5.0, ge=0)
    damping: float = Field(0.5, ge=0, le=1)
    arcs: int = Field(ARCS, ge=1)


def transition_probabilities(rows: Ragged, items: int, s: TransitionSettings) -> sp.csr_matrix:
    """Return P (see the module), float64 (I, I), from histories. An item that follows itself adds no arc."""
    arcs, user = sp.csr_matrix((items, items)), rows.row_of_value
    back, weights = arcs, rows.weights
    if weights is not None:
        weights = weights / weights[weights > 0].mean()
    # Added up distance by distance: all pairs at once would take a multiple of the graph's memory.
    for distance in range(1, s.reach + 1):
        i, j = rows.values[:-distance], rows.values[distance:]
        some = (user[:-distance] == user[distance:]) & (i != j)
        faded = s.fade ** (distance - 1)
        if weights is None:
            weight = np.full(np.count_nonzero(some), faded)
            arcs = arcs + sp.csr_matrix((weight, (i[some], j[some])), (items, items))
            continue
        before, after = weights[:-distance], weights[distance:]
        ahead, behind = some & (before > 0), some & (after > 0)
        arcs = arcs + sp.csr_matrix((faded * after[ahead], (i[ahead], j[ahead])), (items, items))
        back = back + sp.csr_matrix((faded * before[behind], (j[behind], i[behind])), (items, items))
    both = (arcs + s.backward * (arcs.T if weights is None else back)).tocsr()
    del arcs, back
    np.maximum(both.data, 0, out=both.data)
    both.eliminate_zeros()
    left = np.asarray(both.sum(axis=1)).ravel()
    both.data *= np.repeat(1.0 / np.where(left > 0, left + s.shrink, 1.0), np.diff(both.indptr))
    return both


def transition_component(rows: Ragged, items: int, s: TransitionSettings, reading: Reading) -> GraphComponent:
    """Return the component built from the histories ``rows``."""
    from setrec.scoring.kernels.two_steps import two_steps

    whole = transition_probabilities(rows, items, s)
    # Sorting takes a multiple of the memory of what it sorts.
    parts = [largest(whole[start : start + _ROWS], s.arcs) for start in range(0, items, _ROWS)]
    graph = sp.vstack(parts, format="csr")
    lengths, targets, shares = two_steps(
        graph.indptr.astype(np.int64), graph.indices, graph.data, s.damping, min(s.arcs, items)
    )
    kept = np.arange(targets.shape[1]) < lengths[:, None]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return GraphComponent(ItemGraph(Ragged(targets[kept], offsets), shares[kept]), reading)
