"""Random propagation: in training, features averaged around a node are averages over a few random walks from it.

After GRAND (Feng et al., "Graph Random Neural Networks for Semi-Supervised Learning on Graphs", NeurIPS 2020,
arXiv:2005.11079), whose passes leave out random nodes before features are propagated. Here every pass follows new walks
with restart instead, whose cost does not depend on the size of the graph. With many walks the average is the exact one,
which is read in evaluation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nodetok.graph import Graph

LONGEST = 1e-3
"""Share of the walks that are cut."""


@dataclass(frozen=True, eq=False)
class FeatureWalks:
    """Walks on an undirected graph with a loop at every node, that stop at each step with probability ``restart``.

    ``indptr`` int64 (V + 1,) and ``indices`` int64 (arcs,): the arcs in compressed rows. ``starts`` int64 (V,): the
    node from which the walks of each row leave. ``count``: number of walks of a row.
    """

    indptr: Tensor
    indices: Tensor
    starts: Tensor
    restart: float
    count: int

    @classmethod
    def over(cls, graph: Graph, starts: np.ndarray, restart: float, count: int) -> FeatureWalks:
        """Return walks over a graph, without its directions and lengths."""
        view = graph.undirected
        indptr, indices, own = (torch.from_numpy(x.astype(np.int64)) for x in (view.indptr, view.indices, starts))
        return cls(indptr, indices, own, restart, count)

    def to(self, device: torch.device) -> FeatureWalks:
        """Return the walks on ``device``."""
        indptr, indices, starts = (x.to(device) for x in (self.indptr, self.indices, self.starts))
        return FeatureWalks(indptr, indices, starts, self.restart, self.count)

    def ends(self, rows: Tensor) -> Tensor:
        """Return the last nodes of random walks from each row, int64 (n, count)."""
        at = self.starts[rows].repeat_interleave(self.count)
        walking = torch.arange(len(at), device=at.device)
        for _ in range(math.ceil(math.log(LONGEST) / math.log1p(-self.restart))):
            walking = walking[torch.rand(len(walking), device=at.device) >= self.restart]
            here = at[walking]
            begin = self.indptr[here]
            degree = self.indptr[here + 1] - begin
            # One of the arcs, or the loop, which is the last of degree + 1 choices.
            choice = (torch.rand(len(here), device=at.device) * (degree + 1)).long().minimum(degree)
            moves = choice < degree
            at[walking[moves]] = self.indices[begin[moves] + choice[moves]]
        return at.view(len(rows), self.count)

    def averages(self, rows: Tensor, features: Tensor) -> Tensor:
        """Return features (n, F), rows of length 1, averaged over the ends of walks from each row; ``features`` (V, F)
        of all nodes.

        A node weighs one over the root of its degree: its share of the walks grows with the degree, in the exact
        average, whose propagation is symmetric, with the root.
        """
        ends = self.ends(rows)
        weights = (self.indptr[ends + 1] - self.indptr[ends] + 1).float().rsqrt()
        summed = F.embedding_bag(ends, features, mode="sum", per_sample_weights=weights)
        return F.normalize(summed, dim=1)
