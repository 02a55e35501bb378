"""What is known of a user when a request comes: the bundle's history, then what the store has taken in since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from serving.engine.items.table import LiveItems
from serving.engine.requests import Fallback, FallbackReason
from serving.stores import LiveHistory
from setrec.data.catalog import Histories
from setrec.errors import UnknownUserError


@dataclass(frozen=True)
class Known:
    """A history as rows int64, oldest first, ids that are no items, and why it may be less than there is. ``avoided``:
    rows int64 of the items whose last event counts against them, and by how much, float64."""

    rows: np.ndarray
    skipped: tuple[str, ...] = ()
    fallback: Fallback | None = None
    avoided: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    strengths: np.ndarray = field(default_factory=lambda: np.empty(0))


class Users:
    """The bundle's histories, without those of users who were erased since."""

    def __init__(self, histories: Histories, event_weights: Mapping[str, float] | None = None) -> None:
        """``event_weights`` by type of event, 1 where a type is not named. What is above 0 is read, 0 is passed over,
        and an item whose last event is below 0 is avoided."""
        self._histories, self._weights = histories, dict(event_weights or {})
        self._erased: set[str] = set()

    def erase(self, user_id: str) -> None:
        """Hide what the bundle knows of a user, for as long as this lasts."""
        self._erased.add(user_id)

    def trained(self, user_id: str) -> np.ndarray | None:
        """Rows of the bundle's history of a user; ``None`` where it has none or the user was erased."""
        if user_id in self._erased:
            return None
        try:
            return self._histories.items[self._histories.row(user_id)]
        except UnknownUserError:
            return None

    def known(self, user_id: str, live: LiveHistory | None, items: LiveItems) -> Known:
        """A user's history; ``live`` is ``None`` where the store cannot be read.

        An item of both parts counts once, where the store has it: after a release the bundle's part holds events that
        the store still holds too.
        """
        if live is None:
            trained = self.trained(user_id)
            rows = np.empty(0, np.int64) if trained is None else items.now(trained)
            return Known(rows, (), Fallback("store_unavailable", "bundle_history" if len(rows) else "popularity"))
        trained = None if live.erased else self.trained(user_id)
        read, against = self._weighed(live.events)
        recent, skipped = items.rows(read)
        before = np.empty(0, np.int64) if trained is None else items.now(trained)
        rows = np.concatenate([before[~np.isin(before, recent)], recent])
        known = [(row, -weight) for item, weight in against.items() if (row := items.find(item)) is not None]
        avoided = np.array([row for row, _ in known], dtype=np.int64)
        strengths = np.array([strength for _, strength in known])
        rows = rows[~np.isin(rows, avoided)] if len(avoided) else rows
        if len(rows):
            return Known(rows, skipped, None, avoided, strengths)
        met = trained is not None or live.items
        reason: FallbackReason = "unknown_items" if skipped else "empty_history" if met else "new_user"
        return Known(rows, skipped, Fallback(reason, "popularity"), avoided, strengths)

    def _weighed(self, events: Sequence[tuple[str, str]]) -> tuple[list[str], dict[str, float]]:
        """Items to read, oldest first, and those to avoid with their weights."""
        weighed = [(item, self._weights.get(type_, 1.0)) for item, type_ in events]
        last = {item: weight for item, weight in weighed if weight}
        against = {item: weight for item, weight in last.items() if weight < 0}
        return [item for item, weight in weighed if weight > 0 and item not in against], against
