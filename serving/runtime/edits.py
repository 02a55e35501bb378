"""Live changes: logged in the store first, then applied in this process; other replicas follow."""

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
    """The maximum number of added items is reached; a new bundle has to include them."""


def require_store(engine: Engine) -> LiveStore:
    """Return the store of ``engine``.

    Raises:
        NoStoreError: there is none.
    """
    if engine.store is None:
        raise NoStoreError("live changes cannot be stored: the endpoint was started without a store")
    return engine.store


def put_item(engine: Engine, item_id: str, fields: ItemFields) -> bool:
    """Add or update an item; when this returns, ``engine`` recommends it. Return whether it is new.

    Raises:
        NoStoreError, StoreError: it cannot be stored.
        CannotEncodeError: it cannot be coded.
        FullError: too many items.
    """
    store = require_store(engine)
    engine.catch_up()
    with engine.lock:
        is_new = engine.state.items.find(item_id) is None
        before, count = engine.state.fields.get(item_id), len(engine.state.fields)
    if before == fields:
        return False
    if before is None and count >= MAX_LIVE_ITEMS:
        raise FullError(f"{count} items were added since the bundle was written; release a bundle that contains them")
    store.record("put", item_id, engine.coder.encode(fields).model_dump_json())
    engine.catch_up()
    return is_new


def remove_item(engine: Engine, item_id: str) -> None:
    """Remove an item of the bundle or a live one; when this returns, ``engine`` no longer recommends it. Idempotent.

    Raises:
        UnknownItemError: the item never existed.
        NoStoreError, StoreError: the change cannot be stored.
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
    """Erase a user's events and hide their histories in all bundles, permanently; return the number of events.

    Raises:
        NoStoreError, StoreError: the store is missing or cannot be reached.
    """
    events = require_store(engine).erase(user_id)
    engine.catch_up()
    return events


def put_rules(engine: Engine, name: str, rules: RuleSet) -> bool:
    """Store a rule set; when this returns, ``engine`` applies it. Return whether the name is new.

    Raises:
        NoStoreError, StoreError: it cannot be stored.
        FullError: too many rule sets.
    """
    store = require_store(engine)
    engine.catch_up()
    with engine.lock:
        before, count = engine.state.rules.get(name), len(engine.state.rules)
    if before is None and count >= MAX_RULE_SETS:
        raise FullError(f"there are {count} rule sets, the maximum")
    if before != rules:
        store.record("put_rules", name, rules.packed())
        engine.catch_up()
    return before is None


def remove_rules(engine: Engine, name: str) -> bool:
    """Remove a rule set; return whether it existed. Raises: NoStoreError, StoreError: the change cannot be stored."""
    store = require_store(engine)
    engine.catch_up()
    with engine.lock:
        known = name in engine.state.rules
    if known:
        store.record("remove_rules", name)
        engine.catch_up()
    return known
