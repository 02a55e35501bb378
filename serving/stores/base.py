"""What every store of live state promises.

A call that returns has been kept: a process killed at any later moment loses nothing of it. A call that raises
:class:`StoreError` may or may not have been kept, so a caller who repeats it gives his events idempotency keys. Stores
may be shared by threads and by processes; what one has written, all others read at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from setrec.errors import SetRecError

ItemKind = Literal["put", "remove"]
RulesKind = Literal["put_rules", "remove_rules"]
Kind = ItemKind | RulesKind | Literal["erase"]
Position = tuple[float, int]  # (time, sequence number) of an event: where it stands in its user's history


def subject_of(kind: Kind) -> str:
    """What a change is about: ``item``, ``rules`` or ``user``."""
    return "user" if kind == "erase" else "rules" if kind.endswith("_rules") else "item"


class StoreError(SetRecError):
    """The store cannot be reached or used; nothing is known of what it holds."""


@dataclass(frozen=True, slots=True)
class Event:
    """A user met an item. ``time`` in seconds since 1970, UTC; ``key`` names the event, so a repeat is recognised.
    ``type``: what the user did, as "purchase" or "dislike"; empty where that is not told."""

    user_id: str
    item_id: str
    time: float
    key: str | None = None
    type: str = ""


@dataclass(frozen=True, slots=True)
class Appended:
    """How many events were new, and how many had come before under the same user and key."""

    accepted: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as it stands in a history; ``position`` orders it among the user's others."""

    item_id: str
    position: Position
    type: str = ""


@dataclass(frozen=True, slots=True)
class LiveHistory:
    """A user's latest item ids, oldest first, and the type of each event, empty where no event has one; ``erased``:
    whether all that was known before is to be forgotten."""

    items: tuple[str, ...] = ()
    erased: bool = False
    types: tuple[str, ...] = ()

    @classmethod
    def of(cls, events: Sequence[tuple[str, str]], erased: bool) -> LiveHistory:
        """The history of ``events``: items with types."""
        types = tuple(type_ for _, type_ in events)
        return cls(tuple(item for item, _ in events), erased, types if any(types) else ())

    @property
    def events(self) -> list[tuple[str, str]]:
        """Items with the types of their events."""
        return list(zip(self.items, self.types or ("",) * len(self.items), strict=True))


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the change log: an item or rule set put (``payload`` describes it) or removed, or a user erased."""

    seq: int
    kind: Kind
    id: str
    payload: str | None = None


class HistoryStore(Protocol):
    """Users' events, each user's in order of time, equal times in order of arrival."""

    def append(self, events: Sequence[Event]) -> Appended:
        """Keep all of ``events`` or none; an event whose user and key are known already is left as it is."""
        ...

    def latest(self, user_ids: Sequence[str], limit: int) -> list[LiveHistory]:
        """The last ``limit`` events of each user, in time that does not grow with how many came before."""
        ...

    def page(self, user_id: str, limit: int, before: Position | None = None) -> list[StoredEvent]:
        """Up to ``limit`` events, latest first; with ``before`` only those that stand before that position."""
        ...

    def erase(self, user_id: str) -> int:
        """Forget a user's events and keys for good, log the erasure, and say how many events there were."""
        ...


class ChangeLog(Protocol):
    """The last change of each item and rule set, and the erasure of users, in the order of their sequence numbers."""

    def record(self, kind: ItemKind | RulesKind, id: str, payload: str | None = None) -> int:
        """Log a change, which takes the place of the earlier one of that item or rule set; returns its sequence
        number."""
        ...

    def changes(self, after: int, limit: int = 500) -> list[Change]:
        """Up to ``limit`` changes with sequence numbers above ``after``; none that comes later will be below them."""
        ...


class LiveStore(HistoryStore, ChangeLog, Protocol):
    """Both in one place. Every method raises :class:`StoreError` where the store cannot be reached."""

    def close(self) -> None:
        """Let go of files and connections; calls that are under way are finished first."""
        ...
