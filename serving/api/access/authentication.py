"""Authentication and rate limit, applied before the body is read, and the order of all middleware."""

from __future__ import annotations

import math
import time

from fastapi import FastAPI
from limits import RateLimitItem, parse
from limits.aio.storage import Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.storage import storage_from_string
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.api.access.middleware import (
    Admission,
    BodyLimit,
    HeaderLimit,
    Observe,
    RequestId,
    SecurityHeaders,
    error_body,
)
from serving.api.access.tokens import SCOPES, Caller, Tokens
from serving.api.page import PATHS
from serving.runtime.settings import ServingSettings
from serving.telemetry import logs, metrics
from setrec.errors import ConfigError

# Answered without a token: liveness, readiness (only yes or no), the OpenAPI document, and the pages, which contain no
# data.
OPEN = frozenset({"/health/live", "/health/ready", "/openapi.json"}) | PATHS
_ANYONE = Caller("anyone", frozenset(SCOPES))


class RateLimit:
    """A limit of requests per caller in a sliding window.

    Raises:
        ConfigError: ``text`` is not like "100/second", or the storage cannot be used.
    """

    def __init__(self, text: str, storage: str) -> None:
        try:
            self._item: RateLimitItem = parse(text)
            # The storage is on the request's path: a server that does not answer immediately is skipped.
            options = {} if storage.startswith("memory") else {"socket_timeout": 0.25, "socket_connect_timeout": 0.25}
            found = storage_from_string(f"async+{storage}", implementation="redispy", **options)
        except Exception as error:
            raise ConfigError(f"rate_limit {text!r} in {storage}: {error}") from error
        assert isinstance(found, Storage)
        self._limiter, self._seldom = SlidingWindowCounterRateLimiter(found), logs.Seldom()

    async def wait(self, caller: Caller) -> int | None:
        """Return the seconds to wait before the next request; ``None`` if the caller is within the limit.

        If the storage is unavailable, no request is refused: capacity is limited separately, and an outage of the
        counter must not cause one of the endpoint.
        """
        try:
            if await self._limiter.hit(self._item, caller.name):
                return None
            stats = await self._limiter.get_window_stats(self._item, caller.name)
        except Exception as error:
            self._seldom.warning("rate limit not counted", type(error).__name__)
            return None
        return max(1, math.ceil(stats.reset_time - time.time()))


class Gate:
    """Identifies the caller; refuses unknown callers with 401, and callers above the rate limit with 429.

    The caller is stored in ``scope["state"]["caller"]``; each route checks its permissions.
    """

    def __init__(self, app: ASGIApp, tokens: Tokens | None, limit: RateLimit | None) -> None:
        self.app, self.tokens, self.limit = app, tokens, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        caller = self._caller(Headers(scope=scope).get("authorization", ""))
        if caller is not None:
            scope.setdefault("state", {})["caller"] = caller
            if self.limit is not None and (seconds := await self.limit.wait(caller)) is not None:
                metrics.REFUSED.labels("rate").inc()
                answer = JSONResponse(
                    error_body("too_many_requests", f"more than the limit; try again in {seconds} s"),
                    429,
                    {"Retry-After": str(seconds)},
                )
                return await answer(scope, receive, send)
        elif scope["path"] not in OPEN:
            metrics.REFUSED.labels("token").inc()
            answer = JSONResponse(
                error_body("unauthorized", "a bearer token is required"), 401, {"WWW-Authenticate": "Bearer"}
            )
            return await answer(scope, receive, send)
        await self.app(scope, receive, send)

    def _caller(self, header: str) -> Caller | None:
        if self.tokens is None:
            return _ANYONE
        scheme, _, token = header.partition(" ")
        return self.tokens.caller(token.strip()) if scheme.lower() == "bearer" else None


def protect(app: FastAPI, settings: ServingSettings, *, request_ids: bool) -> None:
    """Add all middleware to ``app``; the last added is the first to receive a request.

    Raises:
        ConfigError: there are no tokens, or the rate limit cannot be used.
    """
    tokens = Tokens(settings.tokens) if settings.auth == "tokens" else None
    limit = RateLimit(settings.rate_limit, settings.rate_limit_storage) if settings.rate_limit else None
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(Gate, tokens=tokens, limit=limit)
    app.add_middleware(Admission, most=settings.max_in_flight, retry_after=settings.retry_after_seconds)
    app.add_middleware(HeaderLimit, max_bytes=settings.max_header_bytes)
    app.add_middleware(Observe, log_ids=settings.log_ids)
    app.add_middleware(SecurityHeaders)
    if request_ids:
        app.add_middleware(RequestId)
