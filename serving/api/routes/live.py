"""Routes for live changes: events and histories of users, added and removed items."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from serving.api.access.middleware import error_body
from serving.api.access.tokens import READ, WRITE
from serving.api.schemas.live import (
    ErasedAnswer,
    EventsAnswer,
    EventsBody,
    HistoryAnswer,
    ItemAnswer,
    ItemBody,
    PathId,
    PutAnswer,
    RemovedAnswer,
    limited_events,
)
from serving.api.schemas.recommendations import error_responses
from serving.engine.engine import Engine
from serving.runtime import edits
from serving.runtime.history_pages import CURSOR_PATTERN, page
from serving.runtime.models import Live
from serving.runtime.settings import ServingSettings
from serving.stores import Event
from serving.stores.item_changes import ItemFields
from serving.telemetry import metrics
from setrec.errors import UnknownItemError

_INVALID = "a field is missing or out of range (`invalid_request`)."
_NO_STORE = "The endpoint was started without a store (`no_store`)"

IdempotencyKey = Annotated[
    str | None,
    Header(
        max_length=100,
        pattern=r"^[\x20-\x7e]+$",
        description="Key of the request: its n-th event has the key `KEY/n` unless it has its own, so that the same "
        "request can be repeated.",
    ),
]


def add_live_routes(app: FastAPI, live: Live, settings: ServingSettings) -> None:
    """Add the routes for events, users and items."""
    _add_events(app, live, settings)
    _add_users(app, live)
    _add_items(app, live)


def _add_events(app: FastAPI, live: Live, settings: ServingSettings) -> None:
    body_type = limited_events(settings.max_events)
    errors = error_responses(None, _INVALID, f"{_NO_STORE}.")

    @app.post("/v1/events", response_model=EventsAnswer, responses=errors, tags=["live"], dependencies=[WRITE])
    async def add_events(body: body_type, idempotency_key: IdempotencyKey = None) -> JSONResponse:  # type: ignore[valid-type]
        """Add events of users; their next recommendations use them."""
        store = edits.require_store(live.engine)
        kept = await run_in_threadpool(store.append, _events(body, idempotency_key))
        metrics.EVENTS.inc(kept.accepted)
        return JSONResponse({"accepted": kept.accepted, "duplicates": kept.duplicates})


def _events(body: EventsBody, key: str | None) -> list[Event]:
    now = time.time()
    return [
        Event(
            event.user_id,
            event.item_id,
            now if event.time is None else event.time,
            event.key or (None if key is None else f"{key}/{number}"),
            event.type or "",
        )
        for number, event in enumerate(body.events)
    ]


def _add_users(app: FastAPI, live: Live) -> None:
    errors = error_responses(None, _INVALID)

    @app.get(
        "/v1/users/{user_id:path}/history",
        response_model=HistoryAnswer,
        responses=errors,
        tags=["live"],
        dependencies=[READ],
    )
    async def history(
        user_id: PathId,
        limit: Annotated[int, Query(ge=1, le=1000, description="Number of items per page.")] = 100,
        before: Annotated[str | None, Query(pattern=CURSOR_PATTERN, description="`next` of the previous page.")] = None,
    ) -> JSONResponse:
        """List a user's history, latest first: live events, then the bundle's history."""
        engine = live.engine
        items, after = await run_in_threadpool(page, engine, user_id, limit, before)
        version = engine.bundle.model_version
        past = [asdict(item) for item in items]
        return JSONResponse({"model_version": version, "user_id": user_id, "items": past, "next": after})

    @app.delete(
        "/v1/users/{user_id:path}",
        response_model=ErasedAnswer,
        responses=error_responses(None, _INVALID, f"{_NO_STORE}."),
        tags=["live"],
        dependencies=[WRITE],
    )
    async def erase(user_id: PathId) -> JSONResponse:
        """Erase a user permanently: events are deleted, histories in bundles are hidden. Idempotent."""
        events = await run_in_threadpool(edits.erase_user, live.engine, user_id)
        return JSONResponse({"user_id": user_id, "events": events})


def _add_items(app: FastAPI, live: Live) -> None:
    worker = ThreadPoolExecutor(1, thread_name_prefix="items")
    place = "/v1/items/{item_id:path}"
    unknown = "There is no such item (`unknown_item`)."

    async def alone(work: Callable[..., Any], *arguments: Any) -> Any:
        """Run one task at a time: a burst of texts to encode must not take the model's cores."""
        return await asyncio.get_running_loop().run_in_executor(worker, work, *arguments)

    @app.put(
        place,
        response_model=PutAnswer,
        responses=error_responses(
            None,
            _INVALID,
            f"{_NO_STORE}, the bundle has no text encoder (`cannot_encode`), or there is no room for more items "
            "(`too_many_items`).",
        ),
        tags=["live"],
        dependencies=[WRITE],
    )
    async def put(item_id: PathId, body: ItemBody) -> JSONResponse:
        """Add or update an item, which is recommended immediately, without training. Idempotent."""
        engine = live.engine
        created = await alone(edits.put_item, engine, item_id, _fields(body))
        return JSONResponse({"model_version": engine.bundle.model_version, "item_id": item_id, "created": created})

    @app.delete(
        place,
        response_model=RemovedAnswer,
        responses=error_responses(unknown, _INVALID, f"{_NO_STORE}."),
        tags=["live"],
        dependencies=[WRITE],
    )
    async def remove(item_id: PathId) -> JSONResponse:
        """Remove an item, from this bundle and all later ones, until it is added again. Idempotent."""
        engine = live.engine
        try:
            await alone(edits.remove_item, engine, item_id)
        except UnknownItemError as error:
            return JSONResponse(error_body("unknown_item", str(error)), 404)
        return JSONResponse({"model_version": engine.bundle.model_version, "item_id": item_id})

    @app.get(
        place,
        response_model=ItemAnswer,
        responses=error_responses(unknown, _INVALID),
        tags=["live"],
        dependencies=[READ],
    )
    async def describe(item_id: PathId) -> JSONResponse:
        """Describe an item."""
        found = await run_in_threadpool(_described, live.engine, item_id)
        if found is None:
            return JSONResponse(error_body("unknown_item", f"unknown item {item_id!r}"), 404)
        return JSONResponse(found)


def _fields(body: ItemBody) -> ItemFields:
    # Blanks as in the catalogue's values, which filters compare.
    tidy = {name: [" ".join(value.split()) for value in values] for name, values in body.attributes.items()}
    attributes = {name: list(dict.fromkeys(filter(None, values))) for name, values in tidy.items() if any(values)}
    return ItemFields(
        title=body.title,
        text=body.text,
        attributes=attributes,
        available_from=body.available_from,
        available_until=body.available_until,
    )


def _described(engine: Engine, item_id: str) -> dict[str, Any] | None:
    with engine.lock:
        row = engine.state.items.find(item_id)
        if row is None:
            return None
        _, title, attributes = engine.state.items.describe(row)
        is_live = item_id in engine.state.fields
    own = engine.bundle.catalog.find(item_id)
    return {
        "model_version": engine.bundle.model_version,
        "item_id": item_id,
        "title": title,
        "attributes": attributes,
        "source": "live" if is_live else "bundle",
        "trained": own is not None and bool(engine.bundle.popularity[own] > 0),
    }
