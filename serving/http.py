"""The HTTP application: routes, errors, limits. It knows neither Ray nor how requests are batched."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException

from serving import engine as core
from serving.graph import GraphService, add_graph_routes, graph_ready
from serving.middleware import BodyLimit, RequestId, error_body
from serving.schemas import Live, Ready, RecommendRequest, RecommendResponse, error_responses, limited_request
from serving.settings import ServingSettings
from setrec import __version__
from setrec.errors import SetRecError, UnknownItemError, UnknownNodeError, UnknownUserError

Result = core.Answer | SetRecError
Recommend = Callable[[core.Request], Awaitable[Result]]

_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 503: "overloaded"}
_ERRORS = error_responses(
    "The bundle does not know the user (`unknown_user`).",
    "a field is missing or out of range, or the history is empty (`invalid_request`), or it holds an item the "
    "catalogue does not (`unknown_item`).",
)


def create_app(
    engine: core.Engine,
    settings: ServingSettings,
    recommend: Recommend | None = None,
    *,
    graph: GraphService | None = None,
    request_ids: bool = True,
) -> FastAPI:
    """The application over ``engine``, for any ASGI server.

    ``recommend`` answers one request and is where a server plugs its batching in; the default runs the engine on a
    thread of its own, one request at a time, so that the event loop stays free. ``graph``: what answers under
    ``/v1/graph``; without it these routes do not exist. ``request_ids``: whether to name requests in
    ``X-Request-Id``; false behind a proxy that does.
    """
    app = FastAPI(
        title="setrec", version=__version__, description="Generative recommendation over HTTP.", redoc_url=None
    )
    _add_routes(app, engine, settings, recommend or one_by_one(engine))
    if graph is not None:
        add_graph_routes(app, graph)
    _add_probes(app, engine, graph)
    _add_errors(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    if request_ids:
        app.add_middleware(RequestId)
    return app


def one_by_one(engine: core.Engine) -> Recommend:
    """Answers without batching, on one worker thread."""
    worker = ThreadPoolExecutor(1, thread_name_prefix="engine")

    async def recommend(request: core.Request) -> Result:
        return (await asyncio.get_running_loop().run_in_executor(worker, engine.recommend, [request]))[0]

    return recommend


def _add_routes(app: FastAPI, engine: core.Engine, settings: ServingSettings, recommend: Recommend) -> None:
    body_type = limited_request(settings.max_history, min(settings.max_k, engine.max_k))

    @app.post("/v1/recommend", response_model=RecommendResponse, responses=_ERRORS, tags=["recommend"])
    async def recommend_items(body: body_type) -> JSONResponse:  # type: ignore[valid-type]
        """The k items most likely to come next."""
        result = await recommend(_request(body))
        if isinstance(result, SetRecError):
            raise result
        # Written out by hand: the answer is ours, checking it again field by field would cost more than making it.
        return JSONResponse({"model_version": result.model_version, "items": [vars(item) for item in result.items]})


def _add_probes(app: FastAPI, engine: core.Engine, graph: GraphService | None) -> None:
    bundle = engine.bundle
    ready = Ready(
        status="ready",
        model_version=bundle.model_version,
        items=len(bundle.catalog),
        users=len(bundle.histories),
        retriever=bundle.retriever.settings.kind,
        graph=None if graph is None else graph_ready(graph),
    )

    @app.get("/health/live", tags=["health"])
    async def live() -> Live:
        """Whether the process answers."""
        return Live(status="live")

    @app.get("/health/ready", response_model_exclude_none=True, tags=["health"])
    async def is_ready() -> Ready:
        """Whether recommendations can be asked for, and from which model."""
        return ready

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("docs")


def _request(body: RecommendRequest) -> core.Request:
    history = None if body.history is None else tuple(body.history)
    return core.Request(history, body.user_id, body.k, body.exclude_history)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(SetRecError)
    async def refused(_: Request, error: Exception) -> JSONResponse:
        if isinstance(error, UnknownUserError):
            return JSONResponse(error_body("unknown_user", str(error)), 404)
        if isinstance(error, UnknownNodeError):
            return JSONResponse(error_body("unknown_node", str(error)), 404)
        code = "unknown_item" if isinstance(error, UnknownItemError) else "invalid_request"
        return JSONResponse(error_body(code, str(error)), 422)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return JSONResponse(error_body("invalid_json", f"the body is not JSON: {first['ctx']['error']}"), 422)
        place = ".".join(map(str, first["loc"][1:])) or "body"
        return JSONResponse(error_body("invalid_request", f"{place}: {first['msg']}"), 422)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = _CODES.get(error.status_code, "error")
        return JSONResponse(error_body(code, str(error.detail)), error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(error_body("internal", "the request could not be answered"), 500)
