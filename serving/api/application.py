"""The HTTP application: routes, errors and limits, independent of Ray and of batching."""

from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI

from serving.api.access.authentication import protect
from serving.api.errors import add_errors
from serving.api.routes.catalogue import add_catalogue_routes
from serving.api.routes.feedback import add_feedback_route
from serving.api.routes.graph import add_graph_routes
from serving.api.routes.live import add_live_routes
from serving.api.routes.pages import add_pages
from serving.api.routes.probes import add_metrics_route, add_probes
from serving.api.routes.recommend import Recommend, Result, add_recommend_routes
from serving.api.routes.release import add_release_routes
from serving.api.routes.rules import add_rules_routes
from serving.bundle.reader import EncoderLoader, load_setrec
from serving.engine import engine as core
from serving.retrieval.shards import ShardOpener
from serving.runtime.batching import Batcher
from serving.runtime.graph_service import GraphLoader, GraphService
from serving.runtime.models import GraphInUse, Live
from serving.runtime.replica import open_live
from serving.runtime.settings import ServingSettings
from serving.telemetry import logs, metrics
from setrec import __version__


def create_app(
    live: Live,
    settings: ServingSettings,
    recommend: Recommend | None = None,
    *,
    graph: GraphService | None = None,
    request_ids: bool = True,
) -> FastAPI:
    """Create the application for the engine in use, for any ASGI server.

    ``recommend`` answers one request; the default answers waiting requests in batches, on a separate thread, so that
    the event loop is not blocked. ``graph``: the service of ``/v1/graph``; without it these routes do not exist.
    ``request_ids``: whether to set ``X-Request-Id``; false behind a proxy that does.

    Raises:
        ConfigError: there are no tokens although ``settings`` require them, or the rate limit cannot be used.
    """
    app = FastAPI(
        title="setrec",
        version=__version__,
        description="Generative recommendation over HTTP.",
        docs_url=None,
        redoc_url=None,
    )
    add_recommend_routes(app, live, settings, recommend or batched(live, settings))
    add_catalogue_routes(app, live)
    add_live_routes(app, live, settings)
    add_rules_routes(app, live)
    add_feedback_route(app, live)
    if graph is not None:
        add_graph_routes(app, graph)
    add_probes(app, live, graph)
    add_metrics_route(app)
    add_pages(app)
    if live.releases is not None:
        add_release_routes(app, live, live.releases)
    add_errors(app, settings.retry_after_seconds)
    protect(app, settings, request_ids=request_ids)
    metrics.serves(live.engine.bundle.model_version)
    return app


def build(
    path: Path,
    settings: ServingSettings,
    load_encoder: EncoderLoader = load_setrec,
    graph_loader: GraphLoader | None = None,
    open_shard: ShardOpener | None = None,
    *,
    request_ids: bool = True,
) -> FastAPI:
    """Create the application for the bundle at ``path``, or the current release, for any ASGI server.

    ``request_ids``: false behind a server that sets request ids itself, such as Ray Serve.

    Raises:
        ConfigError: there are no tokens, or the rate limit cannot be used.
        BundleError, StoreError, ReleaseError: see :func:`serving.runtime.replica.open_live`.
    """
    logs.configure(settings.log)
    live = open_live(path, settings, load_encoder, graph_loader, open_shard)
    graph = GraphInUse(live) if live.graph is not None else None
    return create_app(live, settings, graph=graph, request_ids=request_ids)


def batched(live: Live, settings: ServingSettings) -> Recommend:
    """Return a function that answers requests in batches, each batch with one engine."""

    def answer(requests: Sequence[core.Request]) -> list[Result]:
        metrics.BATCH.observe(len(requests))
        metrics.QUEUE.set(len(batcher))
        return live.recommend(requests)

    batcher: Batcher[core.Request, Result] = Batcher(answer, settings.max_batch_size)
    return batcher
