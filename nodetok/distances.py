"""From every node to every anchor: hops, lengths or random walks, as one contiguous matrix (NT-LLM section 3).

Hops run 64 anchors at a time as the bits of one word: a level of the search is one OR per arc, whatever the number of
anchors in the word, and a node that all anchors have reached is not looked at again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from numba import njit, prange
from pydantic import Field
from scipy import sparse
from scipy.sparse import csgraph

from nodetok.graph import Graph
from setrec.errors import ConfigError
from setrec.settings import Settings

UNREACHABLE = 255
"""Stands in a matrix of hops for "no path"; longer paths than 254 hops count as 254."""
FARTHEST = 254
WORD = 64

Kind = Literal["hops", "weighted", "walks"]


class DistanceSettings(Settings):
    """Which distance stands between a node and an anchor.

    ``hops`` counts edges (uint8, K bytes a node). ``weighted`` adds the lengths of edges (float32). ``walks`` is minus
    the logarithm of the personalised PageRank of the anchor for a walk that starts at the node and stops at each step
    with probability ``restart``, cut after ``steps`` steps (float32; half an edge's share per million nodes and
    anchor in time). Where plain hops are nearly constant, as between users and items, walks still tell nodes apart.
    ``direction`` of a directed graph: ``ignored``, ``to`` the anchors, ``from`` them, or ``both`` (2 K columns).
    """

    kind: Kind = "hops"
    direction: Literal["ignored", "to", "from", "both"] = "ignored"
    restart: float = Field(0.15, ge=0, lt=1)
    steps: int = Field(8, ge=1)


def distances(graph: Graph, anchors: np.ndarray, settings: DistanceSettings | None = None) -> np.ndarray:
    """Distances (V, K) of every node to the anchors (rows of ``graph``), or (V, 2 K) for ``both`` directions.

    uint8 with :data:`UNREACHABLE`, or float32 with infinity.

    Raises:
        ConfigError: no anchors, or one outside the graph.
    """
    s = settings or DistanceSettings()
    return np.concatenate([measure(view, anchors, s) for view in views(graph, s)], axis=1)


def views(graph: Graph, settings: DistanceSettings) -> list[Graph]:
    """The graph as each block of K columns sees it: arcs lead from a node towards the anchors."""
    if settings.direction == "ignored" or not graph.directed:
        return [graph.undirected]
    ways = {"to": [graph], "from": [graph.reverse], "both": [graph, graph.reverse]}
    return ways[settings.direction]


def measure(view: Graph, anchors: np.ndarray, settings: DistanceSettings) -> np.ndarray:
    """Distances (V, K) along the arcs of ``view``."""
    anchors = np.ascontiguousarray(anchors, dtype=np.int64)
    if not len(anchors):
        raise ConfigError("distances need at least one anchor")
    if anchors.min() < 0 or anchors.max() >= len(view):
        raise ConfigError(f"an anchor lies outside the graph's {len(view)} nodes")
    measures: dict[Kind, Callable[[], np.ndarray]] = {
        "hops": lambda: hops(view, anchors),
        "weighted": lambda: lengths(view, anchors),
        "walks": lambda: walks(view, anchors, settings.restart, settings.steps),
    }
    return measures[settings.kind]()


def hops(graph: Graph, anchors: np.ndarray, limit: int = FARTHEST, out: np.ndarray | None = None) -> np.ndarray:
    """Number of arcs on the shortest path from each node to each anchor, uint8 (V, K).

    ``limit``: paths longer than this count as unreachable, :data:`FARTHEST` as that or longer. ``out``: a matrix
    to fill, memory-mapped perhaps.
    """
    anchors = np.ascontiguousarray(anchors, dtype=np.int64)
    out = np.empty((len(graph), len(anchors)), dtype=np.uint8) if out is None else out
    out[:] = UNREACHABLE
    seen, frontier, following = (np.zeros(len(graph), dtype=np.uint64) for _ in range(3))
    for start in range(0, len(anchors), WORD):
        block = anchors[start : start + WORD]
        full = np.uint64((1 << len(block)) - 1)
        seen[:] = 0
        np.bitwise_or.at(seen, block, np.uint64(1) << np.arange(len(block), dtype=np.uint64))
        frontier[:] = seen
        out[block, start + np.arange(len(block))] = 0
        level, found = 0, 1
        while found and (level < limit or limit == FARTHEST):
            level += 1
            value = np.uint8(min(level, FARTHEST))
            found = _level(graph.indptr, graph.indices, seen, frontier, following, full, out, start, value)
            frontier, following = following, frontier
    return out


@njit(parallel=True, cache=True, nogil=True)
def _level(indptr, indices, seen, frontier, following, full, out, start, level):  # type: ignore[no-untyped-def]
    found = 0
    for v in prange(len(seen)):
        before = seen[v]
        following[v] = 0
        if before == full:
            continue
        reached = np.uint64(0)
        for e in range(indptr[v], indptr[v + 1]):
            reached |= frontier[indices[e]]
        new = reached & ~before
        if new == 0:
            continue
        following[v] = new
        seen[v] = before | new
        found += 1
        column = start
        while new != 0:
            if new & np.uint64(1):
                out[v, column] = level
            new >>= np.uint64(1)
            column += 1
    return found


def lengths(graph: Graph, anchors: np.ndarray) -> np.ndarray:
    """Length of the shortest path from each node to each anchor, float32 (V, K), infinite where there is none."""
    # csgraph searches away from its sources; arcs turned round lead from the anchors to the nodes.
    found = csgraph.dijkstra(graph.reverse.matrix, directed=True, indices=anchors)
    return np.ascontiguousarray(found.T, dtype=np.float32)


def walks(graph: Graph, anchors: np.ndarray, restart: float, steps: int) -> np.ndarray:
    """Minus the log probability that a walk from each node ends at each anchor, float32 (V, K).

    A walk ends at every step with probability ``restart``, and for certain at a node without arcs or after ``steps``
    steps; so the probabilities of all ends of one start add up to 1. Shorter arcs are likelier, by one over length.
    """
    n, k = len(graph), len(anchors)
    step = graph.matrix.astype(np.float32)
    if graph.weights is not None:
        step.data = 1.0 / np.maximum(step.data, 1e-6)
    total = np.asarray(step.sum(axis=1)).ravel()
    moves = sparse.diags(np.divide(1 - restart, total, out=np.zeros(n, dtype=np.float32), where=total > 0)) @ step
    stay = np.where(total > 0, restart, 1.0).astype(np.float32)[:, None]
    ends = np.zeros((n, k), dtype=np.float32)
    ends[anchors, np.arange(k)] = 1.0
    found = ends
    for _ in range(steps):
        found = moves @ found
        found[anchors, np.arange(k)] += stay[anchors, 0]
    with np.errstate(divide="ignore"):
        return -np.log(found)


def relax(graph: Graph, table: np.ndarray, touched: np.ndarray, *, weighted: bool) -> np.ndarray:
    """Make ``table`` (V, K), distances from before some arcs were added, exact again; in place, and returned.

    Only nodes whose distances change, and their neighbours, are visited: ``touched`` are the rows from which the new
    arcs leave. Exact because added arcs can only shorten paths, and a path that got shorter runs through a new arc.
    """
    back = graph.reverse
    starts = np.unique(touched).astype(np.int64)
    own = np.ones(len(graph.indices), np.float32) if graph.weights is None else graph.weights
    if weighted:
        none = cap = table.dtype.type(np.inf)
    else:
        own, none, cap = np.ones(len(graph.indices), np.uint8), table.dtype.type(UNREACHABLE), FARTHEST
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


def open_mapped(path: Path, nodes: int, columns: int) -> np.ndarray:
    """A new matrix of hops on disk (NumPy's own format), to be filled block by block."""
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(nodes, columns))
