"""Live items in the components of the score: bundle's arcs as items stand now, and text similarity to live items.

Text similarity to a live item is computed from both texts when a history is read, so an item put a moment ago is as
near to a history as if the bundle held it. Where a live item stands in a history itself, its arcs to the bundle's items
were computed once, when it was put.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from serving.items import ItemTable
from setrec.ragged import Ragged
from setrec.scoring.item_graph import Arcs
from setrec.scoring.text_similarity import TextFeatures, greatest, kept_arcs


@dataclass(frozen=True)
class ItemText:
    """The text of one live item: its ``features`` (one row), and its arcs to the bundle's items: ``targets`` int64 and
    ``shares`` float32."""

    features: TextFeatures
    targets: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, features: TextFeatures, bundle: TextFeatures) -> ItemText:
        """Compare one text with those of the bundle."""
        near = greatest(bundle.similarity(features).T, kept_arcs(len(bundle)))
        return cls(features, near.indices.astype(np.int64), near.data.astype(np.float32))


class LiveTexts:
    """Texts of the rows beyond the bundle's, in their order."""

    def __init__(self, bundle: TextFeatures) -> None:
        self.bundle = bundle
        self._texts: list[ItemText] = []
        self._stacked: TextFeatures | None = None

    def add(self, text: ItemText) -> None:
        """Add the text of the next row."""
        self._texts.append(text)

    def __getitem__(self, number: int) -> ItemText:
        return self._texts[number]

    @property
    def features(self) -> TextFeatures:
        """Features of all of them; stacked when first asked for after items came."""
        done = 0 if self._stacked is None else len(self._stacked)
        if done < len(self._texts):
            parts = [text.features for text in self._texts[done:]]
            self._stacked = stacked(parts if self._stacked is None else [self._stacked, *parts])
        return self.bundle.take(np.empty(0, np.int64)) if self._stacked is None else self._stacked

    def similarity(self, rows: np.ndarray) -> np.ndarray:
        """G of ``rows``, the bundle's or live ones, and all live items, float32 (rows, n)."""
        items, live = len(self.bundle), self.features
        own = rows < items
        found = np.empty((len(rows), len(live)), np.float32)
        found[own] = self.bundle.take(rows[own]).similarity(live)
        found[~own] = live.take(rows[~own] - items).similarity(live)
        return found


def stacked(parts: list[TextFeatures]) -> TextFeatures:
    """The rows of all parts, one part after the other."""
    sentences = [part.sentences for part in parts if part.sentences is not None]
    lexical = sp.vstack([part.lexical for part in parts], format="csr")
    return TextFeatures(lexical, np.concatenate(sentences) if sentences else None)


class LiveArcs:
    """Arcs between R rows of a live item table, from the ``arcs`` between the bundle's items.

    An item that was described anew keeps its arcs. With ``texts`` arcs are of text similarity: such an item has those
    of its new text alone.
    """

    def __init__(self, arcs: Arcs, items: ItemTable, texts: LiveTexts | None = None) -> None:
        self._arcs, self._items, self._texts = arcs, items, texts

    def __len__(self) -> int:
        return len(self._items)

    def take(self, rows: np.ndarray) -> tuple[Ragged, np.ndarray]:
        """See :class:`setrec.scoring.item_graph.Arcs`."""
        rows = rows.astype(np.int64)
        own = self._items.before(rows) if self._texts is None else np.where(rows < len(self._arcs), rows, -1)
        held = np.flatnonzero(own >= 0)
        targets, shares = self._arcs.take(own[held])
        parts = [self._now(held[targets.row_of_value], targets.values, shares)]
        if self._texts is not None:
            parts += self._to_and_from_live(rows, self._texts)
        at, to, share = (np.concatenate(each) for each in zip(*parts, strict=True))
        order = np.argsort(at, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(at, minlength=len(rows)))])
        return Ragged(to[order], offsets), share[order]

    def _now(self, at: np.ndarray, targets: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, ...]:
        """Arcs to where the bundle's items stand now; of text similarity, to those whose text is the bundle's."""
        now = self._items.moved(targets)
        kept = now >= 0 if self._texts is None else now == targets
        return at[kept], now[kept], shares[kept]

    def _to_and_from_live(self, rows: np.ndarray, texts: LiveTexts) -> list[tuple[np.ndarray, ...]]:
        items = len(self._arcs)
        distinct, place = np.unique(rows, return_inverse=True)
        shares = texts.similarity(distinct)[place]
        at, live = np.nonzero(shares)
        parts: list[tuple[np.ndarray, ...]] = [(at, live + items, shares[at, live])]
        for number in np.flatnonzero(rows >= items).tolist():
            text = texts[int(rows[number]) - items]
            parts.append(self._now(np.full(len(text.targets), number), text.targets, text.shares))
        return parts
