"""A graph of near neighbours by inner product, which a query walks along (HNSW)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np

from serving.retrieval import whitening
from serving.retrieval.policy import RetrieverSettings

_ALIKE = 4.0


class Hnsw:
    """Items in FAISS's graph, in the coordinates of :mod:`serving.retrieval.whitening`, entered in an order drawn from
    the seed.

    Where norms are alike (the largest at most ``_ALIKE`` times the median), items are linked by distance and the graph
    is walked by inner product: linked by inner product, everything points at the longest vectors and most items cannot
    be reached (recall@10 0.68 against 0.995 at ef_search 256; 12 thousand items). Where norms are not, nothing would
    lead to the long vectors, and items are linked by inner product.

    Filtered queries are searched exactly: what a filter leaves may lie where no link leads (recall 0.6 with 26 of 40
    clusters allowed).
    """

    def __init__(self, index: Any) -> None:
        self.index = index  # owns what the others look into
        self._to_query = whitening.for_queries(matrix_of(index))
        self._graph = inner_of(index)

    @classmethod
    def build(cls, codes: np.ndarray, matrix: np.ndarray, settings: RetrieverSettings) -> Hnsw:
        """Index ``codes`` float32 (I, D). The order moves recall, so it is drawn and not the catalogue's."""
        items, width = codes.shape
        norms = np.linalg.norm(codes @ matrix.T, axis=1)
        alike = bool(norms.max() <= _ALIKE * np.median(norms))
        graph = faiss.IndexHNSWFlat(width, settings.m, faiss.METRIC_L2 if alike else faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = settings.ef_construction
        named = faiss.IndexIDMap(graph)
        index = faiss.IndexPreTransform(transform_of(matrix), named)
        order = np.random.default_rng(settings.seed).permutation(items)
        index.add_with_ids(np.ascontiguousarray(codes[order]), order)
        for part in (index, named, graph, faiss.downcast_index(graph.storage)):
            part.metric_type = faiss.METRIC_INNER_PRODUCT
        graph.hnsw.is_similarity = True  # type: ignore[attr-defined]
        return cls(index)

    def propose(self, query: np.ndarray, number: int, effort: int, mask: np.ndarray | None = None) -> np.ndarray | None:
        """Up to ``number`` rows for ``query`` float32 (D,); ``None``: under a ``mask``, exact search finds more."""
        if mask is not None:
            return None
        parameters = faiss.SearchParametersHNSW(efSearch=max(effort, number))  # type: ignore[attr-defined]
        rows = self._graph.search((query @ self._to_query)[None], number, params=parameters)[1][0]
        return rows[rows >= 0]

    def write(self, file: Path) -> None:
        """Write FAISS's own format."""
        faiss.write_index(self.index, str(file))


def transform_of(matrix: np.ndarray) -> faiss.LinearTransform:
    """FAISS's form of a matrix (D, D) that multiplies columns."""
    width = len(matrix)
    transform = faiss.LinearTransform(width, width, False)
    faiss.copy_array_to_vector(np.ascontiguousarray(matrix, dtype=np.float32).ravel(), transform.A)
    transform.is_trained = True
    return transform


def matrix_of(index: Any) -> np.ndarray:
    """The matrix (D, D) of an index's first transform."""
    transform: Any = faiss.downcast_VectorTransform(index.chain.at(0))
    return faiss.vector_to_array(transform.A).reshape(index.d, index.d)


def inner_of(index: Any) -> Any:
    """The index behind a transform, which lives as long as ``index`` does."""
    return faiss.downcast_index(index.index)
