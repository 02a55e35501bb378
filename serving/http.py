"""The HTTP application: routes, errors, limits. It knows neither Ray nor how requests are batched."""

from collections.abc import Awaitable, Callable, Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException

from serving import engine as core
from serving import metrics
from serving.auth import READ, may
from serving.batching import Batcher
from serving.gate import protect
from serving.graph import GraphService, add_graph_routes, graph_ready
from serving.live import Live
from serving.middleware import error_body
from serving.schemas import Live as LiveAnswer
from serving.schemas import Ready, RecommendRequest, RecommendResponse, error_responses, limited_request
from serving.settings import ServingSettings
from setrec import __version__
from setrec.errors import SetRecError, UnknownItemError, UnknownNodeError, UnknownUserError

Result = core.Answer | SetRecError
Recommend = Callable[[core.Request], Awaitable[Result]]

_CODES = {400: "bad_request", 403: "forbidden", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 503: "overloaded"}
_ERRORS = error_responses(
    "The bundle does not know the user (`unknown_user`).",
    "a field is missing or out of range, or the history is empty (`invalid_request`), or it holds an item the "
    "catalogue does not (`unknown_item`).",
)


def create_app(
    live: Live,
    settings: ServingSettings,
    recommend: Recommend | None = None,
    *,
    graph: GraphService | None = None,
    request_ids: bool = True,
) -> FastAPI:
    """The application over the engine in use, for any ASGI server.

    ``recommend`` answers one request; the default answers those that wait in batches, on a thread of its own, so that
    the event loop stays free. ``graph``: what answers under ``/v1/graph``; without it these routes do not exist.
    ``request_ids``: whether to name requests in ``X-Request-Id``; false behind a proxy that does.

    Raises:
        ConfigError: there are no tokens though ``settings`` asks for them, or the rate limit cannot be used.
    """
    app = FastAPI(
        title="setrec", version=__version__, description="Generative recommendation over HTTP.", redoc_url=None
    )
    _add_routes(app, live, settings, recommend or batched(live, settings))
    if graph is not None:
        add_graph_routes(app, graph)
    _add_probes(app, live, graph)
    metrics.add_metrics_route(app)
    _add_errors(app)
    protect(app, settings, request_ids=request_ids)
    metrics.serves(live.engine.bundle.model_version)
    return app


def batched(live: Live, settings: ServingSettings) -> Recommend:
    """Answers in batches, each from one engine as a whole."""

    def answer(requests: Sequence[core.Request]) -> list[Result]:
        metrics.BATCH.observe(len(requests))
        metrics.QUEUE.set(len(batcher))
        return live.engine.recommend(requests)

    batcher: Batcher[core.Request, Result] = Batcher(answer, settings.max_batch_size)
    return batcher


def _add_routes(app: FastAPI, live: Live, settings: ServingSettings, recommend: Recommend) -> None:
    body_type = limited_request(settings.max_history, min(settings.max_k, live.engine.max_k))

    @app.post(
        "/v1/recommend",
        response_model=RecommendResponse,
        responses=_ERRORS,
        tags=["recommend"],
        dependencies=[READ],
    )
    async def recommend_items(body: body_type) -> JSONResponse:  # type: ignore[valid-type]
        """The k items most likely to come next."""
        result = await recommend(_request(body))
        if isinstance(result, SetRecError):
            raise result
        # Written out by hand: the answer is ours, checking it again field by field would cost more than making it.
        return JSONResponse({"model_version": result.model_version, "items": [vars(item) for item in result.items]})


def _add_probes(app: FastAPI, live: Live, graph: GraphService | None) -> None:
    @app.get("/health/live", tags=["health"])
    async def is_live() -> LiveAnswer:
        """Whether the process answers."""
        return LiveAnswer(status="live")

    @app.get("/health/ready", response_model_exclude_none=True, tags=["health"])
    async def is_ready(request: Request) -> Ready:
        """Whether recommendations can be asked for; who may read is also told from which model."""
        if not may(request, "read"):
            return Ready(status="ready")
        bundle = live.engine.bundle
        return Ready(
            status="ready",
            model_version=bundle.model_version,
            items=len(bundle.catalog),
            users=len(bundle.histories),
            retriever=bundle.retriever.settings.kind,
            graph=None if graph is None else graph_ready(graph),
        )

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
