"""What is served now: the bundle's items and users, with every live change on top. One lock's worth: see the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from serving.changes import ItemFields
from serving.filters import AttributeIndex, Filter
from serving.items import ItemTable
from serving.live_index import LiveIndex
from serving.popularity import Popularity
from serving.users import Users

if TYPE_CHECKING:
    from serving.bundle import Bundle

_SPARE_ROWS = 1000


class State:
    """Items in R rows, searchable, filterable and described, and users; R grows with every item put."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self.index = LiveIndex(bundle.retriever)
        self.items = ItemTable(bundle.catalog)
        self.attributes = AttributeIndex(bundle.catalog.attributes, len(bundle.catalog))
        self.users = Users(bundle.histories)
        self.popularity = Popularity(bundle.popularity)
        self.fields: dict[str, ItemFields] = {}  # of the items put since the bundle was made

    @property
    def is_wasteful(self) -> bool:
        """Whether most rows beyond the bundle's belong to items that were put again or removed since."""
        return self.items.added > 2 * len(self.fields) + _SPARE_ROWS

    def put(self, item_id: str, fields: ItemFields, code: np.ndarray) -> None:
        """Add an item with its code float32 (D,), in place of the one of the same id, if any."""
        self._retire(item_id)
        row = self.index.add(code)
        self.attributes.append(fields.attributes)
        assert row == self.items.add(item_id, fields.title, fields.attributes)
        self.fields[item_id] = fields

    def remove(self, item_id: str) -> None:
        """Take an item out; an id that is none is remembered as removed."""
        self._retire(item_id)
        self.items.remove(item_id)
        self.fields.pop(item_id, None)

    def allowed(self, filter: Filter | None, allow: tuple[str, ...] | None) -> np.ndarray | None:
        """Rows that may be answered, bool (R,); ``None`` for all.

        Raises:
            FilterError: the filter asks for an attribute that no item has.
        """
        mask = None if filter is None else self.attributes.rows(filter)
        if allow is None:
            return mask
        rows, _ = self.items.rows(allow)
        named = np.zeros(len(self.items), dtype=bool)
        named[rows] = True if mask is None else mask[rows]
        return named

    def compact(self) -> State:
        """The same items and users in as few rows as they need."""
        fresh = State(self._bundle)
        fresh.users = self.users
        for item_id in self.items.gone:
            fresh.remove(item_id)
        for item_id, fields in self.fields.items():
            row = self.items.find(item_id)
            assert row is not None
            fresh.put(item_id, fields, self.index.codes([row])[0])
        return fresh

    def _retire(self, item_id: str) -> None:
        row = self.items.find(item_id)
        if row is not None:
            self.index.remove(row)
