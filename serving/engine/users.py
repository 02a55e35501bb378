"""What is known of a user when a request comes: the bundle's history, then what the store has taken in since."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.engine.items.table import LiveItems
from serving.engine.requests import Fallback, FallbackReason
from serving.stores import LiveHistory
from setrec.data.catalog import Histories
from setrec.errors import UnknownUserError


@dataclass(frozen=True)
class Known:
    """A history as rows int64, oldest first, ids that are no items, and why it may be less than there is."""

    rows: np.ndarray
    skipped: tuple[str, ...] = ()
    fallback: Fallback | None = None


class Users:
    """The bundle's histories, without those of users who were erased since."""

    def __init__(self, histories: Histories) -> None:
        self._histories = histories
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
        recent, skipped = items.rows(live.items)
        before = np.empty(0, np.int64) if trained is None else items.now(trained)
        rows = np.concatenate([before[~np.isin(before, recent)], recent])
        if len(rows):
            return Known(rows, skipped)
        met = trained is not None or live.items
        reason: FallbackReason = "unknown_items" if skipped else "empty_history" if met else "new_user"
        return Known(rows, skipped, Fallback(reason, "popularity"))
