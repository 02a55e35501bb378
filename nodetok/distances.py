"""Distances from every node to every anchor: hops, path lengths or random walks, as one matrix (NT-LLM section 3).

Hops are computed for 64 anchors at a time as the bits of one word: a level of the search is one OR per arc for all
anchors of the word, and a node that all anchors have reached is skipped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from numba import njit, prange
from scipy import sparse
from scipy.sparse import csgraph
from threadpoolctl import threadpool_limits

from nodetok.graph import Graph
from nodetok.settings import DistanceSettings, Kind
from setrec.errors import ConfigError

UNREACHABLE = 255
"""Value for "no path" in a matrix of hops of one byte; see :func:`unreachable` for the others."""
FARTHEST = 254
"""Longest path that one byte can represent."""
WORD = 64
NARROW = 32
"""Only the frontier's neighbours are visited if the frontier is smaller than this fraction of the nodes."""

_PARALLEL = threading.Lock()
_started = False


@contextmanager
def parallel() -> Iterator[None]:
    """Protect a parallel loop.

    Loops of two threads at once abort the process in numba's thread pool. And when that pool starts, with the first
    loop, it sets the number of OpenMP threads of the calling thread to its own. It is restored here: or PyTorch, told
    to use one thread, would use all from then on, and beside other work spend most of its time waiting for them.
    """
    global _started
    with _PARALLEL, nullcontext() if _started else threadpool_limits(limits=None, user_api="openmp"):
        yield
        _started = True


def unreachable(dtype: np.dtype[Any] | type) -> float:
    """Return the value for "no path" in a matrix of this type: the largest integer, or infinity."""
    kind = np.dtype(dtype)
    return float("inf") if kind.kind == "f" else int(np.iinfo(kind).max)


def reached(table: np.ndarray) -> np.ndarray:
    """Return whether there is a path, bool, for each distance of ``table``."""
    there: np.ndarray = table != unreachable(table.dtype)
    return there


def as_type(table: np.ndarray, kind: np.dtype[Any] | type) -> np.ndarray:
    """Convert hops to another integer type, keeping "no path"."""
    if table.dtype == kind:
        return table
    out = table.astype(kind)
    out[~reached(table)] = unreachable(kind)
    return out


def fitting(table: np.ndarray) -> np.ndarray:
    """Convert hops to the type returned by :func:`hops`: uint8, or int32 if one is above 254."""
    longest = table.max(where=reached(table), initial=0)
    return as_type(table, np.uint8 if longest <= FARTHEST else np.int32)


def refuse_outside(rows: np.ndarray, nodes: int) -> None:
    """Raise an error for fractions and for rows outside a graph of ``nodes`` nodes; NumPy would cut off the former and
    count negative ones from the end.

    Raises:
        ConfigError: there is such a row, or ``rows`` is no list.
    """
    if rows.ndim != 1:
        raise ConfigError(f"nodes must be a list of rows, not an array of the shape {rows.shape}")
    if len(rows) and rows.dtype.kind not in "iu":
        raise ConfigError(f"nodes must be rows (integers), not {rows.dtype}")
    bad = (rows < 0) | (rows >= nodes)
    if bad.any():
        raise ConfigError(f"node {rows[bad][0]} lies outside the graph, 0 .. {nodes - 1}")


def distances(graph: Graph, anchors: np.ndarray, settings: DistanceSettings | None = None) -> np.ndarray:
    """Return the distances (V, K) of every node to the anchors (rows of ``graph``), or (V, 2 K) for ``both``
    directions.

    Hops are uint8, or int32 if a path is longer than 254; lengths and walks float32. :func:`unreachable` is the value
    without a path.

    Raises:
        ConfigError: no anchors, or one outside the graph, or lengths that float32 cannot hold.
    """
    s = settings or DistanceSettings()
    return np.concatenate([measure(view, anchors, s) for view in views(graph, s)], axis=1)


def views(graph: Graph, settings: DistanceSettings) -> list[Graph]:
    """Return the graph of each block of K columns, its arcs directed from nodes towards anchors."""
    if settings.direction == "ignored" or not graph.directed:
        return [graph.undirected]
    ways = {"to": [graph], "from": [graph.reverse], "both": [graph, graph.reverse]}
    return ways[settings.direction]


