"""Inverted lists: items in cells around centroids; a query probes the cells with the largest inner products.

FAISS trains the cells of an inner-product index on directions alone and assigns items by inner product. Codes of
unequal norm need cells of k-means by distance, which group items of similar direction *and* norm, searched in the order
of the inner product with their centroids. Coordinates are those of :mod:`serving.retrieval.whitening`.

Lists hold the codes as they are, or the difference to the centroid: in 8 bits a number, or in 4 bits for each pair of
numbers after OPQ's rotation, which halves how many candidates have to be re-scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from serving.retrieval import whitening
from serving.retrieval.exact import as_selector
from serving.retrieval.policy import RetrieverSettings

_PER_CELL, _ROUNDS = 64, 10
"""Number of training items per cell for k-means (FAISS warns below 39), and number of iterations."""
_OPQ_ROWS, _OPQ_ROUNDS = 8192, 4
"""OPQ is fitted on few rows, since its time grows with them."""
_COUNTED = 1 << 16
"""Maximum number of a filter's rows that are counted by cell; for a wider filter, this many are sampled evenly."""
_LISTED = 4
# What a filtered query costs, in rows gathered and scored exactly (0.2 us each; 1M codes of 192 numbers, one core of an
# AMD EPYC): ordering and counting cells, each code in a probed cell, and each of these that the filter allows.
_FIXED, _LOOKED_AT, _ALLOWED = (
    2500,
    {"ivf": 0.05, "ivf_sq8": 0.05, "ivf_pq": 0.08},
    {"ivf": 0.5, "ivf_sq8": 0.3, "ivf_pq": 0.0},
)


