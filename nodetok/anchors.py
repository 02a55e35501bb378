"""Selection of anchors: greedy maximum coverage of c-hop neighbourhoods (NT-LLM section 3), and its baselines.

Coverage is monotone and submodular, so the greedy choice of K anchors covers at least 1 - 1/e of what the best K cover.
Gains only shrink as more is covered; an old gain is therefore an upper bound, and a priority queue of bounds needs few
exact ones. Balls are searched when a candidate reaches the top of the queue, and are not stored.

On grids, paths and trees most candidates cover equally much. Of :data:`TIES` such candidates, drawn by the seed, the
one that brings all nodes nearest to an anchor is chosen (greedy k-median), which spreads anchors over the whole graph.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numba import njit, prange

from nodetok.distances import hops, parallel, reached
from nodetok.graph import Graph
from nodetok.settings import AnchorSettings
from setrec.errors import ConfigError

TIES = 16
"""Number of candidates of equal coverage that are compared; 64 add a point of order accuracy on a binary tree."""


@dataclass(frozen=True, eq=False)
class Anchors:
    """Selected anchors: their ``rows`` in order of selection, and ``gains``, the nodes each was the first to cover,
    int64 (K,)."""

    rows: np.ndarray
    gains: np.ndarray
    nodes: int

    @property
    def coverage(self) -> float:
        """Return the share of nodes within the radius of an anchor."""
        return float(self.gains.sum() / self.nodes)


def choose(graph: Graph, settings: AnchorSettings | None = None) -> Anchors:
    """Select the anchors of ``graph``, ignoring directions; deterministic for a graph and settings.

    Raises:
        ConfigError: neither a count nor a coverage is set.
    """
    s = settings or AnchorSettings()
    if s.count is None and s.coverage is None:
        raise ConfigError("anchors need a count or a coverage")
    view = graph.undirected
    count = min(len(view), s.count or len(view))
    if s.strategy in ("coverage", "paper"):
        rows, gains = _greedy(view, s, count)
        return Anchors(rows, gains, len(view))
    rows = _ordered(view, s, count)
    gains = _gains(view, rows, s.radius)
    if s.coverage is not None:
        enough = np.flatnonzero(np.cumsum(gains) >= s.coverage * len(view) - 1e-9)
        stop = int(enough[0]) + 1 if len(enough) else len(rows)
        rows, gains = rows[:stop], gains[:stop]
    return Anchors(rows, gains, len(view))


def _greedy(view: Graph, s: AnchorSettings, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Select by coverage. If all nodes are covered before ``count`` is reached and no coverage is set, they are covered
    again."""
    goal = len(view) if s.coverage is None else int(np.ceil(s.coverage * len(view) - 1e-9))
    exclude = s.strategy == "paper"
    taken, nearest = np.zeros(len(view), dtype=np.bool_), np.full(len(view), len(view), dtype=np.int64)
    rank = np.random.default_rng(s.seed).permutation(len(view))
    arrays = view.indptr, view.indices
    with parallel():
        rows, gains = _lazy_greedy(*arrays, count, goal, s.radius, exclude, taken, nearest, rank)
    while s.coverage is None and not exclude and len(rows) < count:
        taken[rows] = True
        with parallel():
            more, _ = _lazy_greedy(*arrays, count - len(rows), goal, s.radius, False, taken, nearest, rank)
        rows, gains = np.concatenate([rows, more]), np.concatenate([gains, np.zeros(len(more), dtype=np.int64)])
    return rows, gains


def _ordered(view: Graph, settings: AnchorSettings, count: int) -> np.ndarray:
    if settings.strategy == "random":
        return np.random.default_rng(settings.seed).permutation(len(view))[:count].astype(np.int64)
    by_degree = np.argsort(-view.degrees, kind="stable").astype(np.int64)
    if settings.strategy == "degree":
        return by_degree[:count]
    # k-centre: each next anchor is the node farthest from all so far; unreachable is farthest, degree breaks ties.
    rows, nearest = [by_degree[0]], np.full(len(view), len(view), dtype=np.int64)
    while True:
        column = hops(view, np.array(rows[-1:]))[:, 0]
        nearest = np.where(reached(column), np.minimum(nearest, column), nearest)
        if len(rows) == count or not nearest.any():
            return np.array(rows)
        rows.append(by_degree[np.argmax(nearest[by_degree])])


def _gains(view: Graph, rows: np.ndarray, radius: int) -> np.ndarray:
    """Return the number of nodes that each of ``rows`` is the first to cover."""
    covered = np.zeros(len(view), dtype=np.bool_)
    mark, queue = np.zeros(len(view), dtype=np.int64), np.empty(len(view), dtype=np.int32)
    gains = np.zeros(len(rows), dtype=np.int64)
    for i, row in enumerate(rows):
        gains[i] = _ball(view.indptr, view.indices, row, radius, covered, mark, i + 1, queue, True)
    return gains


