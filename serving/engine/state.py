"""The served state: the bundle's items and users with all live changes. The engine's lock protects it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np

from serving.bundle.reader import Bundle
from serving.engine.items.availability import Availability
from serving.engine.items.coder import CodedItem
from serving.engine.items.live_components import LiveComponent, LiveTexts
from serving.engine.items.popularity import PopularityRanking
from serving.engine.items.table import LiveItems
from serving.engine.ranking.candidates import ScoringBatch, UserScores
from serving.engine.ranking.second_stage import SecondStage
from serving.engine.rules import Boost, RuleSet
from serving.engine.users import Users
from serving.retrieval.code_table import CodeTable
from serving.retrieval.exact import largest_norm
from serving.retrieval.filters import AttributeIndex, Filter, FilterError
from serving.retrieval.index_codes import IndexCodes
from serving.retrieval.live_index import LiveIndex
from serving.stores.item_changes import ItemFields
from setrec.ragged import Ragged
from setrec.scoring import registry
from setrec.scoring.hybrid import HybridScorer
from setrec.scoring.kernels.scan import RoundedCodes

_SPARE_ROWS = 1000


class State:
    """Items in R rows, with index, filters and descriptions, and users; R grows with every added item."""

    def __init__(self, bundle: Bundle, event_weights: Mapping[str, float] | None = None) -> None:
        """``event_weights``: see :class:`serving.engine.users.Users`."""
        self._bundle = bundle
        self.index = LiveIndex(bundle.retriever)
        self.items = LiveItems(bundle.catalog)
        self._space = None if bundle.retriever.codes is bundle.codes else IndexCodes(bundle.manifest.scorer.new_items)
        own = None if self._space is None else CodeTable(bundle.codes, largest_norm(bundle.codes))
        self.codes = own or self.index.table
        self._new = bundle.new
        self._rounded = RoundedCodes.of(bundle.codes) if bundle.retriever.kind == "exact" else None
        self._bias = bundle.model.repeat_bias(bundle.manifest.scorer.slots)
        self._texts = None if bundle.texts is None else LiveTexts(bundle.texts.features)
        self._live_components = {
            name: LiveComponent(component, self.items, self._texts if registry.kinds()[name].of_content else None)
            for name, component in bundle.components.items()
        }
        self.attributes = AttributeIndex(bundle.catalog.attributes, len(bundle.catalog))
        self.users = Users(bundle.histories, event_weights)
        self.popularity = PopularityRanking(bundle.popularity)
        reranker = bundle.manifest.reranker
        self.second_stage: SecondStage | None = None
        if reranker is not None:
            self.second_stage = SecondStage(reranker, bundle.attribute_vectors, self.items, self.popularity)
        self.availability = Availability(bundle.catalog.attributes, len(bundle.catalog))
        self.fields: dict[str, ItemFields] = {}  # of the items added since the bundle was written
        self.rules: dict[str, RuleSet] = {}

    @property
    def new(self) -> np.ndarray:
        """Mask of the items without training interactions, bool (R,)."""
        return self._new[: len(self.items)]

    @property
    def is_wasteful(self) -> bool:
        """Whether most added rows belong to items that were updated or removed since."""
        return self.items.added > 2 * len(self.fields) + _SPARE_ROWS

    def put(self, item_id: str, fields: ItemFields, coded: CodedItem) -> None:
        """Add an item, replacing any with the same id."""
        self._retire(item_id)
        row = self._add(coded)
        self.attributes.append(fields.attributes)
        assert row == self.items.add(item_id, fields.title, fields.attributes)
        self.availability.add(row, fields.available_from, fields.available_until)
        self.fields[item_id] = fields

    def batch(self, users: np.ndarray, history: Ragged) -> ScoringBatch:
        """Return the scoring batch of histories with user codes float32 (B, D)."""
        weights, columns = self._bundle.manifest.scorer, self._bundle.manifest.code_columns
        term = UserScores(
            users, self.codes.base, self.codes.fresh, self.codes.largest, columns, self._bias, self._rounded
        )
        scorer = HybridScorer(term, {}, weights, self.new)
        components = self._live_components if self.items.added else self._bundle.components
        entries = {name: component.entries(history) for name, component in components.items()}
        return ScoringBatch(scorer, term, history, entries)

    def queries(self, users: np.ndarray) -> np.ndarray:
        """Return the index queries of user codes float32 (B, D)."""
        return users if self._space is None else self._space.of_users(users)

    def remove(self, item_id: str) -> None:
        """Remove an item; unknown ids are also recorded as removed."""
        self._retire(item_id)
        self.items.remove(item_id)
        self.fields.pop(item_id, None)

    def boosted(self, boosts: Sequence[Boost]) -> tuple[np.ndarray, np.ndarray]:
        """Return rows, int64 ascending, whose scores boosts change, and the total changes, float64. A filter on an
        attribute that no item has matches nothing."""
        total = np.zeros(len(self.items))
        for boost in boosts:
            named = np.zeros(len(self.items), dtype=bool)
            if boost.filter is not None:
                with suppress(FilterError):
                    named |= self.attributes.rows(boost.filter)
            named[self.items.rows(boost.items)[0]] = True
            total += boost.amount * named
        rows = np.flatnonzero(total)
        return rows, total[rows]

    def allowed(
        self, filter: Filter | None, allow: tuple[str, ...] | None, new_only: bool = False
    ) -> np.ndarray | None:
        """Return the mask of allowed rows, bool (R,); ``None`` for all. ``new_only``: only items without training
        interactions.

        Raises:
            FilterError: the filter names an attribute that no item has.
        """
        mask = None if filter is None else self.attributes.rows(filter)
        if new_only:
            mask = self.new if mask is None else mask & self.new
        if allow is None:
            return mask
        rows, _ = self.items.rows(allow)
        named = np.zeros(len(self.items), dtype=bool)
        named[rows] = True if mask is None else mask[rows]
        return named

    def compact(self) -> State:
        """Return a state with the same items and users, without unused rows."""
        fresh = State(self._bundle)
        fresh.users, fresh.rules = self.users, self.rules
        for item_id in self.items.gone:
            fresh.remove(item_id)
        for item_id, fields in self.fields.items():
            row = self.items.find(item_id)
            assert row is not None
            fresh.put(item_id, fields, self._coded(row))
        return fresh

    def _add(self, coded: CodedItem) -> int:
        """Add a row to all structures for search and scoring."""
        new = np.array([coded.new])
        row = self.index.add(coded.code if self._space is None else self._space.of_items(coded.code[None], new)[0])
        if self._space is not None:
            self.codes.add(coded.code)
        if row == len(self._new):
            self._new = np.append(self._new, np.zeros(max(row // 2, 1024), dtype=bool))
        self._new[row] = coded.new
        if self._texts is not None:
            assert coded.text is not None
            self._texts.add(coded.text)
        return row

    def _coded(self, row: int) -> CodedItem:
        text = None if self._texts is None else self._texts[row - len(self._bundle.catalog)]
        return CodedItem(self.codes.take([row])[0], bool(self._new[row]), text)

    def _retire(self, item_id: str) -> None:
        row = self.items.find(item_id)
        if row is not None:
            self.index.remove(row)