class Ivf:
    """An inverted file index, with the order in which a query probes its cells."""

    def __init__(self, index: Any, kind: str) -> None:
        self.index = index  # owns the memory of the other attributes
        self._lists = _lists_of(index)
        self._looked_at, self._allowed = _LOOKED_AT[kind], _ALLOWED[kind]
        self._matrix = _matrix_of(index)
        self._to_query = whitening.for_queries(self._matrix)
        self._centroids = self._lists.quantizer.reconstruct_n(0, self._lists.nlist)
        self.sizes = np.array([self._lists.invlists.list_size(c) for c in range(self._lists.nlist)])
        self._cell_of: np.ndarray | None = None

    @classmethod
    def build(
        cls, codes: np.ndarray, kind: str, matrix: np.ndarray, settings: RetrieverSettings, like: Ivf | None = None
    ) -> Ivf:
        """Index ``codes`` float32 (I, D) as ``kind``; ``like``, of the same codes and matrix, lends its cells."""
        table = codes @ matrix.T
        if like is None:
            centroids = _cells(table, settings)
        else:
            centroids = like._centroids @ np.linalg.inv(like._matrix).T @ matrix.T
        if kind == "ivf_pq":
            rotation = _rotation(table, settings.seed)
            matrix, table, centroids = rotation @ matrix, table @ rotation.T, centroids @ rotation.T
        lists = _empty(kind, np.ascontiguousarray(centroids, dtype=np.float32))
        lists.train(_sample(table, _PER_CELL * len(centroids), settings.seed))
        lists.add(table)
        del table
        index = faiss.IndexPreTransform(_transform_of(matrix), lists)
        index.ntotal = lists.ntotal
        return cls(index, kind)

    def __len__(self) -> int:
        return int(self._lists.ntotal)

    @property
    def cell_of(self) -> np.ndarray:
        """The cell of each row, int32 (I,); read from the lists on first use."""
        if self._cell_of is None:
            cells, lists = np.empty(len(self), dtype=np.int32), self._lists.invlists
            for cell, size in enumerate(self.sizes.tolist()):
                if size:
                    ids = lists.get_ids(cell)
                    cells[faiss.rev_swig_ptr(ids, size)] = cell
                    lists.release_ids(cell, ids)
            self._cell_of = cells
        return self._cell_of

    def ranks(self, queries: np.ndarray, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Return the ranks of the cells of ``rows`` for each query, float32 (Q, D), concatenated."""
        cell_ranks = []
        for query, wanted in zip(queries, rows, strict=True):
            rank = np.empty(len(self.sizes), dtype=np.int64)
            rank[np.argsort(-(self._centroids @ self._turned(query)), kind="stable")] = np.arange(len(self.sizes))
            cell_ranks.append(rank[self.cell_of[wanted]])
        return np.concatenate(cell_ranks)

    def propose(self, query: np.ndarray, number: int, effort: int, mask: np.ndarray | None = None) -> np.ndarray | None:
        """Return up to ``number`` candidate rows for ``query``, float32 (D,), of those in ``mask``, bool (I,).

        ``effort`` cells are probed. With a mask, cells without allowed rows are skipped, and probing ends once as many
        allowed rows were seen as that many cells contain on average: a filter may keep rows far from the query.
        ``None`` means that exact search of the allowed rows is cheaper.
        """
        turned = self._turned(query)
        near = self._centroids @ turned
        if mask is None:
            cells, selector = _top(near, min(effort, len(near))), None
        else:
            selected = self._cells_under(near, effort, mask)
            if selected is None:
                return None
            cells, selector = selected, as_selector(mask)
        return self._search(turned, number, cells, near, selector)

    def write(self, file: Path) -> None:
        """Write FAISS's own format."""
        faiss.write_index(self.index, str(file))

    def _turned(self, query: np.ndarray) -> np.ndarray:
        turned: np.ndarray = query @ self._to_query
        return turned

    def _cells_under(self, near: np.ndarray, effort: int, mask: np.ndarray) -> np.ndarray | None:
        allowed = int(np.count_nonzero(mask))
        if _FIXED + self._looked_at * effort / len(near) * len(self) >= allowed:
            return None  # before counting cells, which takes as long as exact search of a narrow filter
        step = max(1, allowed // _COUNTED)
        # For a narrow filter every row; for a wide one evenly spaced rows, without listing all of them first.
        rows = np.flatnonzero(mask)[::step] if step < _LISTED else step * np.flatnonzero(mask[::step])
        counts = step * np.bincount(self.cell_of[rows], minlength=len(near))
        order = np.argsort(-near, kind="stable")
        if step == 1:
            order = order[counts[order] > 0]
        seen = np.cumsum(counts[order])
        stop = max(int(np.searchsorted(seen, effort / len(near) * allowed)) + 1, min(effort, len(order)))
        cells = order[:stop]
        cost = _FIXED + self._looked_at * self.sizes[cells].sum() + self._allowed * seen[min(stop, len(seen)) - 1]
        return cells if cost < allowed else None

    def _search(
        self, query: np.ndarray, number: int, cells: np.ndarray, near: np.ndarray, selector: faiss.IDSelector | None
    ) -> np.ndarray:
        scores, rows = np.empty(number, np.float32), np.empty(number, np.int64)
        cells = np.ascontiguousarray(cells, dtype=np.int64)
        centre = np.ascontiguousarray(near[cells], dtype=np.float32)
        parameters = faiss.SearchParametersIVF(nprobe=len(cells), sel=selector)  # type: ignore[call-arg]
        arrays = [faiss.swig_ptr(a) for a in (cells, centre, scores, rows)]
        query = np.ascontiguousarray(query, dtype=np.float32)
        self._lists.search_preassigned_c(1, faiss.swig_ptr(query), number, *arrays, False, parameters)
        return rows[rows >= 0]


def _empty(kind: str, centroids: np.ndarray) -> Any:
    """Return empty lists around ``centroids`` (cells, D). Items are assigned to the nearest centroid by distance."""
    cells, width = centroids.shape
    near = faiss.IndexFlatL2(width)
    near.add(centroids)
    lists: Any
    product = faiss.METRIC_INNER_PRODUCT
    if kind == "ivf_sq8":
        bits = faiss.ScalarQuantizer.QT_8bit
        lists = faiss.IndexIVFScalarQuantizer(near, width, cells, bits, product, True)
    elif kind == "ivf_pq":
        lists = faiss.IndexIVFPQFastScan(near, width, cells, _parts(width), 4, product)
        lists.by_residual = True
    else:
        lists = faiss.IndexIVFFlat(near, width, cells, product)
    return lists


def _cells(table: np.ndarray, settings: RetrieverSettings) -> np.ndarray:
    """Return the centroids of k-means by distance."""
    items, width = table.shape
    count = min(settings.nlist or round(4 * sqrt(items)), items)
    means = faiss.Kmeans(
        width, count, niter=_ROUNDS, seed=settings.seed, max_points_per_centroid=_PER_CELL, min_points_per_centroid=1
    )
    means.train(table)
    return np.asarray(means.centroids)


def _rotation(table: np.ndarray, seed: int) -> np.ndarray:
    """Return OPQ's rotation (D, D) for sub-quantisers of two dimensions and 4 bits."""
    width = table.shape[1]
    pairs = _parts(width)
    opq = faiss.OPQMatrix(width, pairs)
    opq.pq, opq.niter, opq.niter_pq_0 = faiss.ProductQuantizer(width, pairs, 4), _OPQ_ROUNDS, 2 * _OPQ_ROUNDS
    opq.train(_sample(table, _OPQ_ROWS, seed))
    return faiss.vector_to_array(opq.A).reshape(width, width)


def _parts(width: int) -> int:
    """Return the number of sub-quantisers: of two dimensions each, or of one if the width is odd."""
    return width if width % 2 else width // 2


def _sample(table: np.ndarray, rows: int, seed: int) -> np.ndarray:
    if len(table) <= rows:
        return table
    return table[np.sort(np.random.default_rng(seed).choice(len(table), rows, replace=False))]


def _top(near: np.ndarray, count: int) -> np.ndarray:
    """Return the positions of the ``count`` largest entries in descending order, deterministically."""
    if count < len(near):
        some = np.argpartition(-near, count - 1)[:count]
    else:
        some = np.arange(len(near))
    return some[np.argsort(-near[some], kind="stable")]


def _transform_of(matrix: np.ndarray) -> faiss.LinearTransform:
    """Convert a matrix (D, D) that multiplies columns to FAISS's transform."""
    width = len(matrix)
    transform = faiss.LinearTransform(width, width, False)
    faiss.copy_array_to_vector(np.ascontiguousarray(matrix, dtype=np.float32).ravel(), transform.A)
    transform.is_trained = True
    return transform


def _matrix_of(index: Any) -> np.ndarray:
    """Return the matrix (D, D) of an index's first transform."""
    transform: Any = faiss.downcast_VectorTransform(index.chain.at(0))
    return faiss.vector_to_array(transform.A).reshape(index.d, index.d)


def _lists_of(index: Any) -> Any:
    """Return the inverted lists behind a transform, valid as long as ``index`` exists."""
    return faiss.downcast_index(index.index)
