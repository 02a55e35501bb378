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

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import scipy.sparse as sp
from pydantic import Field, FiniteFloat

from setrec.ragged import Ragged
from setrec.scoring.item_graph import GraphComponent, ItemGraph, Reading, largest
from setrec.settings import Settings

ARCS = 64
"""Number of arcs per item, 8 bytes each."""


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
    return sp.vstack(list(_probabilities(rows, items, s)), format="csr")


def _probabilities(rows: Ragged, items: int, s: TransitionSettings) -> Iterator[sp.csr_matrix]:
    """Yield P in blocks of rows, because all pairs at once take a hundred times the memory of the histories."""
    from setrec.scoring.kernels.pairs import pair_sums

    if rows.weights is not None:
        rows = replace(rows, weights=rows.weights / rows.weights[rows.weights > 0].mean())
    for block in pair_sums(rows, items, s.reach, s.fade, s.backward):
        left = np.asarray(block.sum(axis=1)).ravel()
        block.data *= np.repeat(1.0 / np.where(left > 0, left + s.shrink, 1.0), np.diff(block.indptr))
        yield block


def transition_component(rows: Ragged, items: int, s: TransitionSettings, reading: Reading) -> GraphComponent:
    """Return the component built from the histories ``rows``."""
    from setrec.scoring.kernels.two_steps import two_steps

    graph = sp.vstack([largest(block, s.arcs) for block in _probabilities(rows, items, s)], format="csr")
    lengths, targets, shares = two_steps(
        graph.indptr.astype(np.int64), graph.indices, graph.data, s.damping, min(s.arcs, items)
    )
    kept = np.arange(targets.shape[1]) < lengths[:, None]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return GraphComponent(ItemGraph(Ragged(targets[kept], offsets), shares[kept]), reading)
