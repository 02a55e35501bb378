"""Agreement of a similarity of positions with the order of distances: triplets, order accuracy, Kendall's tau.

NT-LLM's claim is about order: of two nodes the one nearer in hops must be the nearer in the embedding. Raw anchor
vectors under Euclidean distance do not preserve this order; some similarities of the same vectors do, without training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from nodetok.distances import hops, reached
from nodetok.graph import Graph
from setrec.errors import ConfigError

Similarity = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Function from two arrays of rows (n, width) to similarities (n,)."""


@dataclass(frozen=True, eq=False)
class Triplets:
    """Triplets of rows, int64 (n,): ``near`` is fewer hops from ``pivot`` than ``far``."""

    pivot: np.ndarray
    near: np.ndarray
    far: np.ndarray

    def accuracy(self, similarity: Similarity, positions: np.ndarray) -> float:
        """Return the share of triplets whose order the similarity preserves; a tie counts half, so chance is 0.5."""
        right = 0.0
        for part in np.array_split(np.arange(len(self.pivot)), max(1, len(self.pivot) // 20_000)):
            own = positions[self.pivot[part]]
            near, far = similarity(own, positions[self.near[part]]), similarity(own, positions[self.far[part]])
            right += float((near > far).sum() + 0.5 * (near == far).sum())
        return right / len(self.pivot)


def sample_pivots(graph: Graph, count: int, rng: np.random.Generator, without: np.ndarray | None = None) -> np.ndarray:
    """Return random rows of the largest component that are not in ``without``."""
    members = np.flatnonzero(graph.components == np.bincount(graph.components).argmax())
    members = members if without is None else np.setdiff1d(members, without)
    return rng.permutation(members)[:count]


def sample_triplets(graph: Graph, pivots: np.ndarray, count: int, rng: np.random.Generator) -> Triplets:
    """Return random triplets of reachable nodes at different distances from their pivot.

    Raises:
        ConfigError: the graph has no pivot from which two nodes lie at different distances.
    """
    table = hops(graph.undirected, pivots)
    there = reached(table)
    members = np.flatnonzero(there.any(axis=1))
    i = rng.integers(len(pivots), size=3 * count)
    j, k = members[rng.integers(len(members), size=(2, 3 * count))]
    a, b = table[j, i], table[k, i]
    good = np.flatnonzero((a != b) & there[j, i] & there[k, i])[:count]
    if not len(good):
        raise ConfigError("no two nodes lie at different distances from a pivot: nothing to order")
    i, j, k, nearer = i[good], j[good], k[good], (a < b)[good]
    return Triplets(pivots[i], np.where(nearer, j, k), np.where(nearer, k, j))


def kendall(
    graph: Graph, pivots: np.ndarray, similarity: Similarity, positions: np.ndarray, nodes: int = 1000
) -> float:
    """Return Kendall's tau-b between hops from a pivot and falling similarity to it, over ``nodes`` random nodes a
    pivot; mean over pivots. Hops tie often, so a perfect order stays below 1."""
    rng = np.random.default_rng(0)
    table = hops(graph.undirected, pivots)
    taus = []
    for column, pivot in enumerate(pivots):
        others = np.flatnonzero(reached(table[:, column]) & (np.arange(len(graph)) != pivot))
        some = rng.permutation(others)[:nodes]
        if len(np.unique(table[some, column])) > 1:
            own = np.broadcast_to(positions[pivot], (len(some), positions.shape[1]))
            taus.append(kendalltau(table[some, column], -similarity(own, positions[some])).statistic)
    return float(np.mean(taus)) if taus else 0.0


def euclidean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the negative Euclidean distance, as in NT-LLM."""
    scores: np.ndarray = -np.linalg.norm(a.astype(np.float32) - b.astype(np.float32), axis=-1)
    return scores


def min_sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the negative length of the shortest path through an anchor, an upper bound of the distance."""
    scores: np.ndarray = -(a.astype(np.float32) + b.astype(np.float32)).min(axis=-1)
    return scores


def max_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the negative largest difference of anchor distances, a lower bound of the distance."""
    scores: np.ndarray = -np.abs(a.astype(np.float32) - b.astype(np.float32)).max(axis=-1)
    return scores


def inner_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the inner product, as attention and an index compute it."""
    scores: np.ndarray = (a.astype(np.float32) * b.astype(np.float32)).sum(axis=-1)
    return scores
