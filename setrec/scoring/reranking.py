"""The second stage: the best candidates re-ranked by a logistic regression on their features.

    s'(candidate) = sum over features f of w_f z_f(candidate)

z_f is the feature's value in units of its standard deviation around its mean over the user's candidates. The result
does not depend on the order of the candidates, so the stage is exchangeable. Features are the score, its terms by name
(components at weight 1, those without a weight in the score too), ``popularity``, and how well the candidate's
attribute values fit those of the history and of its latest items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.sparse as sp
from pydantic import Field, FiniteFloat

from setrec.data.events import read
from setrec.ragged import Ragged
from setrec.scoring import registry
from setrec.scoring.hybrid import Entries, HybridScorer, HybridWeights
from setrec.scoring.item_graph import lookup
from setrec.settings import Settings

CANDIDATES = 50
"""Number of best candidates that are re-ranked."""
LATEST = 5
_SMALL = 1e-9


class Reranker(Settings):
    """A fitted re-ranker: ``weights`` by feature, for the ``candidates`` best items by score."""

    weights: dict[str, FiniteFloat] = Field(min_length=1)
    candidates: int = Field(CANDIDATES, ge=1)

    def scores(self, features: Mapping[str, np.ndarray], rows: Ragged) -> np.ndarray:
        """Return s' of the candidates ``rows``, float64, one number per candidate, from their features.

        Raises:
            KeyError: a feature is missing.
        """
        names = list(self.weights)
        table = np.stack([features[name] for name in names], axis=1)
        scores: np.ndarray = standardized(table, rows) @ np.array([self.weights[name] for name in names])
        return scores


def components_of(weights: HybridWeights, reranker: Reranker | None) -> tuple[str, ...]:
    """Return the names of the components that a score and its second stage read, in the registry's order."""
    named = set(weights.used) | set({} if reranker is None else reranker.weights)
    return tuple(name for name in registry.kinds() if name in named)


def standardized(table: np.ndarray, rows: Ragged) -> np.ndarray:
    """Return the columns of ``table`` (n, f), one row per value of ``rows``, as z-scores within each row of
    ``rows``."""
    row, count = rows.row_of_value, np.maximum(1, rows.lengths)[:, None]
    sums = sp.csr_matrix((np.ones(len(row)), (row, np.arange(len(row)))), (len(rows), len(row)))
    centred = table - (sums @ table / count)[row]
    deviation = np.sqrt(sums @ centred**2 / count)
    return np.asarray(centred / np.where(deviation > _SMALL, deviation, np.inf)[row])


class AttributeVectors:
    """Items as vectors over all attribute values: inverse document frequencies, of length 1."""

    def __init__(self, attributes: Mapping[str, Sequence[Sequence[str]]], items: int) -> None:
        self._column: dict[tuple[str, str], int] = {}
        for name, values in attributes.items():
            for value in (value for own in values for value in own):
                self._column.setdefault((name, value), len(self._column))
        self._weights = np.ones(max(1, len(self._column)))
        described = [{name: values[row] for name, values in attributes.items()} for row in range(items)]
        met = np.bincount(self.of(described).indices, minlength=len(self._weights))
        self._weights = np.log(max(2, items) / np.maximum(1, met))
        self.items = self.of(described)

    def of(self, described: Sequence[Mapping[str, Sequence[str]]]) -> sp.csr_matrix:
        """Return vectors (n, V) of items with these attribute values; values not in the catalogue are ignored."""
        columns_of = [
            sorted({at for name, own in item.items() for v in own if (at := self._column.get((name, v))) is not None})
            for item in described
        ]
        columns = Ragged.of(columns_of, np.int64)
        values = self._weights[columns.values]
        length = np.sqrt(np.bincount(columns.row_of_value, values**2, len(columns)))
        values = values / np.where(length > 0, length, 1.0)[columns.row_of_value]
        return sp.csr_matrix((values, columns.values, columns.offsets), (len(columns_of), len(self._weights)))


class Facts(Protocol):
    """Interface to facts about items other than their scores."""

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """Return numbers of training interactions, float64 (n,)."""
        ...

    def attributes(self, rows: np.ndarray) -> sp.csr_matrix:
        """Return attribute vectors (n, V)."""
        ...


@dataclass(frozen=True)
class CatalogFacts:
    """:class:`Facts` of a catalogue alone: ``popularity`` int64 (I,) and ``vectors``."""

    popularity: np.ndarray
    vectors: AttributeVectors

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """See :class:`Facts`."""
        counts: np.ndarray = self.popularity[rows].astype(np.float64)
        return counts

    def attributes(self, rows: np.ndarray) -> sp.csr_matrix:
        """See :class:`Facts`."""
        return self.vectors.items[rows]


def features(
    scorer: HybridScorer, history: Ragged, rows: Ragged, entries: Entries, facts: Facts
) -> dict[str, np.ndarray]:
    """Return features of the candidates ``rows`` (one row of items per history), float64, one number per candidate."""
    items, parts = len(scorer.new), scorer.parts(history, rows, entries)
    table = {"score": np.sum(list(parts.values()), axis=0) + np.zeros(len(rows.values))}
    table |= {name: part for name, part in parts.items() if name not in entries}
    table |= {name: lookup(*entry, rows, items).astype(np.float64) for name, entry in entries.items()}
    table["popularity"] = np.log1p(facts.counts(rows.values))
    own, known = facts.attributes(rows.values), read(history)
    age = np.repeat(known.offsets[1:], known.lengths) - 1 - np.arange(len(known.values))
    read_vectors, places = facts.attributes(known.values), np.arange(len(known.values))
    for name, last in (("attributes", len(known.values)), ("attributes_latest", LATEST)):
        share = (age < last) / np.maximum(1, np.minimum(known.lengths, last))[known.row_of_value]
        profile = sp.csr_matrix((share, places, known.offsets), (len(known), len(places))) @ read_vectors
        table[name] = np.asarray(own.multiply(profile[rows.row_of_value]).sum(axis=1)).ravel()
    return table


@dataclass(frozen=True)
class RerankingScorer:
    """Scorer with a second stage: the best candidates of ``scorer`` outside the history are scored by s', and all other
    items are shifted to rank below them.

    ``scorer`` needs every component that the re-ranker names.
    """

    scorer: HybridScorer
    reranker: Reranker
    facts: Facts

    def __call__(self, history: Ragged) -> np.ndarray:
        """Return scores of all items, float32 (b, I)."""
        entries = self.scorer.entries(history)
        scores = self.scorer(history, entries)
        rows = best(scores, history, self.reranker.candidates)
        learned = self.reranker.scores(features(self.scorer, history, rows, entries, self.facts), rows)
        for b, own in enumerate(rows):
            if len(own):
                at = slice(rows.offsets[b], rows.offsets[b + 1])
                scores[b] += np.float32(learned[at].min() - scores[b, own[-1]])
                scores[b, own] = learned[at]
        return scores


def best(scores: np.ndarray, history: Ragged, count: int) -> Ragged:
    """Return the ``count`` best items outside each history, best first, ties by row."""
    orders = []
    for own, held in zip(scores, history, strict=True):
        left = own.copy()
        left[held] = -np.inf
        order = np.argsort(-left, kind="stable")[: min(count, len(own) - len(np.unique(held)))]
        orders.append(order)
    return Ragged.of(orders, np.int64)
