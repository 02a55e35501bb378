"""An index in shards, each over a range of rows, that are searched side by side.

A query takes the best rows of every shard, so the merged answer is at least as good as that of one index with the same
recall, and equal to it if search is exact. A shard can be searched in another process (``serving.deployment.shards``),
which then needs the memory of its index only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from serving.retrieval.exact import Exact, Hits
from serving.retrieval.policy import RetrieverSettings, SearchPlan
from serving.retrieval.retriever import Retriever, read_meta

FOLDER = "shards"
Queries = np.ndarray | Callable[[int], np.ndarray] | None
Masks = Sequence[np.ndarray | None]
Answer = Callable[[], list[Hits]]


class Shard(Protocol):
    """One shard, wherever it lies."""

    def start(self, queries: np.ndarray, ks: list[int], excluded: Sequence[np.ndarray], allowed: Masks) -> Answer:
        """Start a search as of :meth:`Retriever.search` over the shard's rows, and return what waits for its hits."""
        ...


ShardOpener = Callable[[Path, int], Shard]
"""Opens a shard of the bundle at a path by its number, in another process."""


class LocalShard:
    """A shard in this process."""

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever

    def start(self, queries: np.ndarray, ks: list[int], excluded: Sequence[np.ndarray], allowed: Masks) -> Answer:
        """See :class:`Shard`."""
        return lambda: self._retriever.search(queries, ks, excluded, allowed)


class ShardedRetriever(Retriever):
    """A retriever over codes float32 (I, D) whose index is in ``shards``."""

    def __init__(self, codes: np.ndarray, settings: RetrieverSettings, plan: SearchPlan, shards: Sequence[Shard],
                 exact: Exact | None = None) -> None:  # fmt: skip
        super().__init__(codes, settings, plan, exact=exact)
        self._shards, self._bounds = shards, bounds(len(codes), len(shards))

    def search(
        self, queries: np.ndarray, k: int | Sequence[int], excluded: Sequence[np.ndarray] | None = None,
        allowed: Masks | None = None,
    ) -> list[Hits]:  # fmt: skip
        """See :meth:`Retriever.search`."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        ks = [int(n) for n in np.broadcast_to(np.asarray(k), len(queries))]
        banned = [np.empty(0, np.int64)] * len(queries) if excluded is None else excluded
        masks = [None] * len(queries) if allowed is None else allowed
        answers = []
        for shard, (start, stop) in zip(self._shards, self._bounds, strict=True):
            own = [rows[(rows >= start) & (rows < stop)] - start for rows in banned]
            answers.append(shard.start(queries, ks, own, [None if m is None else m[start:stop] for m in masks]))
        found = [answer() for answer in answers]
        return [_merged([hits[b] for hits in found], [start for start, _ in self._bounds], n) for b, n in enumerate(ks)]

    def grown(self, codes: np.ndarray, largest: float, older: Retriever | None = None) -> Retriever:
        """Return exact search of added ``codes`` float32 (n, D)."""
        return Retriever(codes, self.settings, SearchPlan(kind="exact"), exact=Exact(codes, largest))


def build(codes: np.ndarray, settings: RetrieverSettings, queries: Queries, folder: Path) -> Retriever:
    """Index ``codes`` as of :meth:`Retriever.build`, in ``settings.shards`` shards, and save it in ``folder``."""
    if settings.shards == 1:
        built = Retriever.build(codes, settings, queries)
        built.save(folder)
        return built
    given = queries(2 * settings.tune_queries) if callable(queries) else queries
    shards = []
    for number, (start, stop) in enumerate(bounds(len(codes), settings.shards)):
        shards.append(Retriever.build(codes[start:stop], settings, given))
        own = folder / FOLDER / str(number)
        own.mkdir(parents=True)
        shards[-1].save(own)
    largest = max(shard.exact.largest for shard in shards)
    parts = [LocalShard(shard) for shard in shards]
    whole = ShardedRetriever(codes, settings, shards[0].plan, parts, Exact(codes, largest))
    whole.built_audit = shards[0].built_audit
    if given is not None and whole.kind != "exact":
        whole.built_audit = whole.audit(given[1::2], 10)
    whole.save(folder)
    return whole


def load(folder: Path, codes: np.ndarray, open_shard: ShardOpener | None = None) -> Retriever:
    """Load what :func:`build` saved, over the same ``codes``; ``open_shard`` opens shards in other processes.

    Raises:
        BundleError: see :meth:`Retriever.load`.
    """
    meta = read_meta(folder, codes)
    count = meta.settings.shards
    if count == 1:
        return Retriever.load(folder, codes)
    shards: list[Shard] = [
        LocalShard(load_shard(folder, codes, number)) if open_shard is None else open_shard(folder, number)
        for number in range(count)
    ]
    whole = ShardedRetriever(codes, meta.settings, meta.plan, shards, Exact(codes, meta.largest_norm))
    whole.built_audit = meta.known
    return whole


def load_shard(folder: Path, codes: np.ndarray, number: int) -> Retriever:
    """Load one shard of the index in ``folder`` over ``codes``, of all shards."""
    start, stop = bounds(len(codes), read_meta(folder, codes).settings.shards)[number]
    return Retriever.load(folder / FOLDER / str(number), codes[start:stop])


def bounds(items: int, shards: int) -> list[tuple[int, int]]:
    """Return the first row and the row after the last of each shard."""
    return [(items * number // shards, items * (number + 1) // shards) for number in range(shards)]


def _merged(each: Sequence[Hits], starts: Sequence[int], k: int) -> Hits:
    rows = np.concatenate([hits.rows + start for hits, start in zip(each, starts, strict=True)])
    scores = np.concatenate([hits.scores for hits in each])
    order = np.lexsort((rows, -scores))[: max(k, 0)]
    return Hits(rows[order], scores[order])
