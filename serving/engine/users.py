"""Histories of users: the bundle's history, followed by the live events in the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from serving.engine.items.table import LiveItems
from serving.engine.requests import Fallback, FallbackReason
from serving.stores import LiveHistory
from setrec.data.catalog import Histories
from setrec.data.events import avoided, read
from setrec.errors import UnknownUserError
from setrec.ragged import Ragged

NO_EVENTS = Ragged(np.empty(0, np.int64), np.array([0, 0]))
DEFAULT_WEIGHTS = {"dislike": -1.0}


@dataclass(frozen=True)
class History:
    """A history as ``events``, one row of item rows int64, oldest first, with weights if they differ (see
    :mod:`setrec.data.events`); ``skipped``: unknown ids; ``fallback``: why the history may be incomplete."""

    events: Ragged = NO_EVENTS
    skipped: tuple[str, ...] = ()
    fallback: Fallback | None = None

    @cached_property
    def rows(self) -> np.ndarray:
        """Items that the model reads, int64."""
        return read(self.events).values

    @cached_property
    def avoided(self) -> np.ndarray:
        """Items whose last event has a negative weight, int64."""
        found = avoided(self.events)
        return NO_EVENTS.values if found is None else found.values


class Users:
    """The bundle's histories, without those of users erased since."""

    def __init__(self, histories: Histories, event_weights: Mapping[str, float] | None = None) -> None:
        """``event_weights`` by type of event, 1 for other types; events of weight 0 are ignored."""
        self._histories, self._weights = histories, DEFAULT_WEIGHTS if event_weights is None else dict(event_weights)
        self._erased: set[str] = set()

    def erase(self, user_id: str) -> None:
        """Hide the bundle's history of a user, for the lifetime of this object."""
        self._erased.add(user_id)

    def trained(self, user_id: str) -> Ragged | None:
        """Return the bundle's history of a user, one row; ``None`` if there is none or the user was erased."""
        if user_id in self._erased:
            return None
        try:
            return self._histories.items.take(np.array([self._histories.row(user_id)]))
        except UnknownUserError:
            return None

    def history(self, user_id: str, live: LiveHistory | None, items: LiveItems) -> History:
        """Return a user's history; ``live`` is ``None`` if the store cannot be read.

        An item in both parts counts once, at its place in the store: after a release the bundle contains events that
        are still in the store.
        """
        if live is None:
            before = self._before(user_id, items)
            is_read = len(History(before).rows) > 0
            return History(before, (), Fallback("store_unavailable", "bundle_history" if is_read else "popularity"))
        trained = NO_EVENTS if live.erased else self._before(user_id, items)
        if not live.events and len((known := History(trained)).rows):
            return known
        recent, skipped = self._recent(live, items)
        trained = trained.where(~np.isin(trained.values, recent.values))
        events = Ragged.joined([trained, recent])
        events = Ragged(events.values, np.array([0, len(events.values)]), events.weights)
        history = History(events, skipped)
        if len(history.rows):
            return history
        met = live.items or (not live.erased and self.trained(user_id) is not None)
        reason: FallbackReason = "unknown_items" if skipped else "empty_history" if met else "new_user"
        return History(events, skipped, Fallback(reason, "popularity"))

    def _before(self, user_id: str, items: LiveItems) -> Ragged:
        """Return the bundle's history with the current rows of its items."""
        trained = self.trained(user_id)
        if trained is None:
            return NO_EVENTS
        now = items.moved(trained.values)
        there = trained.where(now >= 0)
        return Ragged(now[now >= 0], there.offsets, there.weights)

    def _recent(self, live: LiveHistory, items: LiveItems) -> tuple[Ragged, tuple[str, ...]]:
        """Return live events, and the unknown ids among those of positive weight."""
        weighed = [(item, self._weights.get(type_, 1.0)) for item, type_ in live.events]
        found = [(item, items.find(item), weight) for item, weight in weighed if weight]
        rows = np.array([row for _, row, _ in found if row is not None], dtype=np.int64)
        weights = np.array([weight for _, row, weight in found if row is not None], dtype=np.float32)
        skipped = tuple(item for item, row, weight in found if row is None and weight > 0)
        return Ragged(rows, np.array([0, len(rows)]), None if (weights == 1).all() else weights), skipped
