"""Middleware of all requests: ids, headers, limits, metrics and log lines."""

from __future__ import annotations

import re
import uuid
from collections.abc import MutableMapping
from time import perf_counter
from typing import Any, ClassVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.telemetry import logs, metrics

REQUEST_ID = "X-Request-Id"
_PLAIN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def error_body(code: str, message: str) -> dict[str, Any]:
    """Return the body of an error; the message becomes one printable line of at most 300 characters."""
    line = " ".join(message.split()).encode("utf-8", "replace").decode()
    return {"error": {"code": code, "message": line if len(line) <= 300 else line[:299] + "…"}}


class RequestId:
    """Adds ``X-Request-Id`` to answers: the caller's, if it is a plain word of up to 64 characters, else a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = Headers(scope=scope).get(REQUEST_ID, "")
        name = given if _PLAIN_ID.fullmatch(given) else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = name
            await send(message)

        scope.setdefault("state", {})["request_id"] = name
        await self.app(scope, receive, send_with_id)


class SecurityHeaders:
    """Adds headers that prevent browsers from sniffing content types, and caches from storing answers."""

    _ALWAYS = (
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-store"),
    )
    _NOTHING = b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    _PAGE = _NOTHING + b"; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'"
    # Swagger UI styles elements by attribute and draws its icons from data URLs.
    _DOCS = _PAGE.replace(b"style-src 'self'", b"style-src 'self' 'unsafe-inline'") + b" data:"
    _POLICIES: ClassVar = {"/": _PAGE, "/docs": _DOCS}

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        policy = self._POLICIES.get(scope["path"], self._NOTHING)
        extra = (*self._ALWAYS, (b"content-security-policy", policy))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        await self.app(scope, receive, send_with_headers)


class HeaderLimit:
    """Refuses a request with 431 if headers and path together are too long."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] == "http":
            size = len(scope.get("raw_path") or b"") + len(scope.get("query_string", b""))
            size += sum(len(name) + len(value) for name, value in scope["headers"])
            if size > self.max_bytes:
                message = f"path and headers are longer than {self.max_bytes} bytes"
                return await JSONResponse(error_body("headers_too_large", message), 431)(scope, receive, send)
        await self.app(scope, receive, send)


class Admission:
    """Admits at most ``most`` requests at a time and refuses others with 503 immediately, without reading them.

    An admitted request thus waits for at most ``most`` others under any load. Probes and metrics are always admitted,
    so that operators can observe the endpoint.
    """

    def __init__(self, app: ASGIApp, most: int, retry_after: int) -> None:
        self.app, self.most, self.retry_after = app, most, retry_after
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            return await self.app(scope, receive, send)
        if self.inside >= self.most:
            metrics.REFUSED.labels("capacity").inc()
            answer = JSONResponse(
                error_body("overloaded", "too many requests are waiting"), 503, {"Retry-After": str(self.retry_after)}
            )
            return await answer(scope, receive, send)
        self.inside += 1
        metrics.IN_FLIGHT.set(self.inside)
        try:
            await self.app(scope, receive, send)
        finally:
            self.inside -= 1
            metrics.IN_FLIGHT.set(self.inside)


class Observe:
    """Counts and times every answer, writes its log line, and converts uncaught exceptions to a plain 500.

    The line contains the route's template, ``/v1/users/{user_id}``; the path itself only with ``log_ids``.
    """

    def __init__(self, app: ASGIApp, log_ids: bool = False) -> None:
        self.app, self.log_ids = app, log_ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = perf_counter(), 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception:
            logs.failure("request failed", **self._fields(scope))
            if not status:
                answer = JSONResponse(error_body("internal", "the request could not be answered"), 500)
                await answer(scope, receive, send_and_note)
        finally:
            self._note(scope, status or 499, perf_counter() - began)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = _route(scope)
        metrics.requests(scope["method"], route, status).inc()
        metrics.latency(route).observe(seconds)
        if logs.logs_requests():
            logs.info("request", **self._fields(scope), status=status, milliseconds=round(1000 * seconds, 2))

    def _fields(self, scope: Scope) -> dict[str, Any]:
        state = scope.get("state", {})
        caller = state.get("caller")
        return {
            "request_id": state.get("request_id") or Headers(scope=scope).get(REQUEST_ID, "")[:64],
            "method": scope["method"],
            "route": scope["path"] if self.log_ids else _route(scope),
            "caller": None if caller is None else caller.name,
        }


def _route(scope: Scope) -> str:
    """Return the route's template, and one word for all paths without a route, so that callers cannot create series."""
    return getattr(scope.get("route"), "path", "none")


class BodyLimit:
    """Reads a request's body before the route, and refuses it with 413 as soon as it is too long, or with 415 if it is
    compressed.

    A body that is too long by its ``Content-Length`` is refused unread; chunks are counted.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        encoding = Headers(scope=scope).get("content-encoding", "identity")
        if encoding.lower() != "identity":
            reason = f"the body is compressed ({encoding[:32]}); send it as it is, without content-encoding"
            return await JSONResponse(error_body("compressed_body", reason), 415)(scope, receive, send)
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and (len(announced) > 18 or int(announced) > self.max_bytes):
            return await self._refuse(scope, receive, send)
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.max_bytes:
                return await self._refuse(scope, receive, send)
        await self.app(scope, replay(bytes(body), receive), send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"the body is longer than {self.max_bytes} bytes"
        await JSONResponse(error_body("body_too_large", message), 413)(scope, receive, send)


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that returns ``body`` once and then delegates to the original."""
    first = True

    async def replay() -> MutableMapping[str, Any]:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay
