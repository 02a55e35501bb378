"""Ingress: HAProxy in front of the HTTP servers of the replicas.

Measured on two cores, one replica, an empty handler, requests a second at concurrency 1 and 32, other jobs running:
bare uvicorn 1,380 and 2,030; Ray Serve by default 130 and 217; with user code in the replica's main loop 131 and 211;
with gRPC between proxy and replica 147 and 215; both and the router in the main loop 148 and 252. So the cost is
neither in the second thread nor in serialisation: Serve's own proxy, in Python, takes some 4 ms of a core per request.
With HAProxy, 1,420 and 1,480: it forwards bytes, and the replica serves HTTP itself.

These are settings of the Ray processes, not of an application: ``setrec serve`` sets them if it starts Ray, on a
cluster every node's container does (``deploy/``). Without them everything works behind the slower proxy.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from serving.deployment.haproxy import MAX_IN_FLIGHT, RETRY_AFTER
from serving.runtime.settings import ServingSettings

COMMAND = "setrec-haproxy"

FLAGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # User code and router in the replica's main loop (no hand-over between threads per request), buffered log lines.
    # Saves a few per cent with HAProxy; the engine has a separate thread in any case.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # One thread forwards 20,000 requests a second; the default of four would compete with the model for cores.
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # Its metrics are a Python process that reads a log line per request; ours are at /metrics.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # Requests to a replica that died before answering are sent to another one. Safe for all routes: reads change
    # nothing, and writes of events and items are idempotent.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    # A dead replica is detected by the first request that fails to connect, not by the third or a check.
    "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
    # By default the end of a replica or of the service waits half a minute or more for nothing.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "30",
    # Idle clients are disconnected; the default is an hour.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "60",
}


def environment(settings: ServingSettings, folder: Path, fallback_port: int) -> dict[str, str]:
    """Return environment variables for Serve's processes on this machine; empty if the HAProxy command is not
    installed.

    ``folder``: private folder for sockets and configuration, with a short path (a socket's path has at most 107
    characters). ``fallback_port``: port of the proxy used while there is no replica; a fixed one would conflict with
    another endpoint on the same machine.
    """
    found = _command()
    if found is None:
        return {}
    return FLAGS | {
        "RAY_SERVE_HAPROXY_BINARY_PATH": found,
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        MAX_IN_FLIGHT: str(settings.max_in_flight),
        RETRY_AFTER: str(settings.retry_after_seconds),
    }


def is_installed() -> bool:
    """Return whether the HAProxy command is installed, so that endpoints started here use it."""
    return _command() is not None


def _command() -> str | None:
    command = Path(sys.executable).with_name(COMMAND)
    return str(command) if command.is_file() else shutil.which(COMMAND)
