"""Serving from the command line: an endpoint until interrupted."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from pipelines.common import signals
from pipelines.common.progress import console
from pipelines.jobs.serve_file import settings_of
from pipelines.remote.follow import StoreFollower
from serving.deployment import ray_app
from serving.runtime.graph_service import GraphService
from serving.runtime.settings import ServingSettings
from setrec.errors import ConfigError

_EVERYWHERE = "0.0.0.0"


def load_graph(path: Path) -> GraphService:
    """Load the graph of a bundle. The code for graphs is imported only here, because this takes four seconds."""
    from pipelines.graph.service import load

    return load(path)


def serve_until_interrupted(bundle: Path, settings: ServingSettings) -> None:
    """Serve the bundle until a signal ends the process; requests in flight are answered."""
    with signals.advised(lambda: "the endpoint has ended; stored data is kept, the same command serves again"):
        with signals.unchanged():
            ray_app.start(bundle, settings, graph_loader=load_graph)
        follower = StoreFollower(bundle, settings) if settings.follow else None
        try:
            if follower is not None:
                follower.start()
            console.print(
                f"Serving {bundle} at http://{settings.host}:{settings.port} (documentation at /docs). Ctrl-C ends."
            )
            threading.Event().wait()
        finally:
            if follower is not None:
                follower.close()
            ray_app.stop()


def application(args: dict[str, Any]) -> Any:
    """Return the application for a Serve configuration file: ``args`` are ``bundle`` and the keys of
    ``ServingSettings``.

    On a cluster the file's ``http_options`` determine where the endpoint listens, so authentication stays on.

    Raises:
        ConfigError: a key or value is not allowed.
    """
    bundle, settings = settings_of(args, "args", {"host": _EVERYWHERE})
    if settings.follow is not None:
        raise ConfigError("args: follow: only `setrec serve` follows a store; share the folder of releases instead")
    return ray_app.application(bundle, settings, graph_loader=load_graph)
