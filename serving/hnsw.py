"""A graph of near neighbours by inner product, which a query walks along (HNSW)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np

from serving import metric
from serving.exact import as_selector
from serving.policy import RetrieverSettings


class Hnsw:
    """Items in FAISS's graph, in the coordinates of ``serving.metric``, entered in an order drawn from the seed.

    The alternative, an exact reduction of inner products to distances by one more coordinate sqrt(M^2 - |x|^2), M the
    largest norm, suits norms that vary badly: one item of large norm makes that coordinate outweigh all others.
    """

    def __init__(self, index: Any) -> None:
        self.index = index  # owns what the others look into
        self._to_query = metric.for_queries(matrix_of(index))
        self._graph = inner_of(index)

    @classmethod
    def build(cls, codes: np.ndarray, matrix: np.ndarray, settings: RetrieverSettings) -> Hnsw:
        """Index ``codes`` float32 (I, D). The order moves recall, so it is drawn and not the catalogue's."""
        items, width = codes.shape
        graph = faiss.IndexHNSWFlat(width, settings.m, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = settings.ef_construction
        index = faiss.IndexPreTransform(transform_of(matrix), faiss.IndexIDMap(graph))
        order = np.random.default_rng(settings.seed).permutation(items)
        index.add_with_ids(np.ascontiguousarray(codes[order]), order)
        return cls(index)

    def propose(self, query: np.ndarray, number: int, effort: int, mask: np.ndarray | None = None) -> np.ndarray:
        """Up to ``number`` rows for ``query`` float32 (D,), of those that ``mask`` bool (I,) allows."""
        selector = None if mask is None else as_selector(mask)
        parameters = faiss.SearchParametersHNSW(efSearch=max(effort, number), sel=selector)  # type: ignore[attr-defined]
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
