"""Hybrid scores of a batch of histories over the current items, and the best items by either of two routes.

*Dense*: scores of all items, float32, as in evaluation. *Candidates*: the index's candidates by the model's part of the
score, and all rows that a component or the history can lift above them. Both routes end with float64 scores of the rows
near the top, so that ties go to the smaller row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from serving.engine.ranking.near import near_best
from serving.retrieval.exact import Hits
from serving.telemetry import stages
from setrec.data.events import read
from setrec.ragged import Ragged
from setrec.scoring.hybrid import Entries, HybridScorer
from setrec.scoring.kernels.scan import RoundedCodes

_FIRST = 256
"""Number of candidates that are scored first; their scores exclude others."""


@dataclass(frozen=True)
class UserScores:
    """The model's term for histories with given user codes, float32 (B, D).

    ``base`` (I, D) and ``fresh`` (n, D) are the item codes; ``norm`` is their largest norm, for bounds of rounding
    errors. With ``rounded`` codes of the base, dense scores have errors up to :attr:`dense_error`.
    """

    users: np.ndarray
    base: np.ndarray
    fresh: np.ndarray
    norm: float
    columns: Mapping[str, tuple[int, int]]
    repeat_bias: float
    rounded: RoundedCodes | None = None

    def dense(self, history: Ragged) -> np.ndarray:
        """See :class:`setrec.scoring.model_scores.ModelTerm`."""
        items = len(self.base)
        scores = np.empty((len(self.users), items + len(self.fresh)), np.float32)
        if self.rounded is None:
            np.matmul(self.users, self.base.T, out=scores[:, :items])
        else:
            self.rounded.scores(self.users, scores)
        if len(self.fresh):
            scores[:, items:] = self.users @ self.fresh.T
        return scores

    @property
    def dense_error(self) -> np.ndarray:
        """Upper bound of the error of a dense score, float64 (B,), beside that of float32."""
        return np.zeros(len(self.users)) if self.rounded is None else self.rounded.errors(self.users)

    def parts(self, history: Ragged, rows: Ragged) -> dict[str, np.ndarray]:
        """See :class:`setrec.scoring.model_scores.ModelTerm`."""
        products = self.codes(rows.values) * self.users.astype(np.float64)[rows.row_of_value]
        return {kind: products[:, start:stop].sum(axis=1) for kind, (start, stop) in self.columns.items()}

    def codes(self, rows: np.ndarray) -> np.ndarray:
        """Return codes of ``rows``, float32 (len(rows), D)."""
        items, base = len(self.base), self.base
        if not len(self.fresh):
            codes: np.ndarray = base[rows]
            return codes
        old = rows < items
        found = np.empty((len(rows), base.shape[1]), np.float32)
        found[old], found[~old] = base[rows[old]], self.fresh[rows[~old] - items]
        return found


@dataclass(frozen=True)
class Ranked:
    """Ranked items of one history, best first: ``rows`` int64 (k,), ``scores`` float64 (k,), and the contribution of
    every term by name, float64 (k,) each."""

    rows: np.ndarray
    scores: np.ndarray
    parts: dict[str, np.ndarray]

    def take(self, places: np.ndarray) -> Ranked:
        """Return the items at ``places``, in that order."""
        return Ranked(self.rows[places], self.scores[places], {name: part[places] for name, part in self.parts.items()})

    def with_pinned(self, pinned: Ranked, positions: Sequence[int], k: int) -> Ranked:
        """Return the first ``k`` items after inserting the ``pinned`` ones, which must be others, at ``positions`` from
        0."""
        order = list(range(len(self.rows)))
        for number, position in sorted(enumerate(positions), key=lambda pair: pair[1]):
            order.insert(position, len(self.rows) + number)
        both = Ranked(
            np.concatenate([self.rows, pinned.rows]),
            np.concatenate([self.scores, pinned.scores]),
            {
                name: np.concatenate([part, pinned.parts.get(name, np.zeros(len(pinned.rows)))])
                for name, part in self.parts.items()
            },
        )
        return both.take(np.array(order[:k], dtype=np.int64))


@dataclass(frozen=True)
class ScoringBatch:
    """Histories (rows), the scorer of the current items, and the entries of its components."""

    scorer: HybridScorer
    term: UserScores
    history: Ragged
    entries: Entries

    def only(self, b: int) -> ScoringBatch:
        """Return a batch of one history, which later changes of items do not affect."""
        at = np.array([b])
        entries = {
            name: (places.take(at), values[places.offsets[b] : places.offsets[b + 1]])
            for name, (places, values) in self.entries.items()
        }
        term = UserScores(**{**vars(self.term), "users": self.term.users[b : b + 1]})
        scorer = HybridScorer(term, {}, self.scorer.weights, self.scorer.new)
        return ScoringBatch(scorer, term, self.history.take(at), entries)

    def scaled(self, factors: Sequence[Mapping[str, float]]) -> ScoringBatch:
        """Return the batch with the weights of slot kinds and components multiplied by ``factors`` of each history."""
        users = self.term.users.copy()
        for kind, (start, stop) in self.term.columns.items():
            users[:, start:stop] *= np.array([[own.get(kind, 1.0)] for own in factors], dtype=users.dtype)
        entries = {}
        for name, (places, values) in self.entries.items():
            scale = np.array([own.get(name, 1.0) for own in factors], dtype=values.dtype)
            entries[name] = places, values * scale[places.row_of_value]
        term = replace(self.term, users=users)
        return replace(self, scorer=replace(self.scorer, model=term), term=term, entries=entries)

    def adjusted(self, name: str, rows: Sequence[np.ndarray], amounts: Sequence[np.ndarray]) -> ScoringBatch:
        """Return the batch with ``amounts`` float (n,) of each history added to the scores of ``rows`` int64 (n,),
        ascending, as a term called ``name``."""
        weights = self.scorer.weights
        weights = weights.model_copy(update={"components": {**weights.components, name: 1.0}})
        values = np.concatenate([*amounts, np.empty(0)]).astype(np.float32)
        entries = {**self.entries, name: (Ragged.of(rows, np.int64), values)}
        return replace(self, scorer=replace(self.scorer, weights=weights), entries=entries)

    def dense(self, ks: Sequence[int], left: Sequence[np.ndarray]) -> list[Ranked]:
        """Return the ``ks[b]`` best of the rows in ``left[b]``, bool (R,)."""
        scale = max(1.0, abs(self.scorer.weights.new_items.model))
        scores, slack = self.scorer(self.history, self.entries), self._slack + 2 * scale * self.term.dense_error
        near = [near_best(scores[b], left[b], k, slack[b]) for b, k in enumerate(ks)]
        return self.ranked(near, ks)

    def ranked(self, rows: Sequence[np.ndarray], ks: Sequence[int]) -> list[Ranked]:
        """Return the ``ks[b]`` best of ``rows[b]``, each row once."""
        packed = Ragged.of(rows, np.int64)
        with stages.part("rescore"):
            parts = self.scorer.parts(self.history, packed, self.entries)
        total = np.sum(list(parts.values()), axis=0)
        found = []
        for b, (k, own) in enumerate(zip(ks, packed, strict=True)):
            start, stop = packed.offsets[b], packed.offsets[b + 1]
            scores = total[start:stop]
            best = np.lexsort((own, -scores))[:k]
            found.append(
                Ranked(own[best], scores[best], {name: part[start:stop][best] for name, part in parts.items()})
            )
        return found

    def additions(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return for every history the rows to whose scores components or the history add, int64 ascending, and the
        sums added, float64."""
        items, new = len(self.scorer.new), self.scorer.new
        keys, values = [np.empty(0, np.int64)], [np.empty(0)]
        for name, (places, own) in self.entries.items():
            if self.scorer.weights.of(name, np.array([False, True])).any():
                keys.append(places.row_of_value * items + places.values)
                values.append(self.scorer.weights.of(name, new[places.values]).astype(np.float64) * own)
        if self.term.repeat_bias:
            history = read(self.history)
            held = np.unique(history.row_of_value * items + history.values)
            keys.append(held)
            values.append(np.full(len(held), self.term.repeat_bias))
        distinct, at = np.unique(np.concatenate(keys), return_inverse=True)
        total = np.bincount(at, np.concatenate(values), minlength=len(distinct))
        row, item = np.divmod(distinct, items)
        ends = np.searchsorted(row, np.arange(len(self.history) + 1))
        return [(item[a:b], total[a:b]) for a, b in pairwise(ends.tolist())]

    def candidates(self, b: int, k: int, hits: Hits, rows: np.ndarray, added: np.ndarray) -> np.ndarray:
        """Return the rows that can be among the ``k`` best: ``hits`` of an index, by the model's part of the score, and
        those of ``rows``, to whose scores ``added`` is added, that can surpass them.

        Before additions no row is better than the last hit, except rows excluded from the search because ``added`` is
        negative.
        """
        if len(hits.rows) < k or not len(rows):
            return np.union1d(hits.rows, rows)
        slack, last = self._slack[b], hits.scores[-1]
        place = np.minimum(np.searchsorted(rows, hits.rows), len(rows) - 1)
        known = hits.scores + np.where(rows[place] == hits.rows, added[place], 0.0)
        other = ~np.isin(rows, hits.rows)
        rows, added = rows[other], added[other]
        if len(rows) > _FIRST:
            order = np.argpartition(-added, _FIRST)
            rows, added = rows[order], added[order]
        first = self._rough(b, rows[:_FIRST]) + added[:_FIRST]
        known = np.concatenate([known, first])
        reached = np.partition(known, len(known) - k)[len(known) - k] - 2 * slack
        more = _FIRST + np.flatnonzero((added[_FIRST:] + last >= reached) | (added[_FIRST:] < 0))
        near = more[self._rough(b, rows[more]) + added[more] >= reached]
        return np.concatenate([hits.rows, rows[:_FIRST][first >= reached], rows[near]])

    def _rough(self, b: int, rows: np.ndarray) -> np.ndarray:
        """Return the model's part of the scores of ``rows``, float32."""
        weights, new = self.scorer.weights.new_items, self.scorer.new[rows]
        scores = self.term.codes(rows) @ self.term.users[b]
        return np.asarray(np.where(new, weights.model * scores + weights.level, scores))

    @cached_property
    def _slack(self) -> np.ndarray:
        """Upper bound of the rounding error of a float32 score, float64 (B,)."""
        weights = self.scorer.weights.new_items
        size = np.linalg.norm(self.term.users.astype(np.float64), axis=1) * self.term.norm
        size = size * max(1.0, abs(weights.model)) + abs(weights.level) + abs(self.term.repeat_bias)
        for name, (places, values) in self.entries.items():
            largest = np.array([np.abs(values[a:b]).max(initial=0) for a, b in pairwise(places.offsets.tolist())])
            size += max(abs(float(w)) for w in self.scorer.weights.of(name, np.array([False, True]))) * largest
        slack: np.ndarray = 4e-6 * size
        return slack
