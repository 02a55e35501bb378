"""HTTP errors: a status, a code for programs, and a one-line message for users."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serving.api.access.middleware import error_body
from serving.engine.items.coder import CannotEncodeError
from serving.retrieval.filters import FilterError
from serving.runtime.edits import FullError, NoStoreError
from serving.stores import StoreError
from serving.telemetry import logs
from setrec.errors import SetRecError, UnknownItemError, UnknownNodeError, UnknownUserError

_HTTP = {
    400: "bad_request",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    503: "overloaded",
}
_KINDS: tuple[tuple[type[SetRecError], str, int], ...] = (
    (UnknownUserError, "unknown_user", 404),
    (UnknownNodeError, "unknown_node", 404),
    (UnknownItemError, "unknown_item", 422),
    (FilterError, "unknown_attribute", 422),
    (NoStoreError, "no_store", 409),
    (CannotEncodeError, "cannot_encode", 409),
    (FullError, "too_many_items", 409),
    (SetRecError, "invalid_request", 422),
)


def add_errors(app: FastAPI, retry_after: int) -> None:
    """Answer all errors in one format; ``retry_after``: seconds until a retry if the store is unavailable."""
    seldom = logs.Seldom()

    @app.exception_handler(SetRecError)
    async def refused(_: Request, error: Exception) -> JSONResponse:
        code, status = next((code, status) for kind, code, status in _KINDS if isinstance(error, kind))
        return JSONResponse(error_body(code, str(error)), status)

    @app.exception_handler(StoreError)
    async def away(_: Request, error: Exception) -> JSONResponse:
        # The store's address and message are for operators, not for callers.
        seldom.warning("the store does not answer", str(error))
        body = error_body("store_unavailable", "live state cannot be reached; try again")
        return JSONResponse(body, 503, {"Retry-After": str(retry_after)})

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        kind = request.headers.get("content-type", "")
        if tuple(first["loc"]) == ("body",) and "json" not in kind and await request.body():
            reason = f"the body is not sent as JSON: the header content-type is {kind!r}, not 'application/json'"
            return JSONResponse(error_body("invalid_json", reason), 422)
        if first["type"] == "json_invalid":
            return JSONResponse(error_body("invalid_json", f"the body is not JSON: {first['ctx']['error']}"), 422)
        place = ".".join(map(str, first["loc"][1:])) or "body"
        return JSONResponse(error_body("invalid_request", f"{place}: {first['msg']}"), 422)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code, reason = _HTTP.get(error.status_code, "error"), str(error.detail)
        if error.status_code == 400 and isinstance(error.__cause__, UnicodeDecodeError):
            code, reason = "invalid_json", "the body is not JSON in UTF-8"
        return JSONResponse(error_body(code, reason), error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(error_body("internal", "the request could not be answered"), 500)
