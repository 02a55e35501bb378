"""Stores of live events, item changes and erasures: SQLite by default, Redis by URL."""

from __future__ import annotations

from serving.stores.base import Appended, Change, Event, LiveHistory, LiveStore, Position, StoredEvent, StoreError

__all__ = [
    "Appended",
    "Change",
    "Event",
    "LiveHistory",
    "LiveStore",
    "Position",
    "StoreError",
    "StoredEvent",
    "open_store",
]

_REDIS = ("redis://", "rediss://", "unix://")


def open_store(place: str) -> LiveStore:
    """Open the store at ``place``: a Redis URL, or the path of an SQLite file, which is created if missing.

    Redis need not answer yet; a file must be usable immediately.

    Raises:
        StoreError: the file cannot be used, or ``place`` is a URL of another kind.
    """
    if place.startswith(_REDIS):
        from serving.stores.redis import RedisStore

        return RedisStore(place)
    if "://" in place:
        raise StoreError(f"{place}: a store is the path of a file or a URL that starts with {', '.join(_REDIS)}")
    from serving.stores.sqlite import SqliteStore

    return SqliteStore(place)
