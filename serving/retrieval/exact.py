"""Exact search for the largest inner products in float64, the reference for all other search; ties go to the smaller
row.

A float32 product over the rows excludes most of them; those within its rounding error of the k-th best are scored again
in float64, one sum per row, so that equal codes get equal scores, independently of position and batch. No index is
built: FAISS scans the codes in place, which may be a memory-mapped file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import faiss
import numpy as np

from serving.telemetry import stages

_CHUNK = 1 << 13
_GATHER = 0.25
"""Maximum share of the rows that are gathered; above it the whole table is read (an estimate)."""

_PRODUCTS_FROM = 8
"""Minimum number of queries for which a matrix product is faster than a scan by rows
(``benchmarks/bench_batch_scan.py``)."""
_ROW_BY_ROW = (1 << 31) - 1
_AS_FAISS_HAS_IT = faiss.cvar.distance_compute_blas_threshold


@dataclass(frozen=True)
class Hits:
    """Items of one query, best first: ``rows`` int64 (k,), ``scores`` float64 (k,)."""

    rows: np.ndarray
    scores: np.ndarray


NONE = Hits(np.empty(0, np.int64), np.empty(0))


class Exact:
    """Exact search over item codes float32 (I, D); ``largest`` is their largest norm, computed by default."""

    def __init__(self, codes: np.ndarray, largest: float | None = None) -> None:
        self.codes = codes
        self.largest = largest_norm(codes) if largest is None else largest

    def best(self, query: np.ndarray, k: int, mask: np.ndarray | None = None, banned: np.ndarray | None = None) -> Hits:
        """Return the ``k`` best of the rows in ``mask``, bool (I,), without the rows ``banned``."""
        rough, rows = self._rough(query, mask, banned)
        k = min(k, len(rough)) if rows is not None else min(k, int(np.count_nonzero(rough > -np.inf)))
        if k <= 0:
            return NONE
        threshold = np.partition(rough, len(rough) - k)[len(rough) - k]
        near = np.flatnonzero(rough >= threshold - self.slack(query))
        return self.among(query, near if rows is None else rows[near], k)

    def first(
        self, queries: np.ndarray, ks: Sequence[int], banned: Sequence[np.ndarray], spare: Sequence[int]
    ) -> list[Hits]:
        """Return the ``ks[b]`` best of all rows but ``banned[b]``, for queries float32 (B, D) that share FAISS's scans.

        ``spare[b]``: how many more rows than wanted a scan returns; an answer that may tie with one beyond them is
        searched again over everything.
        """
        wanted = [len(b) + k + more for k, b, more in zip(ks, banned, spare, strict=True)]
        numbers = np.array([min(1 << (max(n, 1) - 1).bit_length(), len(self.codes)) for n in wanted])
        hits = [NONE] * len(queries)
        for number in np.unique(numbers):
            members = np.flatnonzero(numbers == number)
            with flat_scan(len(members)):
                scores, rows = faiss.knn(queries[members], self.codes, int(number), faiss.METRIC_INNER_PRODUCT)
            for at, b in enumerate(members.tolist()):
                hits[b] = self._settle(queries[b], ks[b], banned[b], rows[at], scores[at])
        return hits

    def among(self, query: np.ndarray, rows: np.ndarray, k: int) -> Hits:
        """Return the ``k`` best of ``rows``."""
        with stages.part("rescore"):
            scores = self.scores(query, rows)
            order = np.lexsort((rows, -scores))[:k]
            return Hits(rows[order].astype(np.int64), scores[order])

    def scores(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return inner products with ``rows`` in float64; equal codes have equal scores."""
        wide = query.astype(np.float64)
        parts = [(self.codes[rows[i : i + _CHUNK]] * wide).sum(axis=1) for i in range(0, len(rows), _CHUNK)]
        return np.concatenate(parts) if parts else np.empty(0)

    def slack(self, query: np.ndarray) -> float:
        """Return an upper bound of the rounding error of a float32 inner product."""
        return 4e-6 * float(np.linalg.norm(query)) * self.largest

    def _rough(
        self, query: np.ndarray, mask: np.ndarray | None, banned: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return float32 scores and numbers of the allowed rows; or scores of all rows, minus infinity where not
        allowed."""
        if mask is not None and np.count_nonzero(mask) <= _GATHER * len(mask):
            rows = np.flatnonzero(mask)
            if banned is not None and len(banned):
                rows = rows[~np.isin(rows, banned)]
            parts = [self.codes[rows[i : i + _CHUNK]] @ query for i in range(0, len(rows), _CHUNK)]
            return (np.concatenate(parts) if parts else np.empty(0, np.float32)), rows
        rough = self.codes @ query
        if mask is not None:
            rough[~mask] = -np.inf
        if banned is not None:
            rough[banned] = -np.inf
        return rough, None

    def _settle(self, query: np.ndarray, k: int, banned: np.ndarray, rows: np.ndarray, scores: np.ndarray) -> Hits:
        if k <= 0:
            return NONE
        kept = np.flatnonzero((rows >= 0) & ~np.isin(rows, banned))
        hits = self.among(query, rows[kept], k)
        # No row left out is better than the worst row kept. If that one ties with the last of the answer, a smaller row
        # may have been left out.
        left_out = len(self.codes) - len(banned) > len(kept)
        if left_out and scores[kept[-1]] >= hits.scores[-1] - self.slack(query):
            return self.best(query, k, banned=banned)
        return hits


@contextmanager
def flat_scan(queries: int) -> Iterator[None]:
    """Let FAISS scan flat codes by the faster method for the number of ``queries``; its own rule chooses the slow one
    for a hundred of them. The setting is global to the process: a concurrent scan may be slower, with the same
    result."""
    faiss.cvar.distance_compute_blas_threshold = 0 if queries >= _PRODUCTS_FROM else _ROW_BY_ROW
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = _AS_FAISS_HAS_IT


def largest_norm(codes: np.ndarray) -> float:
    """Return the largest Euclidean norm among codes float32 (I, D)."""
    parts = (codes[i : i + _CHUNK] for i in range(0, len(codes), _CHUNK))
    return max((float(np.sqrt(np.einsum("id,id->i", p, p, dtype=np.float64).max())) for p in parts), default=0.0)


def as_selector(mask: np.ndarray) -> faiss.IDSelector:
    """Convert a mask, bool (I,), to FAISS's selector."""
    bits = np.packbits(mask, bitorder="little")
    selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
    selector.bits = bits  # type: ignore[attr-defined]  # FAISS keeps a bare pointer
    return selector
