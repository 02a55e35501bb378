"""Positions from distances: exp(-tau d), whose inner products are similarities.

The inner product of two nodes is sum_k exp(-tau (d_ik + d_jk)), a soft minimum over the paths through an anchor.
Attention computes such inner products, unreachable anchors contribute 0, and no training is needed. NT-LLM trains a map
under the objective that Euclidean distances of positions order nodes as hops do. On Cora and WN18RR such a map ordered
8 points worse than exp(-2 d); this module only fits one tau per anchor to that objective.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nodetok import order
from nodetok.distances import hops, reached
from nodetok.graph import Graph
from nodetok.settings import PositionSettings

LARGEST = 40.0
"""Largest exponent: the product of two such positions, exp(-80), is still a number in float32."""


def as_lengths(distances: Tensor) -> Tensor:
    """Convert distances of any type to float, infinite without a path."""
    if distances.is_floating_point():
        return distances.float()
    return distances.float().masked_fill(distances == torch.iinfo(distances.dtype).max, float("inf"))


class Positions(nn.Module):
    """exp(-tau_k d_k): K numbers in (0, 1], 0 for unreachable anchors. Similarity: inner product."""

    def __init__(self, anchors: int, tau: float = 2.0) -> None:
        super().__init__()
        self.width = anchors
        self.log_tau = nn.Parameter(torch.full((anchors,), float(np.log(tau))))

    def forward(self, distances: Tensor) -> Tensor:
        """Return positions (..., K) from distances (..., K)."""
        lengths = as_lengths(distances)
        # Not exp(-inf), whose gradient with respect to tau is NaN.
        there = torch.isfinite(lengths)
        return torch.exp(-self.log_tau.exp() * lengths.masked_fill(~there, 0.0)) * there

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the inner product over the last axis."""
        return (a * b).sum(-1)

    def margin(self, pivot: Tensor, near: Tensor, far: Tensor) -> Tensor:
        """Return the difference of the soft minima of path lengths to ``far`` and ``near``, in hops."""
        tau = self.log_tau.exp()
        beyond = 3 * LARGEST / float(tau.detach().min())
        a, b, c = (-tau * as_lengths(x).clamp(max=beyond) for x in (pivot, near, far))
        return (torch.logsumexp(a + b, dim=-1) - torch.logsumexp(a + c, dim=-1)) / tau.mean()


def rate(table: np.ndarray, unit: float, tau: float) -> float:
    """Return the rate of decay for path lengths (V, K) whose edges have the length ``unit``.

    ``tau`` over the unit, but at most :data:`LARGEST` over the longest distance: the default of 2 is unchanged if no
    path has more than 20 hops.
    """
    longest = float(table.max(where=reached(table), initial=0))
    return min(tau / unit, LARGEST / longest if longest else np.inf)


def fit(positions: Positions, graph: Graph, anchors: np.ndarray, table: np.ndarray, settings: PositionSettings) -> None:
    """Fit tau to the order of hops: mean softplus(-margin) over triplets of a pivot, a nearer and a farther node.

    ``table`` (V, K) are the distances of all nodes. Pivots are the anchors and ``settings.pivots`` random nodes. The
    form of the loss is ours; the paper's is not public.
    """
    rng = np.random.default_rng([settings.seed, 1])
    extra = order.sample_pivots(graph.undirected, settings.pivots, rng, without=anchors)
    pivots = np.concatenate([anchors, extra])
    exact = hops(graph.undirected, pivots)
    distances = torch.from_numpy(np.ascontiguousarray(table))
    optimizer = torch.optim.Adam(positions.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    positions.train()
    for _ in range(settings.steps):
        i, j, k = _draw(exact, settings.batch, rng)
        if not len(i):
            break
        loss = F.softplus(-positions.margin(distances[pivots[i]], distances[j], distances[k])).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    positions.eval()


def _draw(exact: np.ndarray, batch: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw columns of pivots and rows of nearer and farther nodes."""
    i = rng.integers(exact.shape[1], size=batch)
    j, k = rng.integers(len(exact), size=(2, batch))
    a, b = exact[j, i], exact[k, i]
    keep = (a != b) & reached(a) & reached(b)
    swap = a > b
    return i[keep], np.where(swap, k, j)[keep], np.where(swap, j, k)[keep]
