"""Retrieval of the items with the largest inner products: an index proposes candidates, which are re-scored in float64.

The policy (:mod:`serving.retrieval.policy`) chooses the index and its search effort by measurement on held-out queries
(:mod:`serving.retrieval.tuning`); recall is measured on others (:mod:`serving.retrieval.recall_audit`).
``exact`` has no index: FAISS scans the codes. For every kind scores are exact, ties go to the smaller row, and an
answer has fewer than k items only if fewer are allowed: if an index returns too few, all items are searched.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from pydantic import ValidationError

from serving.retrieval import recall_audit, whitening
from serving.retrieval.exact import NONE, Exact, Hits
from serving.retrieval.ivf import Ivf
from serving.retrieval.policy import RetrieverSettings, SearchPlan, candidates
from serving.retrieval.recall_audit import Audit
from serving.retrieval.tuning import choose
from setrec.atomic import atomic_file
from setrec.errors import BundleError
from setrec.settings import Settings

__all__ = ["INDEX", "META", "Audit", "Hits", "Retriever", "RetrieverSettings", "SearchPlan"]

INDEX, META = "index.faiss", "retriever.json"
_FEWEST = 256
"""Minimum number of items for an index: k-means and quantisers need enough data."""


class Meta(Settings):
    """``retriever.json``."""

    settings: RetrieverSettings
    dimension: int
    count: int
    metric: int
    plan: SearchPlan
    audit: dict[str, Any] | None = None
    largest_norm: float | None = None
    index_bytes: int | None = None

    @property
    def known(self) -> Audit | None:
        """The stored audit."""
        return Audit(**self.audit) if self.audit else None


class Retriever:
    """An index over item codes float32 (I, D) that answers with exact scores.

    ``plan``: the choice and its reason. ``built_audit``: recall when it was built. Index and codes are never modified,
    so both may be memory-mapped.
    """

    def __init__(
        self,
        codes: np.ndarray,
        settings: RetrieverSettings,
        plan: SearchPlan,
        index: Ivf | None = None,
        built_audit: Audit | None = None,
        exact: Exact | None = None,
    ) -> None:
        self.codes, self.settings, self.plan, self.built_audit = codes, settings, plan, built_audit
        self.exact = exact or Exact(codes)
        self._index = index

    @classmethod
    def build(
        cls,
        codes: np.ndarray,
        settings: RetrieverSettings,
        queries: np.ndarray | Callable[[int], np.ndarray] | None = None,
    ) -> Retriever:
        """Index ``codes`` float32 (I, D); the same codes, settings and queries give the same index.

        ``queries``: float32 (Q, D), of the model, representative of future users, or a function that returns a given
        number of them if an index needs them. Every other query is for whitening and tuning, the rest for the audit;
        some hundred suffice. Without queries, surrogates are derived from the codes, as the audit records; the index
        may then be many times slower at equal recall.
        """
        codes = np.ascontiguousarray(codes, dtype=np.float32)
        exact = Exact(codes)
        kinds = candidates(settings, *codes.shape)
        if is_exact(settings, codes):
            reason = kinds[0][1] if kinds[0][0] == "exact" else f"fewer than {_FEWEST} items"
            return cls(codes, settings, SearchPlan(kind="exact", reason=reason), None, _certain(codes, settings), exact)
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
        try:
            count = 2 * settings.tune_queries
            provided = queries(count) if callable(queries) else queries
            given = provided is not None and len(provided) > 1
            derived = recall_audit.derived_queries
            sample = provided if provided is not None and given else derived(codes, count, settings.seed)
            sample = np.ascontiguousarray(sample[:count], dtype=np.float32)
            matrix = whitening.from_queries(sample[::2] if given else None, codes.shape[1])
            index, plan = choose(exact, settings, kinds, sample[::2], matrix)
            built = cls(codes, settings, plan, index, exact=exact)
            built.built_audit = replace(
                built.audit(sample[1::2], 10),
                source="given" if given else "derived",
                intrinsic_dimension=recall_audit.intrinsic_dimension(codes, settings.seed),
            )
            return built
        finally:
            faiss.omp_set_num_threads(threads)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def kind(self) -> str:
        """The kind of the index."""
        return self.plan.kind

    def search(
        self,
        queries: np.ndarray,
        k: int | Sequence[int],
        excluded: Sequence[np.ndarray] | None = None,
        allowed: Sequence[np.ndarray | None] | None = None,
    ) -> list[Hits]:
        """Return the ``k`` (or ``k[b]``) best items of each query, float32 (B, D), among the rows in ``allowed[b]``,
        bool (I,), without ``excluded[b]`` (rows).

        Always min(k, items left) items, in order of score, equal scores by smaller row. The result of a query does not
        depend on the other queries.
        """
        # OpenMP keeps this per calling thread, so it is set here and not once at import: a search on an executor's
        # thread took 16 ms with two threads against 0.16 ms with one (12,000 x 192, two cores).
        faiss.omp_set_num_threads(1)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        count = len(queries)
        banned = [np.unique(e) for e in excluded] if excluded is not None else [np.empty(0, np.int64)] * count
        masks: list[np.ndarray | None] = list(allowed) if allowed is not None else [None] * count
        ks = [int(n) for n in np.broadcast_to(np.asarray(k), count)]
        if self._index is None:
            return self._exactly(queries, ks, banned, masks)
        return [self._approximate(*arguments) for arguments in zip(queries, ks, banned, masks, strict=True)]

    def audit(self, queries: np.ndarray, k: int) -> Audit:
        """Measure recall@k of ``search`` on queries, float32 (B, D), of the model; an item tied with the k-th best
        counts."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        count = len(queries)
        best = self.exact.first(queries, [k] * count, [np.empty(0, np.int64)] * count, [k] * count)
        shares = [
            recall_audit.share(hits.scores, true.scores)
            for hits, true in zip(self.search(queries, k), best, strict=True)
        ]
        return recall_audit.of(shares, k, like=self.built_audit)

    def grown(self, codes: np.ndarray, largest: float, older: Retriever | None = None) -> Retriever:
        """Return a retriever over ``codes`` float32 (n, D) that has the cells and the plan of this one, which is not
        exact. ``older``, over the first of these codes, gives its index away and must not be used afterwards."""
        assert self._index is not None
        index = self._index.empty() if older is None or older._index is None else older._index
        index.add(codes[len(index) :])
        return Retriever(codes, self.settings, self.plan, index, exact=Exact(codes, largest))

    def save(self, directory: str | Path) -> None:
        """Write ``retriever.json`` and, except for exact search, ``index.faiss``, each atomically."""
        size = None
        if self._index is not None:
            with atomic_file(Path(directory) / INDEX) as temporary:
                self._index.write(temporary)
            size = (Path(directory) / INDEX).stat().st_size
        meta = Meta(
            settings=self.settings,
            dimension=self.codes.shape[1],
            count=len(self.codes),
            metric=faiss.METRIC_INNER_PRODUCT,
            plan=self.plan,
            audit=asdict(self.built_audit) if self.built_audit else None,
            largest_norm=self.exact.largest,
            index_bytes=size,
        )
        with atomic_file(Path(directory) / META) as temporary:
            # Without a key that earlier versions do not know, if it says nothing.
            unknown = {"settings": {"shards"}} if self.settings.shards == 1 else None
            temporary.write_text(meta.model_dump_json(indent=2, exclude=unknown))

    @classmethod
    def load(cls, directory: str | Path, codes: np.ndarray) -> Retriever:
        """Load what :meth:`save` wrote, over the same ``codes``, which are not copied. The index is memory-mapped.

        Raises:
            BundleError: a file is missing or damaged, or the index does not fit the codes.
        """
        directory = Path(directory)
        meta = read_meta(directory, codes)
        index = None if meta.plan.kind == "exact" else _read(directory / INDEX, meta.plan, meta.index_bytes, codes)
        return cls(codes, meta.settings, meta.plan, index, meta.known, Exact(codes, meta.largest_norm))

    def _exactly(
        self, queries: np.ndarray, ks: list[int], banned: list[np.ndarray], masks: list[np.ndarray | None]
    ) -> list[Hits]:
        hits = [NONE] * len(queries)
        plain = [b for b, mask in enumerate(masks) if mask is None]
        if plain:
            some = [min(ks[b], len(self) - len(banned[b])) for b in plain]
            spare = [n * (self.plan.oversample - 1) + 1 for n in some]
            first = self.exact.first(queries[plain], some, [banned[b] for b in plain], spare)
            for b, hit in zip(plain, first, strict=True):
                hits[b] = hit
        for b, mask in enumerate(masks):
            if mask is not None:
                hits[b] = self.exact.best(queries[b], ks[b], mask, banned[b])
        return hits

    def _approximate(self, query: np.ndarray, k: int, banned: np.ndarray, mask: np.ndarray | None) -> Hits:
        left = len(self) - len(banned) if mask is None else int(np.count_nonzero(mask))
        effort = self.plan.effort if mask is None else self.plan.effort_at(left / len(self))
        if k <= 0 or left <= 0:
            return NONE
        if effort is None:
            return self.exact.best(query, k, mask, banned)
        wanted = k * self.plan.oversample + 1
        number = min(wanted + len(banned), len(self))
        assert self._index is not None
        rows = self._index.propose(query, number, effort, mask)
        # A short list means that the index has seen too few of the allowed items to be reliable.
        if rows is None or len(rows) < min(number, left):
            return self.exact.best(query, k, mask, banned)
        rows = rows[~np.isin(rows, banned)][:wanted]
        return (
            self.exact.among(query, rows, k) if len(rows) >= min(k, left) else self.exact.best(query, k, mask, banned)
        )


