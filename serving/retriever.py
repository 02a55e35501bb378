"""Find the items with the largest inner products: FAISS proposes candidates, float64 arithmetic decides.

Maximum inner product is not nearest neighbour: items' norms differ. Every index here uses FAISS's inner-product
metric end to end. The exact reduction to distances by one more coordinate sqrt(M^2 - |x|^2), M the largest norm, was
measured as the alternative for HNSW and lost: one item of large norm makes that coordinate outweigh all others (20,000
items with log-normal norms, sigma 0.3, clustered, ef_search 256: recall@10 0.90 against 1.00; without clusters 0.11
against 0.996).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
from pydantic import Field, ValidationError

from setrec.atomic import atomic_file
from setrec.errors import BundleError
from setrec.settings import Settings

INDEX, META = "index.faiss", "retriever.json"
_CHUNK = 1 << 16


class RetrieverSettings(Settings):
    """How candidates are found. Every kind ends in the same exact re-scoring.

    ``exact`` up to some 100 thousand items; ``hnsw`` and ``ivf`` beyond, where recall depends on the data: read the
    audit. ``oversample`` candidates per item asked for are re-scored. HNSW: ``m`` links per item (8 m bytes each),
    ``ef_construction`` build effort, ``ef_search`` search effort. IVF: ``nlist`` cells (``null``: 4 sqrt(I)),
    ``nprobe`` of them searched.
    """

    kind: Literal["exact", "hnsw", "ivf"] = "exact"
    oversample: int = Field(default=4, ge=1, le=100)
    m: int = Field(default=32, ge=2, le=256)
    ef_construction: int = Field(default=200, ge=8)
    ef_search: int = Field(default=256, ge=1)
    nlist: int | None = Field(default=None, ge=1)
    nprobe: int = Field(default=64, ge=1)


class _Meta(Settings):
    settings: RetrieverSettings
    dimension: int
    count: int
    metric: int


@dataclass(frozen=True)
class Hits:
    """Items of one query, best first: ``rows`` int64 (k,), ``scores`` float64 (k,)."""

    rows: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Audit:
    """Recall@k against exact search, mean over ``queries``, with a 95% interval (Wilson, conservative for means)."""

    recall: float
    low: float
    high: float
    queries: int
    k: int


class Retriever:
    """An index over item codes float32 (I, D) that answers with exact scores."""

    def __init__(self, index: faiss.Index, codes: np.ndarray, settings: RetrieverSettings) -> None:
        self.index, self.codes, self.settings = index, codes, settings
        squared = np.einsum("id,id->i", codes, codes, dtype=np.float64)
        self._largest = float(np.sqrt(squared.max(initial=0.0)))

    @classmethod
    def build(cls, codes: np.ndarray, settings: RetrieverSettings) -> Retriever:
        """Index ``codes`` float32 (I, D); the same codes and settings give the same index."""
        faiss.omp_set_num_threads(1)
        codes = np.ascontiguousarray(codes, dtype=np.float32)
        index = _empty(codes, settings)
        index.add(codes)
        return cls(index, codes, settings)

    def __len__(self) -> int:
        return len(self.codes)

    def search(
        self, queries: np.ndarray, k: int | Sequence[int], excluded: Sequence[np.ndarray] | None = None
    ) -> list[Hits]:
        """The ``k`` (or ``k[b]``) best items of each query float32 (B, D) outside ``excluded[b]`` (item rows).

        Always min(k, items left) items, in order of score, equal scores by smaller row. What a query gets does not
        depend on the queries beside it.
        """
        # OpenMP keeps this per calling thread, so it is set here and not once at import: a search on an executor's
        # thread took 16 ms with two threads against 0.16 ms with one (12,000 x 192, two cores).
        faiss.omp_set_num_threads(1)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        banned = [np.unique(e) for e in excluded] if excluded is not None else [np.empty(0, np.int64)] * len(queries)
        left = [len(self) - len(rows) for rows in banned]
        ks = np.minimum(np.broadcast_to(np.asarray(k), len(queries)), left)
        wanted = np.array([self._candidates(int(n), len(rows)) for n, rows in zip(ks, banned, strict=True)])
        hits: list[Hits] = [Hits(np.empty(0, np.int64), np.empty(0))] * len(queries)
        for number in np.unique(wanted):
            members = np.flatnonzero(wanted == number)
            scores, rows = self.index.search(queries[members], int(number), params=self._parameters(int(number)))
            for at, b in enumerate(members):
                hits[b] = self._settle(queries[b], int(ks[b]), banned[b], rows[at], scores[at])
        return hits

    def audit(self, queries: np.ndarray, k: int) -> Audit:
        """Recall@k of ``search`` on queries float32 (B, D) of the model; an item tied with the k-th best counts."""
        hit = 0.0
        found = self.search(queries, k)
        for query, hits in zip(np.asarray(queries, dtype=np.float32), found, strict=True):
            best = self._exact(query, k, np.empty(0, np.int64)).scores
            hit += float((hits.scores >= best[-1]).sum()) / len(best)
        recall = hit / len(found)
        return Audit(recall, *_wilson(recall, len(found)), len(found), k)

    def save(self, directory: str | Path) -> None:
        """Write ``index.faiss`` and ``retriever.json``, each as a whole."""
        meta = _Meta(
            settings=self.settings, dimension=self.index.d, count=self.index.ntotal, metric=self.index.metric_type
        )
        with atomic_file(Path(directory) / INDEX) as temporary:
            faiss.write_index(self.index, str(temporary))
        with atomic_file(Path(directory) / META) as temporary:
            temporary.write_text(meta.model_dump_json(indent=2))

    @classmethod
    def load(cls, directory: str | Path, codes: np.ndarray) -> Retriever:
        """Read what ``save`` wrote, over the same ``codes``.

        Raises:
            BundleError: a file is missing or damaged, or the index does not fit the codes.
        """
        file = Path(directory) / INDEX
        try:
            meta = _Meta.model_validate_json((Path(directory) / META).read_bytes())
            index = faiss.read_index(str(file))
        except (OSError, ValidationError, RuntimeError) as error:
            raise BundleError(f"{directory}: no readable index") from error
        expected = (codes.shape[1], len(codes), faiss.METRIC_INNER_PRODUCT)
        for found in ((index.d, index.ntotal, index.metric_type), (meta.dimension, meta.count, meta.metric)):
            if found != expected:
                raise BundleError(f"{file}: (dimension, items, metric) is {found}, the codes need {expected}")
        return cls(index, codes, meta.settings)

    def _candidates(self, k: int, banned: int) -> int:
        """How many to ask the index for: a power of two, so that queries share a search and never sway each other."""
        return min(1 << (self._kept(max(k, 0)) + banned - 1).bit_length(), len(self))

    def _kept(self, k: int) -> int:
        """How many candidates are re-scored for an answer of ``k``; one more than asked for shows a tie."""
        return k * self.settings.oversample + 1

    def _parameters(self, number: int) -> faiss.SearchParameters | None:
        s = self.settings
        if s.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=max(s.ef_search, number))  # type: ignore[attr-defined]
        return faiss.SearchParametersIVF(nprobe=s.nprobe) if s.kind == "ivf" else None  # type: ignore[call-arg]

    def _settle(self, query: np.ndarray, k: int, banned: np.ndarray, rows: np.ndarray, scores: np.ndarray) -> Hits:
        """The exact best k among candidates; over all items where the candidates cannot be trusted to hold them."""
        if k <= 0:
            return Hits(np.empty(0, np.int64), np.empty(0))
        kept = np.flatnonzero((rows >= 0) & ~np.isin(rows, banned))[: self._kept(k)]
        if len(kept) < k:
            return self._exact(query, k, banned)
        hits = _best(rows[kept], self._scores(query, rows[kept]), k)
        # Nothing left out is better than the worst candidate kept. Where that one ties with the last item of the
        # answer, an item of a smaller row may be among those left out.
        left_out = len(self) - len(banned) > len(kept)
        if self.settings.kind == "exact" and left_out and scores[kept[-1]] >= hits.scores[-1] - self._slack(query):
            return self._exact(query, k, banned)
        return hits

    def _exact(self, query: np.ndarray, k: int, banned: np.ndarray) -> Hits:
        """The best ``k`` of all items: a float32 product sorts out the hopeless, float64 orders the rest."""
        rough = self.codes @ query
        rough[banned] = -np.inf
        k = min(k, len(rough) - len(banned))
        threshold = np.partition(rough, len(rough) - k)[len(rough) - k]
        rows = np.flatnonzero(rough >= threshold - self._slack(query))
        rows = rows[~np.isin(rows, banned)]
        return _best(rows, self._scores(query, rows), k)

    def _scores(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Inner products in float64; equal codes get equal scores wherever they stand."""
        wide = query.astype(np.float64)
        parts = [(self.codes[rows[i : i + _CHUNK]] * wide).sum(axis=1) for i in range(0, len(rows), _CHUNK)]
        return np.concatenate(parts) if parts else np.empty(0)

    def _slack(self, query: np.ndarray) -> float:
        """More than the rounding error of a float32 inner product."""
        return 4e-6 * float(np.linalg.norm(query)) * self._largest


