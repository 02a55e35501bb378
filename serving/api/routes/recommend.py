"""Routes for recommendations to a history or a user, and for similar items."""

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive, Scope, Send

from serving.api.access.middleware import error_body, replay
from serving.api.access.tokens import READ, may
from serving.api.schemas.live import PathId
from serving.api.schemas.recommendations import (
    RecommendRequest,
    RecommendResponse,
    SimilarResponse,
    error_responses,
    limited_request,
)
from serving.engine.requests import Answer, Request
from serving.runtime.models import Live
from serving.runtime.settings import ServingSettings
from setrec.errors import SetRecError, UnknownItemError

Result = Answer | SetRecError
Recommend = Callable[[Request], Awaitable[Result]]

_ERRORS = error_responses(
    None,
    "a field is missing or out of range, or names no slot kind, component or rule set (`invalid_request`), the "
    "history contains an unknown item (`unknown_item`), "
    "or the filter names an attribute that no item has (`unknown_attribute`).",
)
_NO_ITEM = "There is no such item (`unknown_item`)."


class AnswerResponse(JSONResponse):
    """JSON response by pydantic's serialiser, which takes a tenth of the time of ``json`` for ten items with shares."""

    def render(self, content: Any) -> bytes:
        """Return the bytes of the body; numbers that are not finite raise an error, as in Python's ``json``."""
        body = to_json(content)
        return super().render(content) if b"NaN" in body or b"Infinity" in body else body


def add_recommend_routes(app: FastAPI, live: Live, settings: ServingSettings, recommend: Recommend) -> None:
    """Add ``POST /v1/recommend`` and ``GET /v1/items/{item_id}/similar``."""
    most = min(settings.max_k, live.engine.max_k)
    body_type = limited_request(settings.max_history, most)

    async def recommend_items(body: body_type) -> JSONResponse:  # type: ignore[valid-type]
        """Recommend the k items most likely to be next."""
        request = _request(body)
        result = await recommend(request)
        if isinstance(result, SetRecError):
            raise result
        answer_id = secrets.token_hex(16)
        if live.exposures is not None:
            live.exposures.log_answer(answer_id, result, live.arm(request.user_id))
        return AnswerResponse({"answer_id": answer_id, **_written(result)})

    class Direct(APIRoute):
        """The route, with valid requests validated and answered directly: FastAPI's own way takes four times as long.
        Others go that way and get its errors."""

        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            """Serve a request, whose body comes in one message."""
            message = await receive()
            if (body := _valid(body_type, scope, message)) is None:
                return await super().handle(scope, replay(message.get("body", b""), receive), send)
            await (await recommend_items(body))(scope, receive, send)

    app.router.add_api_route(
        "/v1/recommend", recommend_items, methods=["POST"], response_model=RecommendResponse, responses=_ERRORS,
        tags=["recommend"], dependencies=[READ], route_class_override=Direct,
    )  # fmt: skip

    @app.get(
        "/v1/items/{item_id:path}/similar",
        response_model=SimilarResponse,
        responses=error_responses(_NO_ITEM, "`k` is out of range or `by` is unknown (`invalid_request`)."),
        tags=["recommend"],
        dependencies=[READ],
    )
    async def similar_items(
        item_id: PathId,
        k: Annotated[int, Query(ge=1, le=most, description="Number of items.")] = min(10, most),
        by: Annotated[
            str,
            Query(
                max_length=100,
                description="`all`: the whole score after this item alone; `model`: the model's part of it; or the "
                "name of one slot kind or component.",
            ),
        ] = "all",
    ) -> JSONResponse:
        """Return the items nearest to one, including live ones."""
        try:
            answer = await run_in_threadpool(live.engine.similar, item_id, k, by)
        except UnknownItemError as error:
            return JSONResponse(error_body("unknown_item", str(error)), 404)
        items = [vars(item) for item in answer.items]
        return AnswerResponse({"model_version": answer.model_version, "item_id": item_id, "by": by, "items": items})


def _valid(body_type: type[RecommendRequest], scope: Scope, message: Message) -> RecommendRequest | None:
    """Return the request of a POST of a caller with the scope ``read``; ``None`` if it is not valid."""
    plain = scope["method"] == "POST" and (b"content-type", b"application/json") in scope["headers"]
    if not plain or not may(scope, "read"):
        return None
    try:
        return body_type.model_validate_json(message.get("body", b""))
    except ValidationError:
        return None


def _written(result: Answer) -> dict[str, Any]:
    """Return an answer as JSON types, without validation, which would cost more than computing the answer."""
    items, explanation = [vars(item) for item in result.items], result.explanation
    written: dict[str, Any] = {
        "model_version": result.model_version,
        "items": items,
        "fallback": None if result.fallback is None else asdict(result.fallback),
        "skipped": list(result.skipped),
    }
    if explanation is not None:
        effects = zip(items, explanation.effects, strict=True)
        written["items"] = [{**item, "because": [vars(effect) for effect in because]} for item, because in effects]
        written["slots"] = {kind: [vars(item) for item in nearest] for kind, nearest in explanation.slots.items()}
    return written


def _request(body: RecommendRequest) -> Request:
    return Request(
        None if body.history is None else tuple(body.history),
        body.user_id,
        body.k,
        body.exclude_history,
        body.filter,
        None if body.allow is None else tuple(body.allow),
        tuple(body.deny),
        body.unknown_items,
        body.new_only,
        body.factors,
        body.diversity,
        body.rules,
        body.explain,
    )
