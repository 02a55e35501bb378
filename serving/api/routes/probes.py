"""Probes and metrics for monitoring."""

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from serving.api.access.tokens import METRICS, may
from serving.api.routes.graph import graph_ready
from serving.api.schemas.recommendations import LiveStatus, Ready
from serving.runtime.graph_service import GraphService
from serving.runtime.models import Live
from serving.telemetry.metrics import exposition

_NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"model": Ready, "description": "Live changes could not be read from the store yet."}
}


def add_probes(app: FastAPI, live: Live, graph: GraphService | None) -> None:
    """Add ``/health/live`` and ``/health/ready``."""

    @app.get("/health/live", tags=["health"])
    async def is_live() -> LiveStatus:
        """Return 200 while the process answers."""
        return LiveStatus(status="live")

    @app.get(
        "/health/ready", response_model=Ready, response_model_exclude_none=True, responses=_NOT_READY, tags=["health"]
    )
    async def is_ready(request: Request) -> Ready | JSONResponse:
        """Return whether the endpoint answers recommendations; with the scope `read` also the model's details."""
        engine, bundle = live.engine, live.engine.bundle
        if not engine.synced:
            return JSONResponse({"status": "not_ready"}, 503)
        if not may(request.scope, "read"):
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


def add_metrics_route(app: FastAPI) -> None:
    """Add ``GET /metrics``."""

    @app.get("/metrics", dependencies=[METRICS], tags=["operations"], response_class=Response)
    async def metrics() -> Response:
        """Return metrics for Prometheus, of all replicas on this machine."""
        text, media_type = exposition()
        return Response(text, media_type=media_type)