def _empty(codes: np.ndarray, s: RetrieverSettings) -> faiss.Index:
    """An index of the kind asked for, trained where it has to be, still without items."""
    items, width = codes.shape
    if s.kind == "hnsw":
        graph = faiss.IndexHNSWFlat(width, s.m, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = s.ef_construction
        return graph
    flat = faiss.IndexFlatIP(width)
    if s.kind == "exact":
        return flat
    cells = min(s.nlist or round(4 * sqrt(items)), items)
    inverted = faiss.IndexIVFFlat(flat, width, cells, faiss.METRIC_INNER_PRODUCT)
    inverted.cp.min_points_per_centroid = 1  # small catalogues are no reason for FAISS to print warnings
    inverted.train(codes)
    return inverted


def _best(rows: np.ndarray, scores: np.ndarray, k: int) -> Hits:
    order = np.lexsort((rows, -scores))[:k]
    return Hits(rows[order].astype(np.int64), scores[order])


def _wilson(p: float, n: int, z: float = 1.96) -> tuple[float, float]:
    centre, spread = p + z * z / (2 * n), z * sqrt(max(p * (1 - p), 0.0) / n + z * z / (4 * n * n))
    return max(0.0, (centre - spread) / (1 + z * z / n)), min((centre + spread) / (1 + z * z / n), 1.0)
