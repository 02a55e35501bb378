"""A user's whole history in pages, latest first: the store's events, then the bundle's history."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from serving.engine.engine import Engine
from serving.engine.requests import RequestError
from serving.stores import Position

CURSOR_PATTERN = r"^(live:[0-9.e+-]{1,32}:[0-9]{1,18}|bundle:[0-9]{1,9})$"


@dataclass(frozen=True)
class Past:
    """An item of a history; ``time`` in seconds since 1970, ``None`` for items from the bundle; ``type`` of the event,
    if it has one."""

    item_id: str
    time: float | None
    source: Literal["live", "bundle"]
    type: str | None = None


def page(engine: Engine, user_id: str, limit: int, before: str | None = None) -> tuple[list[Past], str | None]:
    """Return up to ``limit`` items and the position of the next page, ``None`` after the last.

    Raises:
        RequestError: ``before`` is not a position of this user's pages.
        StoreError: the store cannot be read.
    """
    position, taken = _parse(before)
    items: list[Past] = []
    if taken is None:
        events = engine.store.page(user_id, limit, position) if engine.store is not None else []
        items = [Past(event.item_id, event.position[0], "live", event.type or None) for event in events]
        if len(items) == limit:
            time, seq = events[-1].position
            return items, f"live:{time!r}:{seq}"
    rows = _trained(engine, user_id)[::-1]
    start = taken or 0
    some = rows[start : start + limit - len(items)]
    items += [Past(engine.bundle.catalog.item_ids[row], None, "bundle") for row in some]
    end = start + len(some)
    return items, f"bundle:{end}" if end < len(rows) else None


def _trained(engine: Engine, user_id: str) -> np.ndarray:
    """Return the rows of the bundle's history, none for an erased user."""
    if engine.store is not None and engine.store.latest([user_id], 1)[0].erased:
        return np.empty(0, np.int64)
    with engine.lock:
        rows = engine.state.users.trained(user_id)
    return np.empty(0, np.int64) if rows is None else rows.values


def _parse(before: str | None) -> tuple[Position | None, int | None]:
    """Parse a page's position: the event, or the number of the bundle's items, after which it begins."""
    if before is None:
        return None, None
    kind, _, rest = before.partition(":")
    if re.fullmatch(CURSOR_PATTERN, before) and kind == "bundle":
        return None, int(rest)
    time, _, seq = rest.partition(":")
    try:
        position = float(time), int(seq)
    except ValueError:
        position = math.nan, 0
    if not math.isfinite(position[0]):
        raise RequestError("before: is not the `next` of a page")
    return position, None
