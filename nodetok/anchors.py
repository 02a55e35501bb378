"""Which nodes are anchors: greedy maximum coverage of c-hop neighbourhoods (NT-LLM section 3), and its opponents.

Coverage is monotone and submodular, so the greedy choice of K anchors covers at least 1 - 1/e of what the best K cover.
Gains only shrink as more is covered; an old gain is therefore an upper bound, and a priority queue of bounds needs few
exact ones. Balls are searched when a candidate comes to the top and never kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numba import njit, prange
from pydantic import Field

from nodetok.distances import UNREACHABLE, hops
from nodetok.graph import Graph
from setrec.errors import ConfigError
from setrec.settings import Settings

Strategy = Literal["coverage", "paper", "degree", "random", "k_centre"]


class AnchorSettings(Settings):
    """How anchors are chosen.

    ``count`` is K, at most V; ``coverage`` stops earlier, at that share of nodes within ``radius`` hops of an anchor
    (the last tenth often costs more anchors than the rest). ``paper`` is ``coverage`` without anchors that another
    covers, as in NT-LLM's released selection; it may need several times as many.
    """

    strategy: Strategy = "coverage"
    count: int | None = Field(64, ge=1)
    coverage: float | None = Field(None, gt=0, le=1)
    radius: int = Field(2, ge=1, le=16)
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Anchors:
    """The chosen rows, int64 (K,), in order of choice, and how many nodes each was the first to cover, int64 (K,)."""

    rows: np.ndarray
    gains: np.ndarray
    nodes: int

    @property
    def coverage(self) -> float:
        """Share of nodes within the radius of an anchor."""
        return float(self.gains.sum() / self.nodes)

    @property
    def knee(self) -> int:
        """Number of anchors after which the marginal gain has fallen off: the cumulative gain is farthest above the
        straight line from the first anchor to the last."""
        if len(self.gains) < 3:
            return len(self.gains)
        total = np.cumsum(self.gains) / max(1, self.gains.sum())
        return int(np.argmax(total - np.linspace(total[0], 1.0, len(total)))) + 1


def choose(graph: Graph, settings: AnchorSettings | None = None) -> Anchors:
    """Anchors of ``graph``, its directions ignored; the same for the same graph and settings.

    Raises:
        ConfigError: neither a count nor a coverage says when to stop.
    """
    s = settings or AnchorSettings()
    if s.count is None and s.coverage is None:
        raise ConfigError("anchors need a count or a coverage to stop at")
    view = graph.undirected
    count = min(len(view), s.count or len(view))
    if s.strategy in ("coverage", "paper"):
        rows, gains = _greedy(view, count, s.coverage or 1.0, s.radius, exclude=s.strategy == "paper")
        if s.coverage is None and s.strategy == "coverage" and len(rows) < count:
            rows, gains = _again(view, rows, gains, count, s.radius)
        return Anchors(rows, gains, len(view))
    rows = _ordered(view, s, count)
    gains = _gains(view, rows, s.radius)
    if s.coverage is not None:
        enough = np.flatnonzero(np.cumsum(gains) >= s.coverage * len(view) - 1e-9)
        stop = int(enough[0]) + 1 if len(enough) else len(rows)
        rows, gains = rows[:stop], gains[:stop]
    return Anchors(rows, gains, len(view))


def _greedy(view: Graph, count: int, ratio: float, radius: int, *, exclude: bool) -> tuple[np.ndarray, np.ndarray]:
    goal = int(np.ceil(ratio * len(view) - 1e-9))
    return _lazy_greedy(view.indptr, view.indices, count, goal, radius, exclude, np.zeros(len(view), dtype=np.bool_))


def _again(view: Graph, rows: np.ndarray, gains: np.ndarray, count: int, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """All is covered and anchors are left: they cover everything once more, and once more, without repeating."""
    taken = np.zeros(len(view), dtype=np.bool_)
    while len(rows) < count:
        taken[rows] = True
        left = count - len(rows)
        more, _ = _lazy_greedy(view.indptr, view.indices, left, len(view), radius, False, taken)
        if not len(more):
            more = np.flatnonzero(~taken)[:left]
        rows, gains = np.concatenate([rows, more]), np.concatenate([gains, np.zeros(len(more), dtype=np.int64)])
    return rows, gains


def _ordered(view: Graph, settings: AnchorSettings, count: int) -> np.ndarray:
    if settings.strategy == "random":
        return np.random.default_rng(settings.seed).permutation(len(view))[:count].astype(np.int64)
    by_degree = np.argsort(-view.degrees, kind="stable").astype(np.int64)
    if settings.strategy == "degree":
        return by_degree[:count]
    # k-centre: each next anchor is the node farthest from all so far; unreachable is farthest, degree breaks ties.
    rows, nearest = [by_degree[0]], np.full(len(view), UNREACHABLE, dtype=np.uint8)
    while True:
        nearest = np.minimum(nearest, hops(view, np.array(rows[-1:]))[:, 0])
        if len(rows) == count or not nearest.any():
            return np.array(rows)
        rows.append(by_degree[np.argmax(nearest[by_degree])])


def _gains(view: Graph, rows: np.ndarray, radius: int) -> np.ndarray:
    """How many nodes each of ``rows`` is the first to cover."""
    covered = np.zeros(len(view), dtype=np.bool_)
    mark, queue = np.zeros(len(view), dtype=np.int64), np.empty(len(view), dtype=np.int32)
    gains = np.zeros(len(rows), dtype=np.int64)
    for i, row in enumerate(rows):
        gains[i] = _ball(view.indptr, view.indices, row, radius, covered, mark, i + 1, queue, True)
    return gains


@njit(cache=True, nogil=True)
def _ball(indptr, indices, start, radius, covered, mark, stamp, queue, cover):  # type: ignore[no-untyped-def]
    """Number of uncovered nodes within ``radius`` hops of ``start``; ``cover`` marks them as covered."""
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

    No count above the number of nodes is kept: none bounds anything, and walks soon outnumber what 64 bits hold.
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
def _sift_down(heap, bound, at, size):  # type: ignore[no-untyped-def]
    """Highest bound on top; of equal bounds the lowest row."""
    v = heap[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        right = child + 1
        if right < size and (
            bound[heap[right]] > bound[heap[child]]
            or (bound[heap[right]] == bound[heap[child]] and heap[right] < heap[child])
        ):
            child = right
        c = heap[child]
        if bound[c] > bound[v] or (bound[c] == bound[v] and c < v):
            heap[at] = c
            at = child
        else:
            break
    heap[at] = v


@njit(cache=True, nogil=True)
def _lazy_greedy(indptr, indices, count, goal, radius, exclude, taken):  # type: ignore[no-untyped-def]
    n = len(indptr) - 1
    covered = np.zeros(n, dtype=np.bool_)
    bound = np.full(n, n, dtype=np.int64)
    exact = np.full(n, -1, dtype=np.int64)  # after how many anchors the bound was last known to be the gain
    mark, stamp = np.zeros(n, dtype=np.int64), 0
    queue = np.empty(n, dtype=np.int32)
    heap = np.arange(n)
    rows, gains = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    chosen, total, searched, rebound_at = 0, 0, n, 0
    while chosen < count and total < goal:
        # New bounds cost radius + 1 sweeps over all arcs: worth it at the start, then whenever searches cost more.
        if searched >= n or chosen == rebound_at:
            _walk_bounds(indptr, indices, covered, radius, bound)
            for v in range(n):
                if taken[v] or (exclude and covered[v]):
                    bound[v] = 0
            for at in range(n // 2 - 1, -1, -1):
                _sift_down(heap, bound, at, n)
            searched, rebound_at = 0, 2 * chosen + 1
        while True:
            v = heap[0]
            if bound[v] == 0 or exact[v] == chosen:
                break
            if exclude and covered[v]:
                bound[v] = 0
            else:
                stamp += 1
                bound[v] = _ball(indptr, indices, v, radius, covered, mark, stamp, queue, False)
                searched += 1
            exact[v] = chosen
            _sift_down(heap, bound, 0, n)
        v = heap[0]
        if bound[v] == 0:
            break
        stamp += 1
        gain = _ball(indptr, indices, v, radius, covered, mark, stamp, queue, True)
        rows[chosen], gains[chosen] = v, gain
        total += gain
        chosen += 1
        bound[v] = 0
        _sift_down(heap, bound, 0, n)
    return rows[:chosen], gains[:chosen]
