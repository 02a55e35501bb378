"""Changes that come from outside: logged in the store first, then applied here; other replicas follow."""

from __future__ import annotations

from serving.engine.engine import Engine
from serving.engine.rules import RuleSet
from serving.stores import LiveStore
from serving.stores.item_changes import ItemFields
from setrec.errors import SetRecError, UnknownItemError

MAX_LIVE_ITEMS = 100_000
MAX_RULE_SETS = 100


class NoStoreError(SetRecError):
    """There is no store, so nothing can be changed."""


class FullError(SetRecError):
    """No more items fit beside the bundle's; a new bundle has to take them in."""


def require_store(engine: Engine) -> LiveStore:
    """The store behind ``engine``.

    Raises:
        NoStoreError: there is none.
    """
    if engine.store is None:
        raise NoStoreError("nothing is stored here: the endpoint was started without a store")
    return engine.store


def put_item(engine: Engine, item_id: str, fields: ItemFields) -> bool:
    """Add an item or describe it anew; when this returns, ``engine`` recommends it. Returns whether it is new.

    Raises:
        NoStoreError, StoreError: it cannot be kept. CannotEncodeError: it cannot be placed. FullError: too many items.
    """
    store = require_store(engine)
    engine.catch_up()
    with engine.lock:
        is_new = engine.state.items.find(item_id) is None
        before, count = engine.state.fields.get(item_id), len(engine.state.fields)
    if before == fields:
        return False
    if before is None and count >= MAX_LIVE_ITEMS:
        raise FullError(f"{count} items were put since the bundle was made; release a bundle that holds them")
    store.record("put", item_id, engine.coder.encode(fields).model_dump_json())
    engine.catch_up()
    return is_new


def remove_item(engine: Engine, item_id: str) -> None:
    """Take an item out, of the bundle or live; when this returns, ``engine`` no longer recommends it. May be repeated.

    Raises:
        UnknownItemError: there never was such an item. NoStoreError, StoreError: it cannot be kept.
    """
    store = require_store(engine)
    engine.catch_up()
    with engine.lock:
        is_there, was_there = engine.state.items.find(item_id) is not None, item_id in engine.state.items.gone
    if is_there:
        store.record("remove", item_id)
        engine.catch_up()
    elif not was_there:
        raise UnknownItemError(f"unknown item {item_id!r}")


def erase_user(engine: Engine, user_id: str) -> int:
    """Forget a user's events and hide what any bundle knows of them, for good; returns how many events there were.

    Raises:
        NoStoreError, StoreError: the store is missing or cannot be reached.
    """
    events = require_store(engine).erase(user_id)
    engine.catch_up()
    return events


def put_rules(engine: Engine, name: str, rules: RuleSet) -> bool:
    """Keep a rule set; when this returns, ``engine`` applies it. Returns whether the name is new.

    Raises:
        NoStoreError, StoreError: it cannot be kept. FullError: too many rule sets.
    """
    store = require_store(engine)
    engine.catch_up()
    with engine.lock:
        before, count = engine.state.rules.get(name), len(engine.state.rules)
    if before is None and count >= MAX_RULE_SETS:
        raise FullError(f"there are {count} rule sets, the most that are kept")
    if before != rules:
        store.record("put_rules", name, rules.packed())
        engine.catch_up()
    return before is None


def remove_rules(engine: Engine, name: str) -> bool:
    """Take a rule set out; returns whether there was one. Raises: NoStoreError, StoreError: it cannot be kept."""
    store = require_store(engine)
    engine.catch_up()
    with engine.lock:
        known = name in engine.state.rules
    if known:
        store.record("remove_rules", name)
        engine.catch_up()
    return known
