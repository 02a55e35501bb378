"""Distances to positions: exp(-tau d), or a map learned with NT-LLM's rank-preserving objective.

With z = exp(-tau d) the inner product of two nodes is sum_k exp(-tau (d_ik + d_jk)), a soft minimum over the ways
through an anchor; it is what attention computes, unreachable is 0, and nothing has to be trained. The learned map
follows the paper: Euclidean distances of positions shall order nodes as hops do.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from nodetok import order
from nodetok.distances import UNREACHABLE, hops
from nodetok.graph import Graph
from setrec.settings import Settings


class PositionSettings(Settings):
    """How distances become positions.

    ``decay``: exp(-tau d), ``tau`` its start; with ``steps`` > 0 a tau per anchor is fitted to the order of hops first.
    ``ranked``: a map to ``width`` numbers, trained for ``steps`` steps of ``batch`` triplets over the anchors and
    ``pivots`` further nodes. On Cora and WN18RR a fitted tau orders 0.2 to 0.4 points better than the start, the map 8
    points worse; see docs/benchmarks.md.
    """

    kind: Literal["decay", "ranked"] = "decay"
    tau: float = Field(2.0, gt=0)
    width: int = Field(128, ge=2)
    hidden: int = Field(512, ge=2)
    pivots: int = Field(256, ge=0)
    steps: int = Field(0, ge=0)
    batch: int = Field(4096, ge=16)
    learning_rate: float = Field(2e-3, gt=0)
    seed: int = 0


def as_lengths(distances: Tensor) -> Tensor:
    """Distances as float, infinite where there is no path."""
    if distances.dtype == torch.uint8:
        return distances.float().masked_fill(distances == UNREACHABLE, float("inf"))
    return distances.float()


class DecayPositions(nn.Module):
    """exp(-tau_k d_k): K numbers in (0, 1], 0 for unreachable anchors. Similarity: inner product."""

    def __init__(self, anchors: int, tau: float) -> None:
        super().__init__()
        self.width = anchors
        self.log_tau = nn.Parameter(torch.full((anchors,), float(np.log(tau))))

    def forward(self, distances: Tensor) -> Tensor:
        """Positions (..., K) from distances (..., K)."""
        lengths = as_lengths(distances)
        # Not exp(-inf), whose gradient with respect to tau is not a number.
        reached = torch.isfinite(lengths)
        return torch.exp(-self.log_tau.exp() * lengths.masked_fill(~reached, 0.0)) * reached

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner product over the last axis."""
        return (a * b).sum(-1)

    def margin(self, pivot: Tensor, near: Tensor, far: Tensor) -> Tensor:
        """How much more similar ``near`` is, in hops: the difference of the logarithms of the soft minima."""
        tau = self.log_tau.exp()
        a, b, c = (-tau * as_lengths(x).clamp(max=64.0) for x in (pivot, near, far))
        return (torch.logsumexp(a + b, dim=-1) - torch.logsumexp(a + c, dim=-1)) / tau.mean()


class RankedPositions(nn.Module):
    """A two-layer map of exp(-tau d) to ``width`` numbers. Similarity: minus the Euclidean distance (NT-LLM)."""

    def __init__(self, anchors: int, tau: float, width: int, hidden: int) -> None:
        super().__init__()
        self.width = width
        self.decay = DecayPositions(anchors, tau)
        self.map = nn.Sequential(nn.Linear(anchors, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, distances: Tensor) -> Tensor:
        """Positions (..., width) from distances (..., K)."""
        return self.map(self.decay(distances))

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """Minus the Euclidean distance over the last axis."""
        return -torch.linalg.vector_norm(a - b, dim=-1)

    def margin(self, pivot: Tensor, near: Tensor, far: Tensor) -> Tensor:
        """How much farther ``far`` is."""
        a, b, c = self(pivot), self(near), self(far)
        return self.similarity(a, b) - self.similarity(a, c)


Positions = DecayPositions | RankedPositions


def build(anchors: int, settings: PositionSettings) -> Positions:
    """An untrained encoder for K = ``anchors`` columns of distances."""
    if settings.kind == "decay":
        return DecayPositions(anchors, settings.tau)
    with torch.random.fork_rng(devices=[]):  # loading a tokenizer must not reseed what the caller draws next
        torch.manual_seed(settings.seed)
        return RankedPositions(anchors, settings.tau / 4, settings.width, settings.hidden)


def fit(positions: Positions, graph: Graph, anchors: np.ndarray, table: np.ndarray, settings: PositionSettings) -> None:
    """Train on the order of hops: mean softplus(-margin) over triplets of a pivot, a nearer and a farther node.

    ``table`` (V, K) are the distances of all nodes. Pivots are the anchors and ``settings.pivots`` random nodes, so
    that the map does not learn the anchors by heart. The form of the loss is ours; the paper's is not public.
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
    """Columns of pivots, rows of nearer and of farther nodes."""
    i = rng.integers(exact.shape[1], size=batch)
    j, k = rng.integers(len(exact), size=(2, batch))
    a, b = exact[j, i], exact[k, i]
    keep = (a != b) & (a != UNREACHABLE) & (b != UNREACHABLE)
    swap = a > b
    return i[keep], np.where(swap, k, j)[keep], np.where(swap, j, k)[keep]
