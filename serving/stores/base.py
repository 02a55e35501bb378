"""Interface and guarantees of stores of live state.

When a call returns, its data is durable: a process killed later does not lose it. A call that raises
:class:`StoreError` may or may not have been stored, so callers who repeat it should use idempotency keys. Stores may be
shared by threads and processes; writes are visible to all readers immediately.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from setrec.errors import SetRecError

ItemKind = Literal["put", "remove"]
RulesKind = Literal["put_rules", "remove_rules"]
Kind = ItemKind | RulesKind | Literal["erase"]
Position = tuple[float, int]  # (time, sequence number) of an event: its position in the user's history


def subject_of(kind: Kind) -> str:
    """Return the subject of a change: ``item``, ``rules`` or ``user``."""
    return "user" if kind == "erase" else "rules" if kind.endswith("_rules") else "item"


class StoreError(SetRecError):
    """The store cannot be reached or used; its content is unknown."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a user with an item. ``time`` in seconds since 1970, UTC; ``key`` identifies the event, so that
    repeats are recognised. ``type``: for example "purchase" or "dislike"; empty if unknown."""

    user_id: str
    item_id: str
    time: float
    key: str | None = None
    type: str = ""


@dataclass(frozen=True, slots=True)
class Appended:
    """Numbers of new events, and of events stored before with the same user and key."""

    accepted: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event of a stored history; ``position`` orders the user's events."""

    item_id: str
    position: Position
    type: str = ""


@dataclass(frozen=True, slots=True)
class LiveHistory:
    """A user's latest item ids, oldest first, and the type of each event, empty if no event has one; ``erased``:
    whether all earlier history must be ignored."""

    items: tuple[str, ...] = ()
    erased: bool = False
    types: tuple[str, ...] = ()

    @classmethod
    def of(cls, events: Sequence[tuple[str, str]], erased: bool) -> LiveHistory:
        """Build a history from ``events``: items with types."""
        types = tuple(type_ for _, type_ in events)
        return cls(tuple(item for item, _ in events), erased, types if any(types) else ())

    @property
    def events(self) -> list[tuple[str, str]]:
        """Return items with the types of their events."""
        return list(zip(self.items, self.types or ("",) * len(self.items), strict=True))


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the change log: an added (with ``payload``) or removed item or rule set, or an erased user."""

    seq: int
    kind: Kind
    id: str
    payload: str | None = None


class HistoryStore(Protocol):
    """Store of users' events, in order of time for each user, ties in order of arrival."""

    def append(self, events: Sequence[Event]) -> Appended:
        """Store all of ``events`` or none; events with a known user and key are ignored."""
        ...

    def latest(self, user_ids: Sequence[str], limit: int) -> list[LiveHistory]:
        """Return the last ``limit`` events of each user, in time independent of the number of earlier ones."""
        ...

    def page(self, user_id: str, limit: int, before: Position | None = None) -> list[StoredEvent]:
        """Return up to ``limit`` events, latest first; with ``before`` only earlier ones than that position."""
        ...

    def erase(self, user_id: str) -> int:
        """Delete a user's events and keys permanently, log the erasure, and return the number of events."""
        ...


class ChangeLog(Protocol):
    """Log of the last change of each item and rule set, and of erased users, in the order of sequence numbers."""

    def record(self, kind: ItemKind | RulesKind, id: str, payload: str | None = None) -> int:
        """Log a change, which replaces the earlier one of that item or rule set; return its sequence number."""
        ...

    def changes(self, after: int, limit: int = 500) -> list[Change]:
        """Return up to ``limit`` changes with sequence numbers above ``after``; later changes have larger numbers."""
        ...


class LiveStore(HistoryStore, ChangeLog, Protocol):
    """Both interfaces in one store. Every method raises :class:`StoreError` if the store cannot be reached."""

    def close(self) -> None:
        """Close files and connections after running calls have finished."""
        ...
