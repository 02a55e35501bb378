"""The second stage of a bundle, applied to the current items."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from serving.engine.items.popularity import PopularityRanking
from serving.engine.items.table import LiveItems
from serving.engine.ranking.candidates import Ranked, ScoringBatch
from setrec.ragged import Ragged
from setrec.scoring.reranking import AttributeVectors, Reranker, features

SECOND_STAGE = "second_stage"
"""Name of the term that the second stage adds to a score."""


class SecondStage:
    """A re-ranker and the facts that it reads (:class:`setrec.scoring.reranking.Facts`)."""

    def __init__(
        self, reranker: Reranker, vectors: AttributeVectors, items: LiveItems, popularity: PopularityRanking
    ) -> None:
        self.reranker = reranker
        self._vectors, self._items, self._popularity = vectors, items, popularity

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """See :class:`setrec.scoring.reranking.Facts`."""
        return self._popularity.of(rows)

    def attributes(self, rows: np.ndarray) -> sp.csr_matrix:
        """See :class:`setrec.scoring.reranking.Facts`."""
        base = self._vectors.items
        if (rows < base.shape[0]).all():
            return base[rows]
        fresh = rows[rows >= base.shape[0]]
        both = sp.vstack([base, self._vectors.of([self._items.describe(row)[2] for row in fresh.tolist()])]).tocsr()
        place = rows.copy()
        place[rows >= base.shape[0]] = base.shape[0] + np.arange(len(fresh))
        return both[place]

    def ordered(self, batch: ScoringBatch, ranked: Ranked, components: frozenset[str]) -> Ranked:
        """Return the re-ranked items of the single history of ``batch``, best first, with the term of the second stage;
        terms that evaluation does not have, such as boosts, stay added."""
        if not len(ranked.rows):
            return ranked
        rows = Ragged.of([ranked.rows[: self.reranker.candidates]], np.int64)
        entries = {name: entry for name, entry in batch.entries.items() if name in components}
        table = features(batch.scorer, batch.history, rows, entries, self)
        learned = self.reranker.scores(table, rows)
        added = np.full(len(ranked.rows), learned.min() - table["score"][-1])
        added[: len(learned)] = learned - table["score"]
        scores = ranked.scores + added
        moved = replace(ranked, scores=scores, parts={**ranked.parts, SECOND_STAGE: added})
        return moved.take(np.lexsort((ranked.rows, -scores)))