@njit(cache=True, nogil=True)
def _ball(indptr, indices, start, radius, covered, mark, stamp, queue, cover):  # type: ignore[no-untyped-def]
    """Return the number of uncovered nodes within ``radius`` hops of ``start``; ``cover`` marks them as covered."""
    mark[start] = stamp
    queue[0] = start
    gain = 0 if covered[start] else 1
    if cover:
        covered[start] = True
    begin, end = 0, 1
    for depth in range(radius):
        last = depth == radius - 1
        stop = end
        for i in range(begin, stop):
            v = queue[i]
            for e in range(indptr[v], indptr[v + 1]):
                u = indices[e]
                if mark[u] != stamp:
                    mark[u] = stamp
                    if not covered[u]:
                        gain += 1
                        if cover:
                            covered[u] = True
                    if not last:
                        queue[end] = u
                        end += 1
        begin = stop
    return gain


@njit(parallel=True, cache=True, nogil=True)
def _walk_bounds(indptr, indices, covered, radius, bound):  # type: ignore[no-untyped-def]
    """Lower every bound to the number of walks of at most ``radius`` steps to uncovered nodes: one sweep a step.

    Counts above the number of nodes are not stored: they are useless as bounds, and numbers of walks overflow 64 bits.
    """
    n = len(bound)
    count = np.empty(n, dtype=np.int64)
    for v in prange(n):
        count[v] = 0 if covered[v] else 1
    own = count.copy()
    for _ in range(radius):
        following = np.empty(n, dtype=np.int64)
        for v in prange(n):
            total = own[v]
            for e in range(indptr[v], indptr[v + 1]):
                total += count[indices[e]]
            following[v] = min(total, n)
        count = following
    for v in prange(n):
        bound[v] = min(bound[v], count[v])


@njit(cache=True, nogil=True)
def _approach(indptr, indices, start, nearest, mark, stamp, queue, keep):  # type: ignore[no-untyped-def]
    """Return by how much the sum of hops to the nearest anchor falls if ``start`` becomes an anchor; ``keep`` updates
    ``nearest``, the hops to the nearest anchor. Only nodes that come nearer are visited."""
    mark[start] = stamp
    queue[0] = start
    begin, end, depth, saved = 0, 1, 0, 0
    while begin < end:
        stop = end
        for i in range(begin, stop):
            v = queue[i]
            saved += nearest[v] - depth
            if keep:
                nearest[v] = depth
            for e in range(indptr[v], indptr[v + 1]):
                u = indices[e]
                if mark[u] != stamp and nearest[u] > depth + 1:
                    mark[u] = stamp
                    queue[end] = u
                    end += 1
        begin = stop
        depth += 1
    return saved


@njit(cache=True, nogil=True)
def _lazy_greedy(indptr, indices, count, goal, radius, exclude, taken, nearest, rank):  # type: ignore[no-untyped-def]
    n = len(indptr) - 1
    covered = np.zeros(n, dtype=np.bool_)
    bound = np.full(n, n, dtype=np.int64)
    exact = np.full(n, -1, dtype=np.int64)  # number of anchors at which the bound was last exact
    mark, stamp = np.zeros(n, dtype=np.int64), 0
    queue = np.empty(n, dtype=np.int32)
    heap = [(-bound[v], rank[v], v) for v in range(n)]
    ties = np.empty(TIES, dtype=np.int64)
    rows, gains = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    chosen, total, searched, rebound_at = 0, 0, n, 0
    while chosen < count and total < goal:
        # New bounds cost radius + 1 sweeps over all arcs: worthwhile at the start, and whenever searches cost more.
        if searched >= n or chosen == rebound_at:
            _walk_bounds(indptr, indices, covered, radius, bound)
            for v in range(n):
                if taken[v] or (exclude and covered[v]):
                    bound[v] = 0
            heap = [(-bound[v], rank[v], v) for v in range(n) if bound[v]]
            heapq.heapify(heap)
            searched, rebound_at = 0, 2 * chosen + 1
        tied = 0
        while heap and tied < TIES:
            v = heap[0][2]
            if tied and bound[v] < bound[ties[0]]:
                break
            heapq.heappop(heap)
            if exact[v] == chosen:
                ties[tied] = v
                tied += 1
            elif not (exclude and covered[v]):
                stamp += 1
                bound[v] = _ball(indptr, indices, v, radius, covered, mark, stamp, queue, False)
                searched += 1
                exact[v] = chosen
                if bound[v]:
                    heapq.heappush(heap, (-bound[v], rank[v], v))
        if not tied:
            break
        best, most = ties[0], -1
        for i in range(tied if tied > 1 else 0):
            stamp += 1
            saved = _approach(indptr, indices, ties[i], nearest, mark, stamp, queue, False)
            if saved > most:
                best, most = ties[i], saved
        for i in range(tied):
            if ties[i] != best:
                rank[ties[i]] += n  # others first next time
                heapq.heappush(heap, (-bound[ties[i]], rank[ties[i]], ties[i]))
        rows[chosen], gains[chosen] = best, bound[best]
        total += bound[best]
        bound[best] = 0
        chosen += 1
        stamp += 2
        _ball(indptr, indices, best, radius, covered, mark, stamp - 1, queue, True)
        _approach(indptr, indices, best, nearest, mark, stamp, queue, True)
    return rows[:chosen], gains[:chosen]
