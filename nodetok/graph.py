"""A graph in compressed sparse rows, from arrays, edge lists, NetworkX or PyTorch Geometric; node ids are kept."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from nodetok.pyg import as_texts, edge_arrays, hetero_edges, refuse_missing
from setrec.errors import DataError, UnknownNodeError

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph. Arcs leaving node v are ``indices[indptr[v]:indptr[v + 1]]``, ascending; an undirected edge is two arcs.

    ``indptr`` int64 (V + 1,), ``indices`` int32 (arcs,), ``weights`` float32 (arcs,), lengths and never negative, or
    ``None`` if every arc has length 1. Self-loops are dropped, as they shorten no path; of parallel edges the shortest
    is kept. ``ids`` are the caller's names, ``None`` if nodes are named by row.
    """

    indptr: np.ndarray
    indices: np.ndarray
    weights: np.ndarray | None = None
    directed: bool = False
    ids: Sequence[Hashable] | None = None
    texts: Sequence[str] | None = None
    loops: int = 0
    parallels: int = 0

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def edges(self) -> int:
        """Number of edges; an undirected one counts once."""
        return len(self.indices) // (1 if self.directed else 2)

    @property
    def degrees(self) -> np.ndarray:
        """Out-degree of each node, int64 (V,)."""
        return np.diff(self.indptr)

    @cached_property
    def _row_of(self) -> dict[Hashable, int]:
        return {node: row for row, node in enumerate(self.ids or ())}

    def row(self, node: Hashable) -> int:
        """Return the row of a node by its id.

        Raises:
            UnknownNodeError: it is not in the graph.
        """
        if self.ids is None:
            if isinstance(node, int | np.integer) and 0 <= node < len(self):
                return int(node)
        elif node in self._row_of:
            return self._row_of[node]
        raise UnknownNodeError(f"unknown node {node!r}")

    def rows(self, nodes: Iterable[Hashable]) -> np.ndarray:
        """Return the rows of many nodes, int64."""
        return np.fromiter((self.row(node) for node in nodes), dtype=np.int64)

    def id(self, row: int) -> Hashable:
        """Return the id of a row."""
        return int(row) if self.ids is None else self.ids[row]

    def neighbours(self, row: int) -> np.ndarray:
        """Return the rows that the arcs of ``row`` lead to, ascending."""
        return self.indices[self.indptr[row] : self.indptr[row + 1]]

    @cached_property
    def matrix(self) -> sparse.csr_matrix:
        """Matrix of arc lengths, SciPy CSR (V, V)."""
        data = np.ones(len(self.indices), dtype=np.float32) if self.weights is None else self.weights
        return sparse.csr_matrix((data, self.indices, self.indptr), shape=(len(self), len(self)))

    @cached_property
    def adjacency(self) -> sparse.csr_matrix:
        """Binary adjacency matrix, float32 (V, V)."""
        return sparse.csr_matrix(
            (np.ones(len(self.indices), dtype=np.float32), self.indices, self.indptr), shape=(len(self), len(self))
        )

    @cached_property
    def reverse(self) -> Graph:
        """The graph with reversed arcs; an undirected graph itself."""
        if not self.directed:
            return self
        turned = self.matrix.T.tocsr()
        turned.sort_indices()
        weights = None if self.weights is None else turned.data
        return replace(self, indptr=turned.indptr.astype(np.int64), indices=turned.indices, weights=weights)

    @cached_property
    def undirected(self) -> Graph:
        """The graph without directions."""
        if not self.directed:
            return self
        source, target = self.arcs()
        return Graph.from_arrays(
            source, target, len(self), weights=self.weights, ids=self.ids, texts=self.texts
        )  # fmt: skip

    def arcs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return source and target row of every arc, int64."""
        return np.repeat(np.arange(len(self)), self.degrees), self.indices.astype(np.int64)

    def find(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return the position in ``indices`` of the arcs from ``source`` to ``target`` (rows, int (n,)), int64; -1 for
        none."""
        begin, end = self.arcs()
        every = begin * len(self) + end
        wanted = np.asarray(source, dtype=np.int64) * len(self) + target
        at = np.searchsorted(every, wanted)
        there = at < len(every)
        there[there] = every[at[there]] == wanted[there]
        return np.where(there, at, -1)

    def digests(self, arcs: np.ndarray) -> np.ndarray:
        """Return a 64-bit hash of the ends and length of each of the given arcs (positions in ``indices``)."""
        source = np.searchsorted(self.indptr, arcs, side="right") - 1
        length = np.zeros(len(arcs), np.uint64) if self.weights is None else self.weights[arcs].view(np.uint32)
        mixed = np.zeros(len(arcs), np.uint64)
        for part in (source, self.indices[arcs], length):
            mixed = (mixed ^ part.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        return mixed

    @cached_property
    def digest(self) -> int:
        """Sum of the hashes of all arcs, independent of their order: adding arcs adds their hashes."""
        with np.errstate(over="ignore"):
            return int(self.digests(np.arange(len(self.indices))).sum(dtype=np.uint64))

    @cached_property
    def components(self) -> np.ndarray:
        """Number of each node's (weakly) connected component, int32 (V,)."""
        numbers: np.ndarray = sparse.csgraph.connected_components(self.matrix, directed=False)[1]
        return numbers

    def without(self, pairs: np.ndarray) -> Graph:
        """Return the graph without the edges between the given pairs of rows, int (n, 2).

        Raises:
            DataError: a row outside the graph.
        """
        pairs = np.asarray(pairs).reshape(-1, 2)
        _check_edges(pairs[:, 0], pairs[:, 1], None, len(self))
        source, target = self.arcs()
        n = len(self)
        gone = pairs[:, 0].astype(np.int64) * n + pairs[:, 1]
        if not self.directed:
            gone = np.concatenate([gone, pairs[:, 1].astype(np.int64) * n + pairs[:, 0]])
        keep = ~np.isin(source * n + target, gone)
        degrees = np.bincount(source[keep], minlength=n)
        weights = None if self.weights is None else self.weights[keep]
        indptr = np.concatenate([[0], np.cumsum(degrees)])
        return replace(self, indptr=indptr, indices=self.indices[keep], weights=weights)

    def with_edges(
        self,
        source: np.ndarray,
        target: np.ndarray,
        weights: np.ndarray | None = None,
        new_ids: Sequence[Hashable] = (),
        new_texts: Sequence[str] | None = None,
    ) -> Graph:
        """Return the graph with additional edges between rows, and ``new_ids`` as rows V, V + 1, ... .

        Raises:
            DataError: as :meth:`from_arrays`, a new id that exists already, or weights although the graph has none.
        """
        if weights is not None and self.weights is None:
            raise DataError("the graph has no weights: new edges cannot have any")
        ids = None if self.ids is None else [*self.ids, *new_ids]
        if self.ids is None and list(new_ids) != list(range(len(self), len(self) + len(new_ids))):
            raise DataError(f"nodes are named by row: new ones must be named {len(self)}, {len(self) + 1}, ...")
        texts = None if self.texts is None else [*self.texts, *(new_texts or [""] * len(new_ids))]
        old_source, old_target = self.arcs()
        source, target = (np.asarray(end) if len(end) else np.empty(0, dtype=np.int64) for end in (source, target))
        if not self.directed:
            once = old_source < old_target
            old_source, old_target = old_source[once], old_target[once]
        lengths = None
        if self.weights is not None:
            old = self.weights if self.directed else self.weights[once]
            lengths = np.concatenate([old, np.ones(len(source)) if weights is None else weights])
        return Graph.from_arrays(
            np.concatenate([old_source, source]), np.concatenate([old_target, target]), len(self) + len(new_ids),
            weights=lengths, directed=self.directed, ids=ids, texts=texts,
        )  # fmt: skip

    @classmethod
    def from_arrays(
        cls,
        source: np.ndarray,
        target: np.ndarray,
        nodes: int,
        *,
        weights: np.ndarray | None = None,
        directed: bool = False,
        ids: Sequence[Hashable] | None = None,
        texts: Sequence[str] | None = None,
    ) -> Graph:
        """Build a graph from the rows of both ends of every edge, int (E,); an undirected edge may be given in one or
        both directions.

        Raises:
            DataError: no nodes, an end outside 0 .. nodes - 1, a negative or non-finite weight, ids that repeat or have
                different types, or another number of texts than nodes.
        """
        source, target = np.asarray(source), np.asarray(target)
        ids = None if ids is None else [_plain(node) for node in ids]
        _check_ids(ids, texts, nodes)
        _check_edges(source, target, weights, nodes)
        proper = source != target
        loops = int(len(source) - proper.sum())
        source, target = source[proper].astype(np.int32), target[proper].astype(np.int32)
        lengths = None if weights is None else np.asarray(weights, dtype=np.float32)[proper]
        if not directed:
            low, high = np.minimum(source, target), np.maximum(source, target)
            source, target = np.concatenate([low, high]), np.concatenate([high, low])
            lengths = None if lengths is None else np.concatenate([lengths, lengths])
        indptr, indices, kept = _compress(source, target, lengths, nodes)
        parallels = (len(source) - len(indices)) // (1 if directed else 2)
        return cls(indptr, indices, kept, directed, ids, texts, loops, parallels)

    @classmethod
    def from_edges(
        cls,
        edges: Iterable[tuple[Hashable, Hashable]],
        *,
        nodes: Sequence[Hashable] | None = None,
        weights: np.ndarray | None = None,
        directed: bool = False,
        texts: Sequence[str] | None = None,
    ) -> Graph:
        """Build a graph from pairs of ids. ``nodes`` fixes the order of rows and adds nodes without edges; by default
        rows follow the first occurrence.

        Raises:
            DataError: as :meth:`from_arrays`, or an edge to a node that is not in ``nodes``.
        """
        pairs = list(edges)
        for number, pair in enumerate(pairs):
            if len(pair) != 2:
                raise DataError(f"edge {number + 1} has {len(pair)} ends: {pair!r}")
        every = nodes if nodes is not None else dict.fromkeys(end for pair in pairs for end in pair)
        ids = [_plain(node) for node in every]
        row_of = {node: row for row, node in enumerate(ids)}
        for number, pair in enumerate(pairs):
            for end in pair:
                if end not in row_of:
                    raise DataError(f"edge {number + 1} ends at {end!r}, which is not a node")
        ends = np.array([(row_of[a], row_of[b]) for a, b in pairs], dtype=np.int64).reshape(-1, 2)
        return cls.from_arrays(
            ends[:, 0], ends[:, 1], len(ids), weights=weights, directed=directed, ids=ids, texts=texts
        )  # fmt: skip

    @classmethod
    def from_networkx(cls, graph: nx.Graph, *, weight: str | None = None, text: str | None = None) -> Graph:
        """Convert a NetworkX graph; ``weight`` and ``text`` name the attributes of edges and nodes to read.

        Raises:
            DataError: as :meth:`from_arrays`, an edge without the attribute, or no node with it.
        """
        pairs, lengths = [], []
        for a, b, given in graph.edges(data=True):
            pairs.append((a, b))
            if weight is not None:
                if weight not in given:
                    raise DataError(f"edge {a!r} to {b!r} has no attribute '{weight}'")
                try:
                    lengths.append(float(given[weight]))
                except (TypeError, ValueError):
                    raise DataError(f"'{weight}' of edge {a!r} to {b!r} is not a number: {given[weight]!r}") from None
        texts = None if text is None else as_texts(given.get(text) for _, given in graph.nodes(data=True))
        if text is not None and not any(text in given for _, given in graph.nodes(data=True)):
            raise DataError(f"no node has an attribute '{text}'")
        return cls.from_edges(
            pairs, nodes=list(graph), directed=graph.is_directed(), texts=texts,
            weights=None if weight is None else np.asarray(lengths, dtype=np.float64),
        )  # fmt: skip

    @classmethod
    def from_pyg(cls, data: Any, *, directed: bool | None = None, weight: str | None = "infer") -> Graph:
        """Convert a PyTorch Geometric ``Data`` or ``HeteroData``; nodes of the latter get ids (type, row).

        ``weight`` names the edge attribute with lengths; ``infer`` uses the first one present of ``edge_weight``,
        ``weight`` and ``edge_attr``; with ``None`` every edge has length 1. Edge types without it have length 1.
        ``directed``: ``None`` infers it from the data; ``HeteroData``, whose edge types often have only a nominal
        direction, is undirected. A list or array ``text`` of nodes becomes the graph's texts.

        Raises:
            DataError: as :meth:`from_arrays`; an attribute of edges with several columns, which is no length; no edges
                with an attribute that is named.
        """
        if hasattr(data, "node_types"):
            ids, ends, lengths = hetero_edges(data, weight)
            return cls.from_arrays(ends[0], ends[1], len(ids), weights=lengths, directed=bool(directed), ids=ids)
        ends, lengths = edge_arrays(data, "the data", weight)
        refuse_missing("the data", weight, lengths is not None)
        texts = data.get("text") if hasattr(data, "get") else None
        texts = None if texts is None or isinstance(texts, str) else as_texts(texts)
        nodes, way = int(data.num_nodes or 0), data.is_directed() if directed is None else directed
        if directed is None and not way and lengths is not None:
            # PyTorch Geometric compares both ways of an edge by its edge_attr, but not by other lengths.
            both = cls.from_arrays(ends[0], ends[1], nodes, weights=lengths, directed=True).matrix
            way = bool((both != both.T).nnz)
        return cls.from_arrays(ends[0], ends[1], nodes, weights=lengths, directed=way, texts=texts)


def _plain(node: Hashable) -> Hashable:
    """Convert NumPy scalars in an id to Python's types."""
    if isinstance(node, tuple):
        return tuple(_plain(part) for part in node)
    return node.item() if isinstance(node, np.generic) else node


def _check_ids(ids: Sequence[Hashable] | None, texts: Sequence[str] | None, nodes: int) -> None:
    if nodes < 1:
        raise DataError("the graph has no nodes")
    if nodes > np.iinfo(np.int32).max:
        raise DataError(f"{nodes} nodes are more than a graph can hold ({np.iinfo(np.int32).max})")
    if ids is not None:
        if len(ids) != nodes:
            raise DataError(f"{len(ids)} ids for {nodes} nodes")
        if any(node is None or node != node for node in ids):
            raise DataError("a node id is missing (None or NaN)")
        kinds = sorted({type(node).__name__ for node in ids})
        if len(kinds) > 1:
            raise DataError(f"node ids are of different types: {', '.join(kinds)}")
        if len(set(ids)) != nodes:
            seen: set[Hashable] = set()
            twice = next(node for node in ids if node in seen or seen.add(node))  # type: ignore[func-returns-value]
            raise DataError(f"node id {twice!r} repeats")
    if texts is not None and len(texts) != nodes:
        raise DataError(f"{len(texts)} texts for {nodes} nodes")


def _check_edges(source: np.ndarray, target: np.ndarray, weights: np.ndarray | None, nodes: int) -> None:
    if source.shape != target.shape or source.ndim != 1:
        raise DataError(f"edges need as many sources as targets, not {source.shape} and {target.shape}")
    for end in (source, target):
        if len(end) and not np.issubdtype(end.dtype, np.integer):
            raise DataError(f"ends of edges must be rows (integers), not {end.dtype}")
        outside = (end < 0) | (end >= nodes)
        if outside.any():
            number = int(outside.argmax())
            raise DataError(f"edge {number + 1} ends at node {end[number]}, outside 0 .. {nodes - 1}")
    if weights is None:
        return
    with np.errstate(over="ignore"):
        lengths = np.asarray(weights).astype(np.float32)
    if lengths.shape != source.shape:
        raise DataError(f"{len(lengths)} weights for {len(source)} edges")
    exact, least = np.asarray(weights).astype(np.float64), np.finfo(np.float32).tiny
    bad = ~np.isfinite(lengths) | (exact < 0)
    small = (exact > 0) & (exact < least)
    for wrong, reason in ((bad, "finite and not negative"), (small, f"0 or at least {least:.1e}, float32's least")):
        if wrong.any():
            number = int(wrong.argmax())
            given = np.asarray(weights)[number]
            raise DataError(f"edge {number + 1} has weight {given}; a length is {reason}")


def _compress(
    source: np.ndarray, target: np.ndarray, weights: np.ndarray | None, nodes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Sort arcs and merge parallel ones; SciPy's counting sort is linear and compiled."""
    if weights is None:
        data = np.ones(len(source), dtype=np.int8)
        csr = sparse.csr_matrix((data, (source, target)), shape=(nodes, nodes))
        csr.sum_duplicates()
        return csr.indptr.astype(np.int64), csr.indices.astype(np.int32, copy=False), None
    order = np.lexsort((weights, target, source))
    source, target, weights = source[order], target[order], weights[order]
    first = np.ones(len(source), dtype=bool)
    first[1:] = (source[1:] != source[:-1]) | (target[1:] != target[:-1])
    indptr = np.concatenate([[0], np.cumsum(np.bincount(source[first], minlength=nodes))])
    return indptr.astype(np.int64), target[first], weights[first]
