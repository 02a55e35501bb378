"""Live items in the components of the score: the bundle's arcs between current items, and text similarity to live
items.

Text similarity to a live item is computed from both texts when a history is read, so that a new item has the same
similarity as if it were in the bundle. For live items in a history, the arcs to the bundle's items are computed once,
when the item is added.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from serving.engine.items.table import LiveItems
from setrec.ragged import Ragged
from setrec.scoring.item_graph import GraphComponent, ItemGraph, root, start_weights, without_avoided
from setrec.scoring.kernels.histories import read_arcs
from setrec.scoring.text_similarity import TextFeatures, greatest, kept_arcs

_CELLS = 1 << 22
"""Number of similarities to live items in memory at a time."""


@dataclass(frozen=True)
class LiveItemText:
    """The text of one live item: its ``features`` (one row), and its arcs to the bundle's items: ``targets`` int64 and
    ``shares`` float32."""

    features: TextFeatures
    targets: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, features: TextFeatures, bundle: TextFeatures) -> LiveItemText:
        """Compute the arcs from one text to those of the bundle."""
        near = greatest(bundle.similarity(features).T, kept_arcs(len(bundle)))
        return cls(features, near.indices.astype(np.int64), near.data.astype(np.float32))


class LiveTexts:
    """Texts of the rows after the bundle's, in order."""

    def __init__(self, bundle: TextFeatures) -> None:
        self.bundle = bundle
        self._texts: list[LiveItemText] = []
        self._stacked: TextFeatures | None = None

    def add(self, text: LiveItemText) -> None:
        """Add the text of the next row."""
        self._texts.append(text)

    def __getitem__(self, number: int) -> LiveItemText:
        return self._texts[number]

    @property
    def features(self) -> TextFeatures:
        """Return the features of all texts, stacked again after items were added."""
        done = 0 if self._stacked is None else len(self._stacked)
        if done < len(self._texts):
            parts = [text.features for text in self._texts[done:]]
            self._stacked = stacked(parts if self._stacked is None else [self._stacked, *parts])
        return self.bundle.take(np.empty(0, np.int64)) if self._stacked is None else self._stacked

    def sums(self, near: Ragged, weight: np.ndarray) -> np.ndarray:
        """Return the weighted sums of G to all live items, float64 (rows, n), for each row of ``near``, items of
        histories with ``weight`` float64, one each."""
        items, live = len(self.bundle), self.features
        distinct, place = np.unique(near.values, return_inverse=True)  # the bundle's rows come first
        own = stacked([self.bundle.take(distinct[distinct < items]), live.take(distinct[distinct >= items] - items)])
        read = sp.csr_matrix((weight, place, near.offsets), (len(near), len(distinct)))
        step = max(1, _CELLS // max(1, len(distinct)))
        parts = [
            read @ own.similarity(live.take(np.arange(start, min(start + step, len(live)))))
            for start in range(0, len(live), step)
        ]
        return np.concatenate([np.empty((len(near), 0)), *parts], axis=1)


def stacked(parts: list[TextFeatures]) -> TextFeatures:
    """Concatenate the rows of all parts."""
    sentences = [part.sentences for part in parts if part.sentences is not None]
    lexical = sp.vstack([part.lexical for part in parts], format="csr")
    return TextFeatures(lexical, np.concatenate(sentences) if sentences else None)


class LiveComponent:
    """A ``component`` of the bundle over the R rows of a live item table.

    An updated item keeps its arcs. With ``texts``, arcs are of text similarity: an updated item has those of its new
    text.
    """

    def __init__(self, component: GraphComponent, items: LiveItems, texts: LiveTexts | None = None) -> None:
        assert isinstance(component.arcs, ItemGraph)
        self._graph, self._reading = component.arcs, component.reading
        self._items, self._texts = items, texts

    def entries(self, history: Ragged) -> tuple[Ragged, np.ndarray]:
        """See :class:`setrec.scoring.registry.Component`."""
        return without_avoided(self._entries, history, len(self._items))

    def _entries(self, history: Ragged) -> tuple[Ragged, np.ndarray]:
        near, weight = start_weights(history, self._reading)
        before, items = self._items.before(history.values), len(self._graph)
        held = Ragged(before, history.offsets).where(before >= 0)
        own = self._items.before(near.values) if self._texts is None else near.values
        known = (own >= 0) & (own < items)
        rows = Ragged(own, near.offsets).where(known)
        read = [read_arcs(rows, weight[known], self._graph.targets, self._graph.shares, held, items)]
        if self._texts is not None and not known.all():
            read.append(self._from_live(self._texts, near.where(~known), weight[~known], held))
        row = np.concatenate([places.row_of_value for places, _ in read])
        target = np.concatenate([places.values for places, _ in read])
        total = np.concatenate([sums for _, sums in read])
        if len(read) > 1:
            keys, at = np.unique(row * items + target, return_inverse=True)
            (row, target), total = np.divmod(keys, items), np.bincount(at, total, minlength=len(keys))
        now = self._items.moved(target)
        # For text similarity, arcs lead to items with the bundle's texts; arcs to other texts are computed.
        kept = now >= 0 if self._texts is None else now == target
        row, now, total = row[kept], now[kept], total[kept]
        if self._texts is not None:
            live = self._texts.sums(near, weight)
            fresh = history.values >= items
            live[history.row_of_value[fresh], history.values[fresh] - items] = 0.0
            some, column = np.nonzero(live)
            row, now = np.concatenate([row, some]), np.concatenate([now, column + items])
            total = np.concatenate([total, live[some, column]])
        order = np.argsort(row * len(self._items) + now, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(history)))])
        return Ragged(now[order], offsets), root(total[order], self._reading.power)

    def _from_live(self, texts: LiveTexts, near: Ragged, weight: np.ndarray, held: Ragged) -> tuple[Ragged, np.ndarray]:
        """Return the entries of the bundle's items from live items of histories, by their precomputed arcs."""
        items = len(self._graph)
        distinct, place = np.unique(near.values, return_inverse=True)
        own = [texts[row - items] for row in distinct.tolist()]
        shares = np.concatenate([text.shares for text in own])
        arcs = Ragged.of([text.targets for text in own], np.int64)
        return read_arcs(Ragged(place, near.offsets), weight, arcs, shares, held, items)