def read_meta(directory: Path, codes: np.ndarray) -> Meta:
    """Read ``retriever.json`` of an index over ``codes``.

    Raises:
        BundleError: it is missing or damaged, or does not fit the codes.
    """
    try:
        meta = Meta.model_validate_json((directory / META).read_bytes())
        _ = meta.known
    except (OSError, ValidationError, TypeError) as error:
        raise BundleError(f"{directory}: no readable index") from error
    _require_fit(directory / META, (meta.dimension, meta.count, meta.metric), codes)
    return meta


def is_exact(settings: RetrieverSettings, codes: np.ndarray) -> bool:
    """Return whether ``codes`` (I, D) are always searched exactly."""
    return candidates(settings, *codes.shape)[0][0] == "exact" or len(codes) < _FEWEST


def _certain(codes: np.ndarray, settings: RetrieverSettings) -> Audit:
    """Return the audit of exact search: recall 1, with the intrinsic dimension."""
    known = recall_audit.intrinsic_dimension(codes, settings.seed)
    return Audit(1.0, 1.0, 1.0, 0, 10, intrinsic_dimension=known)


def _read(file: Path, plan: SearchPlan, size: int | None, codes: np.ndarray) -> Ivf:
    try:
        # Reading past the end of a mapped file would crash the process, so its length is checked first.
        if size is not None and file.stat().st_size != size:
            raise BundleError(f"{file}: no readable index: {file.stat().st_size} bytes of {size}")
        index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP)
        _require_fit(file, (index.d, index.ntotal, index.metric_type), codes)
        return Ivf(index, plan.kind)
    except (OSError, RuntimeError, AttributeError) as error:
        raise BundleError(f"{file}: no readable index") from error


def _require_fit(file: Path, actual: tuple[int, int, int], codes: np.ndarray) -> None:
    expected = (codes.shape[1], len(codes), faiss.METRIC_INNER_PRODUCT)
    if actual != expected:
        raise BundleError(f"{file}: (dimension, items, metric) is {actual}, the codes need {expected}")
