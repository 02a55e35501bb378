"""The endpoint on Ray Serve: HTTP, batching, model and index in one deployment, so that a request takes one hop."""

from __future__ import annotations

import logging
import math
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from serving.api.access.authentication import RateLimit
from serving.api.access.tokens import Tokens
from serving.api.application import create_app
from serving.bundle.reader import EncoderLoader, load_setrec
from serving.bundle.signature import verify_signed
from serving.deployment.ingress import environment
from serving.deployment.quiet import quiet
from serving.deployment.ray_start import start_ray
from serving.runtime.graph_service import GraphLoader
from serving.runtime.settings import ServingSettings
from serving.stores import open_store
from setrec.errors import SetRecError

__all__ = ["ServingError", "ServingSettings", "application", "create_app", "start", "stop"]

_QUIET_LOGS = {"log_level": "ERROR", "enable_access_log": False}
_STORE_BYTES = 100 * 2**20
_session: dict[str, Path] = {}


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

    In each replica ``load_encoder`` loads the bundle's ``model/`` and ``graph_loader`` its ``graph/``; without a loader
    or without such a folder, no graph is served. Replicas import both, so they must be in installed modules. A session
    started here uses HAProxy if its command is installed; a running one keeps the proxy of its own environment.

    Raises:
        BundleError: the bundle cannot be used.
        ConfigError, StoreError: tokens, rate limit or store cannot be used.
        ServingError: the port is taken, Serve is already running, or no replica became ready in time.
    """
    settings = _absolute(settings or ServingSettings())
    path = Path(bundle).resolve()
    verify_signed(path, settings.verify_key)
    _require_usable(settings)
    _require_free(settings)
    _connect(settings)
    try:
        _deploy(application(path, settings, load_encoder, graph_loader), settings)
        return _wait_until_ready(settings)
    except BaseException:
        stop()
        raise


def stop() -> None:
    """Stop the endpoint, and the Ray session if ``start`` started it. Does nothing if nothing runs."""
    import ray
    from ray import serve

    if ray.is_initialized():
        serve.shutdown()
        if folder := _session.pop("folder", None):
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def application(
    path: Path,
    settings: ServingSettings,
    load_encoder: EncoderLoader = load_setrec,
    graph_loader: GraphLoader | None = None,
) -> Any:
    """Return the deployment, for ``serve.run`` or ``serve deploy``: replicas or autoscaling, limits, resources.

    A replica accepts more requests than ``max_in_flight``, so that its own middleware refuses and counts them, with
    ``Retry-After``; further requests through Serve's own proxy are refused there, with the same header.
    """
    from ray import serve

    def replica() -> Any:
        from setrec.collection import without_collection

        with without_collection():
            from serving.api.application import build
            from serving.deployment.shards import RemoteShard

            shards = RemoteShard if settings.shard_processes else None
            return build(path, settings, load_encoder, graph_loader, shards, request_ids=False)

    deployment: Any = serve.deployment(
        serve.ingress(replica)(),
        name="recommend",
        max_ongoing_requests=2 * settings.max_in_flight + 16,
        max_queued_requests=settings.max_in_flight,
        backpressure_config={"retry_after_s": settings.retry_after_seconds},
        ray_actor_options={"num_cpus": settings.cpus},
        health_check_period_s=2,
        health_check_timeout_s=10,
        logging_config=_QUIET_LOGS,
        **_scale(settings),
    )
    return deployment.bind()


def _scale(settings: ServingSettings) -> dict[str, Any]:
    if settings.max_replicas is None:
        return {"num_replicas": settings.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": settings.replicas,
            "initial_replicas": settings.replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": max(1, settings.max_in_flight // 2),
        }
    }


def _connect(settings: ServingSettings) -> None:
    quiet()
    import ray
    from ray import serve

    if not ray.is_initialized():
        # Short, because it contains sockets; private to the owner.
        folder = _session["folder"] = Path(tempfile.mkdtemp(prefix="setrec-"))
        with _variables(environment(settings, folder, _free_port()) | _figures(folder)):
            start_ray(
                num_cpus=max(
                    os.cpu_count() or 1, math.ceil((settings.max_replicas or settings.replicas) * settings.cpus)
                ),
                include_dashboard=False,
                log_to_driver=settings.log == "requests",
                logging_level=logging.ERROR,
                object_store_memory=_STORE_BYTES,
            )
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if serve.status().proxies:
        raise ServingError("Ray Serve already runs in this Ray session; stop it first")


def _figures(folder: Path) -> dict[str, str]:
    """Return the variables for the shared metrics folder of this machine's replicas."""
    return {"PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics")}


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for processes started in the block, and restore them afterwards."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def _deploy(deployment: Any, settings: ServingSettings) -> None:
    from ray import serve
    from ray.exceptions import RayError

    try:
        serve.start(http_options={"host": settings.host, "port": settings.port}, logging_config=_QUIET_LOGS)
        serve.run(deployment, name="setrec", route_prefix="/", logging_config=_QUIET_LOGS)
    except (RuntimeError, RayError) as error:
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


def _absolute(settings: ServingSettings) -> ServingSettings:
    """Return settings with absolute paths: replicas have another working directory than the caller."""
    store = settings.store
    if store is not None and "://" not in store:
        store = str(Path(store).resolve())
    named = {"tokens": settings.tokens, "releases": settings.releases, "exposures": settings.exposures}
    named |= {"verify_key": settings.verify_key}
    places = {name: path and path.resolve() for name, path in named.items()}
    return settings.model_copy(update={"store": store, **places})


def _require_usable(settings: ServingSettings) -> None:
    """Check settings that would otherwise fail in every replica, to report errors in one line."""
    if settings.auth == "tokens":
        Tokens(settings.tokens)
    if settings.rate_limit:
        RateLimit(settings.rate_limit, settings.rate_limit_storage)
    if settings.store:
        open_store(settings.store).close()


def _require_free(settings: ServingSettings) -> None:
    """Check that the port is free before anything is started: Ray would retry and fail with a long traceback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ServingError(f"cannot listen on {settings.host}:{settings.port}: {reason}") from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
