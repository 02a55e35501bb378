"""Serving from the command line: an endpoint until interrupted, or one answer without a server."""

from __future__ import annotations

import signal
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines import graph_service
from pipelines.progress import console
from serving import app
from serving.bundle import Bundle
from serving.engine import Engine, Request
from serving.settings import ServingSettings


def serve_until_interrupted(bundle: Path, settings: ServingSettings) -> None:
    """Serve the bundle; returns after SIGINT or SIGTERM, the service ended."""
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    app.start(bundle, settings, graph_loader=graph_service.load)
    try:
        console.print(
            f"Serving {bundle} at http://{settings.host}:{settings.port} (documentation at /docs). Ctrl-C ends."
        )
        done.wait()
    finally:
        app.stop()


def recommend_once(bundle: Path, request: Request) -> dict[str, Any]:
    """One answer from a bundle, as the endpoint would give it."""
    return asdict(Engine(Bundle.open(bundle)).recommend_one(request))
