"""The HTTP application: routes, errors, limits. It knows neither Ray nor how requests are batched."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse

from serving import engine as core
from serving import metrics
from serving.admin import add_release_routes
from serving.auth import READ, may
from serving.batching import Batcher
from serving.errors import add_errors
from serving.gate import protect
from serving.graph import GraphService, add_graph_routes, graph_ready
from serving.live import Live
from serving.live_routes import add_live_routes
from serving.schemas import Live as LiveAnswer
from serving.schemas import Ready, RecommendRequest, RecommendResponse, error_responses, limited_request
from serving.settings import ServingSettings
from setrec import __version__
from setrec.errors import SetRecError

Result = core.Answer | SetRecError
Recommend = Callable[[core.Request], Awaitable[Result]]

_ERRORS = error_responses(
    None,
    "a field is missing or out of range (`invalid_request`), the history holds an item that is none (`unknown_item`), "
    "or the filter asks for an attribute that no item has (`unknown_attribute`).",
)
_NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"model": Ready, "description": "What was put, removed and erased could not be read from the store yet."}
}


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
    add_live_routes(app, live, settings)
    if graph is not None:
        add_graph_routes(app, graph)
    _add_probes(app, live, graph)
    if live.releases is not None:
        add_release_routes(app, live, live.releases)
    metrics.add_metrics_route(app)
    add_errors(app, settings.retry_after_seconds)
    protect(app, settings, request_ids=request_ids)
    metrics.serves(live.engine.bundle.model_version)
    return app


def batched(live: Live, settings: ServingSettings) -> Recommend:
    """Answers in batches, each from one engine as a whole."""

    def answer(requests: Sequence[core.Request]) -> list[Result]:
        metrics.BATCH.observe(len(requests))
        metrics.QUEUE.set(len(batcher))
        return live.engine.recommend(requests, live.auditor)

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
        fallback = None if result.fallback is None else asdict(result.fallback)
        items = [vars(item) for item in result.items]
        return JSONResponse(
            {
                "model_version": result.model_version,
                "items": items,
                "fallback": fallback,
                "skipped": list(result.skipped),
            }
        )


def _add_probes(app: FastAPI, live: Live, graph: GraphService | None) -> None:
    @app.get("/health/live", tags=["health"])
    async def is_live() -> LiveAnswer:
        """Whether the process answers."""
        return LiveAnswer(status="live")

    @app.get(
        "/health/ready", response_model=Ready, response_model_exclude_none=True, responses=_NOT_READY, tags=["health"]
    )
    async def is_ready(request: Request) -> Ready | JSONResponse:
        """Whether recommendations can be asked for; who may read is also told from which model."""
        engine, bundle = live.engine, live.engine.bundle
        if not engine.synced:
            return JSONResponse({"status": "not_ready"}, 503)
        if not may(request, "read"):
            return Ready(status="ready")
        return Ready(
            status="ready",
            model_version=bundle.model_version,
            items=int(engine.state.index.alive.sum()),
            live_items=len(engine.state.fields),
            users=len(bundle.histories),
            retriever=bundle.retriever.kind,
            graph=None if graph is None else graph_ready(graph),
        )

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("docs")


def _request(body: RecommendRequest) -> core.Request:
    history = None if body.history is None else tuple(body.history)
    return core.Request(
        history,
        body.user_id,
        body.k,
        body.exclude_history,
        body.filter,
        None if body.allow is None else tuple(body.allow),
        tuple(body.deny),
        body.unknown_items,
    )