def measure(view: Graph, anchors: np.ndarray, settings: DistanceSettings) -> np.ndarray:
    """Return distances (V, K) along the arcs of ``view``."""
    if not len(anchors):
        raise ConfigError("distances need at least one anchor")
    refuse_outside(anchors, len(view))
    anchors = np.ascontiguousarray(anchors, dtype=np.int64)
    measures: dict[Kind, Callable[[], np.ndarray]] = {
        "hops": lambda: hops(view, anchors),
        "weighted": lambda: lengths(view, anchors),
        "walks": lambda: walks(view, anchors, settings.restart, settings.steps),
    }
    return measures[settings.kind]()


def hops(graph: Graph, anchors: np.ndarray, limit: int | None = None, out: np.ndarray | None = None) -> np.ndarray:
    """Return the number of arcs on the shortest path from each node to each anchor, uint8 (V, K), or int32 if one is
    longer than 254; :func:`unreachable` of that type without a path.

    ``limit``: longer paths count as none. ``out``: a matrix to fill, possibly memory-mapped.

    Raises:
        ConfigError: an anchor outside the graph, or a path longer than the type of ``out`` can hold.
    """
    refuse_outside(np.asarray(anchors), len(graph))
    anchors = np.ascontiguousarray(anchors, dtype=np.int64)
    fixed = out is not None
    out = np.empty((len(graph), len(anchors)), dtype=np.uint8) if out is None else out
    out[:] = unreachable(out.dtype)
    seen, frontier, following = (np.zeros(len(graph), dtype=np.uint64) for _ in range(3))
    for start in range(0, len(anchors), WORD):
        block = anchors[start : start + WORD]
        full = np.uint64((1 << len(block)) - 1)
        seen[:] = 0
        np.bitwise_or.at(seen, block, np.uint64(1) << np.arange(len(block), dtype=np.uint64))
        frontier[:] = seen
        out[block, start + np.arange(len(block))] = 0
        level, active = 0, np.unique(block)
        while len(active) and level != limit:
            level += 1
            if level == unreachable(out.dtype):
                if fixed:
                    raise ConfigError(f"a path may be longer than the {level - 1} hops that {out.dtype} can hold")
                out = as_type(out, np.int32)
            if len(active) * NARROW < len(graph):
                back = graph.reverse
                active = _step(back.indptr, back.indices, seen, frontier, following, active, out, start, level)
            else:
                with parallel():
                    _level(graph.indptr, graph.indices, seen, frontier, following, full, out, start, level)
                frontier, following = following, frontier
                following[:] = 0
                active = np.flatnonzero(frontier)
    return fitting(out) if not fixed and out.dtype != np.uint8 else out


@njit(cache=True, nogil=True)
def _reach(v, new, seen, following, out, start, level):  # type: ignore[no-untyped-def]
    """Record that node ``v`` is ``level`` hops from the anchors whose bits are in ``new``."""
    following[v] = new
    seen[v] |= new
    column = start
    while new != 0:
        if new & np.uint64(1):
            out[v, column] = level
        new >>= np.uint64(1)
        column += 1


@njit(parallel=True, cache=True, nogil=True)
def _level(indptr, indices, seen, frontier, following, full, out, start, level):  # type: ignore[no-untyped-def]
    """Advance the search by one level over all nodes."""
    for v in prange(len(seen)):
        if seen[v] == full:
            continue
        reaching = np.uint64(0)
        for e in range(indptr[v], indptr[v + 1]):
            reaching |= frontier[indices[e]]
        new = reaching & ~seen[v]
        if new != 0:
            _reach(v, new, seen, following, out, start, level)


@njit(cache=True, nogil=True)
def _step(back_ptr, back, seen, frontier, following, active, out, start, level):  # type: ignore[no-untyped-def]
    """Advance the search by one level over the frontier's neighbours only, which on long graphs are few."""
    reached_list = [active[0] for _ in range(0)]
    for u in active:
        for e in range(back_ptr[u], back_ptr[u + 1]):
            v = back[e]
            new = frontier[u] & ~seen[v]
            if new != 0:
                if following[v] == 0:
                    reached_list.append(np.int64(v))
                following[v] |= new
    for u in active:
        frontier[u] = 0
    reached_now = np.empty(len(reached_list), dtype=np.int64)
    for i, v in enumerate(reached_list):
        reached_now[i] = v
        frontier[v] = following[v]
        following[v] = 0
        _reach(v, frontier[v], seen, frontier, out, start, level)
    return reached_now


