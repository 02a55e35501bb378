"""The endpoint on Ray Serve: HTTP, batching, model and index in one deployment, so a request takes one hop."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from serving import engine as core
from serving.bundle import Bundle, EncoderLoader, load_setrec, verify
from serving.graph import GraphLoader
from serving.http import Recommend, Result, create_app
from serving.settings import ServingSettings
from setrec.errors import SetRecError

__all__ = ["ServingError", "ServingSettings", "create_app", "start", "stop"]

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
    # Ray prints the end of Serve's controller, which stop() asks for, as a failure. Read when ray is first imported.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "ServeController.graceful_shutdown",
}
_QUIET_LOGS = {"log_level": "ERROR", "enable_access_log": False}
_STORE_BYTES = 100 * 2**20
_session: dict[str, bool] = {}


class ServingError(SetRecError):
    """The endpoint cannot be started."""


def start(
    bundle: str | Path,
    settings: ServingSettings | None = None,
    *,
    load_encoder: EncoderLoader = load_setrec,
    graph_loader: GraphLoader | None = None,
) -> str:
    """Serve ``bundle`` and return the endpoint's URL once it answers. Uses a running Ray session, else starts one.

    In each replica ``load_encoder`` loads the bundle's ``model/`` and ``graph_loader`` its ``graph/``; without a
    loader or without such a folder, no graph is served. Replicas import both, so they must lie in installed modules.

    Raises:
        BundleError: the bundle cannot be used.
        ServingError: the port is taken, Serve is already running, or no replica became ready in time.
    """
    settings = settings or ServingSettings()
    path = Path(bundle).resolve()
    verify(path)
    _require_free(settings)
    _connect(settings)
    try:
        _deploy(path, settings, load_encoder, graph_loader)
        return _wait_until_ready(settings)
    except BaseException:
        stop()
        raise


def stop() -> None:
    """Stop the endpoint, and the Ray session if ``start`` started it. Does nothing where nothing runs."""
    import ray
    from ray import serve

    if ray.is_initialized():
        serve.shutdown()
        if _session.pop("own", False):
            ray.shutdown()


def build(
    path: Path, settings: ServingSettings, load_encoder: EncoderLoader, graph_loader: GraphLoader | None = None
) -> Any:
    """The application of one replica: opened bundle, warm engine, graph, routes, and ``serve.batch`` in between."""
    bundle = Bundle.open(path, load_encoder)
    engine = core.Engine(bundle, max_k=settings.max_k, threads=settings.threads)
    graph = graph_loader(bundle.graph_path) if graph_loader and bundle.graph_path else None
    # Serve's proxy names requests itself.
    return create_app(engine, settings, batched(engine, settings), graph=graph, request_ids=False)


def batched(engine: core.Engine, settings: ServingSettings) -> Recommend:
    """Answers in batches, each computed on a thread of its own while the event loop takes in the next."""
    from ray import serve

    worker = ThreadPoolExecutor(1, thread_name_prefix="engine")

    @serve.batch(max_batch_size=settings.max_batch_size, batch_wait_timeout_s=settings.batch_wait_seconds)
    async def recommend(requests: list[core.Request]) -> list[Result]:
        return await asyncio.get_running_loop().run_in_executor(worker, engine.recommend, requests)

    return recommend


def _connect(settings: ServingSettings) -> None:
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    import ray
    from ray import serve

    if not ray.is_initialized():
        ray.init(
            num_cpus=max(os.cpu_count() or 1, math.ceil(settings.replicas * settings.cpus)),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=_STORE_BYTES,
        )
        _session["own"] = True
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if serve.status().proxies:
        raise ServingError("Ray Serve already runs in this Ray session; stop it first")


def _deploy(
    path: Path, settings: ServingSettings, load_encoder: EncoderLoader, graph_loader: GraphLoader | None
) -> None:
    from ray import serve

    def replica() -> Any:
        return build(path, settings, load_encoder, graph_loader)

    deployment: Any = serve.deployment(
        serve.ingress(replica)(),
        name="recommend",
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        ray_actor_options={"num_cpus": settings.cpus},
        logging_config=_QUIET_LOGS,
    )
    serve.start(http_options={"host": settings.host, "port": settings.port}, logging_config=_QUIET_LOGS)
    try:
        serve.run(deployment.bind(), name="setrec", route_prefix="/", logging_config=_QUIET_LOGS)
    except RuntimeError as error:
        raise ServingError(f"the endpoint did not start: {_last_line(error)}") from error


def _wait_until_ready(settings: ServingSettings) -> str:
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    url = f"http://{host}:{settings.port}"
    deadline = time.monotonic() + settings.start_timeout_seconds
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health/ready", timeout=5, trust_env=False).status_code == 200:
                return url
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise ServingError(f"no answer from {url} within {settings.start_timeout_seconds:.0f} seconds")


def _require_free(settings: ServingSettings) -> None:
    """Ask for the port as the server will, before anything is started: Ray would retry and then fail at length."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ServingError(f"cannot listen on {settings.host}:{settings.port}: {reason}") from error


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
