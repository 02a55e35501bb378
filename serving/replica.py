"""What one process serves: opened bundle, warm engine, store, releases and routes, put together from the settings."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI

from serving import logs
from serving.bundle import EncoderLoader, load_setrec
from serving.follower import Follower
from serving.graph import GraphLoader
from serving.http import create_app
from serving.live import GraphInUse, Live, Loader
from serving.release import Releases
from serving.settings import ServingSettings
from serving.stores import open_store


def build(
    path: Path,
    settings: ServingSettings,
    load_encoder: EncoderLoader = load_setrec,
    graph_loader: GraphLoader | None = None,
    *,
    request_ids: bool = True,
) -> FastAPI:
    """The application over the bundle at ``path``, or over what was released since; for any ASGI server.

    ``request_ids``: false behind a server that names requests itself, as Ray Serve's does.

    Raises:
        BundleError: the bundle cannot be used.
        StoreError: the store's file cannot be used. A Redis that does not answer yet is no error.
        ConfigError: there are no tokens, or the rate limit cannot be used.
        ReleaseError: the folder of releases cannot be written to.
    """
    logs.configure(settings.log)
    live = open_live(path, settings, load_encoder, graph_loader)
    graph = GraphInUse(live) if live.graph is not None else None
    return create_app(live, settings, graph=graph, request_ids=request_ids)


def open_live(
    path: Path,
    settings: ServingSettings,
    load_encoder: EncoderLoader = load_setrec,
    graph_loader: GraphLoader | None = None,
) -> Live:
    """The model in use, its store, and the threads that keep it up to date; see :func:`build` for the errors."""
    store = open_store(settings.store) if settings.store else None
    loader = Loader(settings, store, load_encoder, graph_loader)
    releases = Releases(settings.releases, path, loader) if settings.releases else None
    model = releases.first_model() if releases else loader.load(path)
    live = Live(model.engine, store, model.graph, audit_share=settings.audit_share)
    if store is not None:
        live.follower = follower = Follower(live)
        live.on_close(follower.close)
    if releases is not None:
        live.releases = releases
        releases.follow(live)
    return live
