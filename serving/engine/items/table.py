"""The table of current items: the bundle's items with later changes, removals and additions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import numpy as np

from setrec.data.catalog import Catalog
from setrec.errors import UnknownItemError


class LiveItems:
    """Ids, titles and attributes of R rows; the first I are the bundle's, in its order.

    Rows are immutable: an updated item gets a new row, and its old one loses its id.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._added: list[tuple[str, str, dict[str, list[str]]]] = []
        self._before: list[int] = []  # for each added row, the bundle's row of the same item, -1 for none
        self._row_of: dict[str, int] = {}
        self._gone: set[str] = set()
        # Current row of each of the bundle's items: its own row until it is changed, -1 if removed.
        self._moved = np.arange(len(catalog), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._catalog) + len(self._added)

    @property
    def added(self) -> int:
        """Number of added rows."""
        return len(self._added)

    @property
    def gone(self) -> Set[str]:
        """Ids of removed items; not a copy, do not modify."""
        return self._gone

    def find(self, item_id: str) -> int | None:
        """Return the row of an item, ``None`` if the id is unknown."""
        row = self._row_of.get(item_id)
        if row is None and item_id not in self._gone:
            row = self._catalog.find(item_id)
        return row

    def rows(self, item_ids: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return the rows, int64, of known items, in order, and the unknown ids."""
        found = [(item_id, self.find(item_id)) for item_id in item_ids]
        rows = np.fromiter((row for _, row in found if row is not None), dtype=np.int64)
        return rows, tuple(item_id for item_id, row in found if row is None)

    def now(self, bundle_rows: np.ndarray) -> np.ndarray:
        """Return the current rows, int64, of items at the bundle's rows, without removed items."""
        rows = self.moved(bundle_rows)
        return rows[rows >= 0]

    def moved(self, bundle_rows: np.ndarray) -> np.ndarray:
        """Return the current rows, int64, of items at the bundle's rows, -1 for removed items."""
        rows: np.ndarray = self._moved[bundle_rows]
        return rows

    def before(self, rows: np.ndarray) -> np.ndarray:
        """Return the bundle's rows, int64, of the items in ``rows``, -1 for items not in the bundle."""
        own, items = np.array(rows, dtype=np.int64), len(self._catalog)
        for at in np.flatnonzero(own >= items).tolist():
            own[at] = self._before[own[at] - items]
        return own

    def add(self, item_id: str, title: str, attributes: Mapping[str, Sequence[str]]) -> int:
        """Add an item in a new row, replacing any with the same id; return the row."""
        self.remove(item_id)
        row = len(self)
        self._added.append((item_id, title, {name: list(values) for name, values in attributes.items()}))
        self._row_of[item_id] = row
        self._gone.discard(item_id)
        own = self._catalog.find(item_id)
        self._before.append(-1 if own is None else own)
        if own is not None:
            self._moved[own] = row
        return row

    def remove(self, item_id: str) -> None:
        """Remove an item; unknown ids are also recorded as removed."""
        self._row_of.pop(item_id, None)
        self._gone.add(item_id)
        if (own := self._catalog.find(item_id)) is not None:
            self._moved[own] = -1

    def describe(self, row: int) -> tuple[str, str, dict[str, list[str]]]:
        """Return id, title and attributes of a row.

        Raises:
            UnknownItemError: there is no such row.
        """
        if row >= len(self):
            raise UnknownItemError(f"no item in row {row}")
        if row >= len(self._catalog):
            return self._added[row - len(self._catalog)]
        c = self._catalog
        return c.item_ids[row], c.titles[row], {name: values[row] for name, values in c.attributes.items()}