def lengths(graph: Graph, anchors: np.ndarray) -> np.ndarray:
    """Return the length of the shortest path from each node to each anchor, float32 (V, K), infinite without a path."""
    # csgraph searches away from its sources; reversed arcs lead from the anchors to the nodes.
    table = csgraph.dijkstra(graph.reverse.matrix, directed=True, indices=anchors)
    if (np.isfinite(table) & (table > np.finfo(np.float32).max)).any():
        raise ConfigError("a path is longer than float32 can hold, about 3e38: divide all weights by the same number")
    return np.ascontiguousarray(table.T, dtype=np.float32)


def walks(graph: Graph, anchors: np.ndarray, restart: float, steps: int) -> np.ndarray:
    """Return the negative log probability that a walk from each node ends at each anchor, float32 (V, K).

    A walk ends at every step with probability ``restart``, and with certainty at a node without arcs or after ``steps``
    steps, so the probabilities of all ends of one start add up to 1. Arc probabilities are proportional to one over
    length.
    """
    n, k = len(graph), len(anchors)
    step = graph.matrix.astype(np.float32)
    if graph.weights is not None:
        positive = step.data[step.data > 0]
        unit = min(1.0, float(np.median(positive))) if len(positive) else 1.0
        step.data = unit / np.maximum(step.data, 1e-6 * unit)
    total = np.asarray(step.sum(axis=1)).ravel()
    moves = sparse.diags(np.divide(1 - restart, total, out=np.zeros(n, dtype=np.float32), where=total > 0)) @ step
    stay = np.where(total > 0, restart, 1.0).astype(np.float32)[:, None]
    ends = np.zeros((n, k), dtype=np.float32)
    ends[anchors, np.arange(k)] = 1.0
    probabilities = ends
    for _ in range(steps):
        probabilities = moves @ probabilities
        probabilities[anchors, np.arange(k)] += stay[anchors, 0]
    with np.errstate(divide="ignore"):
        return -np.log(probabilities)


def relax(graph: Graph, table: np.ndarray, touched: np.ndarray, *, weighted: bool) -> np.ndarray:
    """Update ``table`` (V, K), distances before some arcs were added, in place, and return it.

    Only nodes whose distances change, and their neighbours, are visited: ``touched`` are the source rows of the new
    arcs. The result is exact, because added arcs can only shorten paths, and a shortened path uses a new arc. Hops must
    fit the table's type: a node that was unreachable may be farther away than any other.

    Raises:
        ConfigError: a row outside the graph, or a table with another number of rows.
    """
    back = graph.reverse
    if len(table) != len(graph):
        raise ConfigError(f"{len(table)} rows of distances for a graph of {len(graph)} nodes")
    refuse_outside(np.asarray(touched), len(graph))
    starts = np.unique(np.asarray(touched, dtype=np.int64))
    own = np.ones(len(graph.indices), np.float32) if graph.weights is None else graph.weights
    if weighted:
        none = cap = table.dtype.type(np.inf)
    else:
        none = table.dtype.type(unreachable(table.dtype))
        own, cap = np.ones(len(graph.indices), np.uint8), none - 1
    _relax(graph.indptr, graph.indices, own, back.indptr, back.indices, table, starts, none, cap)
    return table


@njit(cache=True, nogil=True)
def _relax(indptr, indices, own, back_ptr, back, table, starts, none, cap):  # type: ignore[no-untyped-def]
    queued = np.zeros(len(indptr) - 1, dtype=np.bool_)
    work = list(starts)
    for v in starts:
        queued[v] = True
    at = 0
    while at < len(work):
        v = work[at]
        at += 1
        queued[v] = False
        changed = False
        for e in range(indptr[v], indptr[v + 1]):
            u = indices[e]
            for k in range(table.shape[1]):
                if table[u, k] == none:
                    continue
                through = min(table[u, k] + own[e], cap)
                if through < table[v, k]:
                    table[v, k] = through
                    changed = True
        if changed:
            for e in range(back_ptr[v], back_ptr[v + 1]):
                u = back[e]
                if not queued[u]:
                    queued[u] = True
                    work.append(u)
