"""Inverted lists: items in cells around centroids; a query probes the cells with the largest inner products.

FAISS trains the cells of an inner-product index on directions alone and assigns items by inner product. Codes of
unequal norm need cells of k-means by distance, which group items of similar direction *and* norm, searched in the order
of the inner product with their centroids. Coordinates are those of :mod:`serving.retrieval.whitening`.

Codes have fewer directions that matter than numbers, so cells are formed in the principal components that keep nearly
all of the variance, at least a third of the width. Lists hold the codes as they are, or the difference to the centroid:
in 8 bits a number, or the principal components alone after OPQ's rotation, in 4 bits each (for each pair if there are
more components than half the width). At 1 million codes of 192 numbers, 4 bits for each of 64 components are found
among a quarter as many candidates as 4 bits for each pair of all 192, in two thirds of the memory.

Codes are read in batches, so that building needs memory for the training sample only, beside mapped codes.
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

_PER_CELL, _ROUNDS, _LAST_ROUNDS = 64, 10, 2
"""Number of training items per cell for k-means (FAISS warns below 39), and numbers of iterations."""
_MOST_CELLS = 8192
"""Bounds the time of a build, which assigns every item to one of the cells, and of a query, to which a cell costs as
much as 1,400 of its codes: at 10 million items 12,649 cells were no faster."""
_OPQ_ROWS, _OPQ_ROUNDS = 8192, 4
"""OPQ is fitted on few rows, since its time grows with them."""
_KEPT = 0.99
"""Share of the variance of whitened codes that their principal components keep."""
_PCA_ROWS, _BATCH = 1 << 16, 1 << 16
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
        self.index, self._kind = index, kind  # the index owns the memory of the other attributes
        self._lists = _lists_of(index)
        self._looked_at, self._allowed = _LOOKED_AT[kind], _ALLOWED[kind]
        self._matrix, self._components = _matrices_of(index)
        self._to_query = np.ascontiguousarray(whitening.for_queries(self._matrix) @ self._components.T)
        self._centroids = self._lists.quantizer.reconstruct_n(0, self._lists.nlist)
        self._cell_of: np.ndarray | None = None
        self._counted()

    @classmethod
    def build(
        cls, codes: np.ndarray, kind: str, matrix: np.ndarray, settings: RetrieverSettings, like: Ivf | None = None
    ) -> Ivf:
        """Index ``codes`` float32 (I, D) as ``kind``; ``like``, of the same codes and matrix, lends its cells."""
        count = min(settings.nlist or round(min(4 * sqrt(len(codes)), _MOST_CELLS)), len(codes))
        sample = _sample(codes, _PER_CELL * count, settings.seed) @ matrix.T
        components = _components(_sample(sample, _PCA_ROWS, settings.seed)) if like is None else like._components
        centroids = _cells(sample @ components.T, count, settings) if like is None else like._centroids
        if kind == "ivf_pq":
            rotation = _rotation(sample @ components.T, len(matrix), settings.seed)
            components, centroids = rotation @ components, centroids @ rotation.T
        else:
            components, centroids = np.eye(len(matrix), dtype=np.float32), centroids @ components
        lists = _empty(kind, np.ascontiguousarray(centroids, dtype=np.float32), len(matrix))
        lists.train(sample @ components.T)
        del sample
        index = faiss.IndexPreTransform(_transform_of(components), lists)
        index.prepend_transform(_transform_of(matrix))
        built = cls(index, kind)
        built.add(codes)
        return built

    def empty(self) -> Ivf:
        """Return an index without items that has the same cells and quantiser."""
        lists = _empty(self._kind, self._centroids, len(self._matrix))
        for part in ("pq", "sq"):
            if hasattr(lists, part):
                setattr(lists, part, getattr(self._lists, part))
        lists.is_trained = True
        index = faiss.IndexPreTransform(_transform_of(self._components), lists)
        index.prepend_transform(_transform_of(self._matrix))
        return Ivf(index, self._kind)

    def add(self, codes: np.ndarray) -> None:
        """Append ``codes`` float32 (n, D), which may be memory-mapped."""
        for start in range(0, len(codes), _BATCH):
            self.index.add(np.ascontiguousarray(codes[start : start + _BATCH], dtype=np.float32))
        self._counted()

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

    def _counted(self) -> None:
        self.sizes = np.array([self._lists.invlists.list_size(c) for c in range(self._lists.nlist)])
        self._cell_of = None

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


def _empty(kind: str, centroids: np.ndarray, width: int) -> Any:
    """Return empty lists around ``centroids`` (cells, W), for codes of ``width`` numbers. Items are assigned to the
    nearest centroid by distance."""
    cells, kept = centroids.shape
    near = faiss.IndexFlatL2(kept)
    near.add(centroids)
    lists: Any
    product = faiss.METRIC_INNER_PRODUCT
    if kind == "ivf_sq8":
        bits = faiss.ScalarQuantizer.QT_8bit
        lists = faiss.IndexIVFScalarQuantizer(near, kept, cells, bits, product, True)
    elif kind == "ivf_pq":
        lists = faiss.IndexIVFPQFastScan(near, kept, cells, _parts(kept, width), 4, product)
        lists.by_residual = True
    else:
        lists = faiss.IndexIVFFlat(near, kept, cells, product)
    return lists


def _components(table: np.ndarray) -> np.ndarray:
    """Return the principal components (W, D), an even number where D is even."""
    values, vectors = np.linalg.eigh(np.cov(table, rowvar=False))
    share = np.cumsum(values[::-1]) / max(float(values.sum()), 1e-30)
    width = table.shape[1]
    count = max(int(np.searchsorted(share, _KEPT)) + 1, -(-width // 3))
    return np.ascontiguousarray(vectors[:, ::-1].T[: min(count + count % 2, width)], dtype=np.float32)


def _cells(table: np.ndarray, count: int, settings: RetrieverSettings) -> np.ndarray:
    """Return about ``count`` centroids of k-means by distance: in groups of items first, whose centroids start a few
    iterations over all items. At 4,000 cells this takes a third of the time of k-means from random items, and as many
    cells have to be probed."""
    kept = table.shape[1]
    table = np.ascontiguousarray(table)

    def means(items: np.ndarray, cells: int, rounds: int, start: np.ndarray | None = None) -> np.ndarray:
        clustering = faiss.Kmeans(
            kept, cells, niter=rounds, seed=settings.seed, max_points_per_centroid=_PER_CELL, min_points_per_centroid=1
        )
        clustering.train(items, init_centroids=start)
        return np.asarray(clustering.centroids)

    groups = round(sqrt(count))
    group = faiss.knn(table, means(table, groups, _ROUNDS), 1)[1][:, 0]
    parts = [table[group == g] for g in range(groups)]
    shares = [max(1, round(count * len(part) / len(table))) for part in parts]
    each = [means(part, cells, _ROUNDS) for part, cells in zip(parts, shares, strict=True) if len(part)]
    start = np.concatenate(each)
    return means(table, len(start), _LAST_ROUNDS, start)


def _rotation(table: np.ndarray, width: int, seed: int) -> np.ndarray:
    """Return OPQ's rotation (W, W) of components of codes of ``width`` numbers, for sub-quantisers of 4 bits."""
    kept = table.shape[1]
    parts = _parts(kept, width)
    opq = faiss.OPQMatrix(kept, parts)
    opq.pq, opq.niter, opq.niter_pq_0 = faiss.ProductQuantizer(kept, parts, 4), _OPQ_ROUNDS, 2 * _OPQ_ROUNDS
    opq.train(_sample(table, _OPQ_ROWS, seed))
    return faiss.vector_to_array(opq.A).reshape(kept, kept)


def _parts(kept: int, width: int) -> int:
    """Return the number of sub-quantisers, of one component each; of two if more than half of the width is kept."""
    return kept if kept % 2 or 2 * kept <= width else kept // 2


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
    """Convert a matrix (W, D) that multiplies columns to FAISS's transform."""
    kept, width = matrix.shape
    transform = faiss.LinearTransform(width, kept, False)
    faiss.copy_array_to_vector(np.ascontiguousarray(matrix, dtype=np.float32).ravel(), transform.A)
    transform.is_trained = True
    return transform


def _matrices_of(index: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the whitening (D, D) and the components (W, D) of an index; an index without the latter keeps all."""
    found: list[Any] = [faiss.downcast_VectorTransform(index.chain.at(at)) for at in range(index.chain.size())]
    matrices = [faiss.vector_to_array(one.A).reshape(one.d_out, one.d_in) for one in found]
    return matrices[0], matrices[1] if len(matrices) > 1 else np.eye(index.d, dtype=np.float32)


def _lists_of(index: Any) -> Any:
    """Return the inverted lists behind the transforms, valid as long as ``index`` exists."""
    return faiss.downcast_index(index.index)
