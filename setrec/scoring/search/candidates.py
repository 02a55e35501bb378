"""Candidates of validation users with every term of their scores, on which weights are fitted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from setrec.evaluation.ranking import user_metrics
from setrec.ragged import Ragged, offsets_of
from setrec.scoring.search.table import SearchTable

BEST = 80
"""Number of a user's best items by each term, and by their standardised sum, that are candidates."""
OTHERS = 64
"""Number of draws of a user's other items, which stand for all of these in a softmax."""


@dataclass(frozen=True)
class CandidateTerms:
    """Candidates of n users who have a truth among them.

    Args:
        names: the terms of a score, kinds of the model's slots first, then components.
        values: their values, float32 (n, c, terms).
        some: which of the c places hold a candidate, bool (n, c).
        mass: logarithm of the number of items that a candidate stands for, float32 (n, c).
        row, place: user, in ascending order, and place of each of the T truths, int64 (T,).
    """

    names: tuple[str, ...]
    values: np.ndarray
    some: np.ndarray
    mass: np.ndarray
    row: np.ndarray
    place: np.ndarray

    @classmethod
    def of(cls, table: SearchTable, among: np.ndarray) -> CandidateTerms | None:
        """Return the candidates among items, bool (I,), without those of the user's history; ``None`` without a term,
        or if no truth is one of them."""
        names = (*table.slots, *table.kinds)
        batches = list(_batches(table, names, among)) if names else []
        if not batches:
            return None
        width = max(batch.some.shape[1] for batch in batches)
        starts = offsets_of(np.array([len(batch.some) for batch in batches]))
        return cls(
            names,
            np.concatenate([_widened(batch.values, width) for batch in batches]),
            np.concatenate([_widened(batch.some, width) for batch in batches]),
            np.concatenate([_widened(batch.mass, width) for batch in batches]),
            np.concatenate([start + batch.row for start, batch in zip(starts, batches, strict=False)]),
            np.concatenate([batch.place for batch in batches]),
        )

    def of_terms(self, names: tuple[str, ...]) -> CandidateTerms:
        """Return the same candidates with these terms only."""
        at = [self.names.index(name) for name in names]
        return replace(self, names=names, values=np.ascontiguousarray(self.values[:, :, at]))

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """Return scores at weights (terms,), float32 (n, c); minus infinity where there is no candidate."""
        scores: np.ndarray = self.values @ weights.astype(np.float32)
        scores[~self.some] = -np.inf
        return scores

    def ndcg(self, scores: np.ndarray) -> np.ndarray:
        """Return NDCG@10 of every user, float64 (n,), among the candidates; equal scores are above a truth."""
        own = scores[self.row, self.place]
        ranks = (scores[self.row] >= own[:, None]).sum(axis=1) - 1
        truths = offsets_of(np.bincount(self.row, minlength=len(scores)))
        return user_metrics(Ragged(ranks, truths), (10,))["ndcg@10"]


def _batches(table: SearchTable, names: tuple[str, ...], among: np.ndarray) -> Iterator[CandidateTerms]:
    """Yield the candidates of batches with a truth among them; up to three tables of scores (b, I) are in memory."""
    rng = np.random.default_rng(0)
    for number, (_, history, truth) in enumerate(table.batches):
        out = np.zeros((len(history), table.items), dtype=bool)
        out[:, ~among] = True
        out[history.row_of_value, history.values] = True
        asked = truth.where(~out[truth.row_of_value, truth.values])
        if not len(asked.values):
            continue
        total, best = np.zeros(out.shape, np.float32), []
        for name in names:
            scores = table.term(name, number)
            total += scores / max(float(scores.std()), 1e-9)
            best.append(_best(scores, out))
        best.append(_best(total, out))
        items, held = asked.pad(fill=table.items)
        items[np.arange(items.shape[1]) >= held[:, None]] = table.items
        drawn = rng.integers(0, table.items, (len(history), OTHERS))
        drawn[np.take_along_axis(out, drawn, axis=1)] = table.items
        # Twice an item's number, and one more if it is drawn: the same item chosen and drawn is chosen.
        every = np.concatenate([2 * items.astype(np.int64), *(2 * one for one in best), 2 * drawn + 1], axis=1)
        rows = np.flatnonzero(held)
        yield _distinct(table, number, names, every[rows], (~out).sum(axis=1)[rows], asked.take(rows), rows)


def _best(scores: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Return the best items of each row of ``scores`` (b, I) that are not ``out``, int64 (b, k); I for none."""
    scores = np.where(out, np.float32(-np.inf), scores)
    count = min(BEST, scores.shape[1])
    best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    return np.where(np.isneginf(np.take_along_axis(scores, best, axis=1)), scores.shape[1], best)


def _distinct(
    table: SearchTable,
    number: int,
    names: tuple[str, ...],
    keys: np.ndarray,
    allowed: np.ndarray,
    truth: Ragged,
    rows: np.ndarray,
) -> CandidateTerms:
    """Return the distinct items of ``keys`` (n, c) of the users ``rows`` (n,) of a batch as candidates; the item I is
    none. ``allowed`` (n,): number of items of which they are taken."""
    keys = np.sort(keys, axis=1)
    items = keys // 2
    some = items < table.items
    some[:, 1:] &= items[:, 1:] != items[:, :-1]
    drawn = some & (keys % 2 == 1)
    left, draws = allowed - (some & ~drawn).sum(axis=1), drawn.sum(axis=1)
    mass = np.where(drawn, np.log(np.maximum(left, 1) / np.maximum(draws, 1))[:, None], 0.0)
    lengths = some.sum(axis=1)
    counts = np.zeros(len(table.batches[number][1]), np.int64)
    counts[rows] = lengths
    values = table.at(names, number, Ragged(items[some], offsets_of(counts)))
    filled = np.arange(int(lengths.max(initial=0))) < lengths[:, None]

    def placed(flat: np.ndarray, fill: float) -> np.ndarray:
        padded = np.full((*filled.shape, *flat.shape[1:]), fill, flat.dtype)
        padded[filled] = flat
        return padded

    row, numbered = truth.row_of_value, placed(items[some], -1)
    place = (numbered[row] == truth.values[:, None]).argmax(axis=1)
    return CandidateTerms(names, placed(values, 0), filled, placed(mass[some].astype(np.float32), 0), row, place)


def _widened(values: np.ndarray, width: int) -> np.ndarray:
    """Return ``values`` (n, c, ...) with ``width`` places in its second dimension."""
    missing = [(0, 0), (0, width - values.shape[1]), *[(0, 0)] * (values.ndim - 2)]
    return np.pad(values, missing)
