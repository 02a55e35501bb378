"""How requests reach the replicas: HAProxy in front, each replica's own HTTP server behind it.

What was measured on two cores, one replica, an empty handler, requests a second at 1 and at 32 at a time, other jobs
running: bare uvicorn 1,380 and 2,030; Ray Serve as it comes 130 and 217; with user code in the replica's main loop 131
and 211; with gRPC between proxy and replica 147 and 215; both and the router in the main loop 148 and 252. So neither
the second thread nor the serialisation is to blame: Serve's own proxy, in Python, takes some 4 ms of a core for a
request. With HAProxy, 1,420 and 1,480: it passes bytes on, and the replica serves HTTP itself.

These are settings of the Ray processes, not of an application: where ``setrec serve`` starts Ray it sets them, on a
cluster every node's container does (``deploy/``). Without them all works the same behind the slower proxy.
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
    # User code and router in the replica's main loop (no hand-over between threads per request), no log lines written
    # one by one. Worth a few per cent once HAProxy is there; our engine has a thread of its own in any case.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # One thread passes on 20,000 requests a second; the default of four would compete with the model for cores.
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # Its metrics are a Python process that reads a log line per request; ours are at /metrics.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # What was sent to a replica that died before it answered is sent to another one. Safe for every route here:
    # reading changes nothing, and writing the same event or item twice is writing it once.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    # A replica gone is noticed by the first request that fails to connect, not by the third or a check.
    "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
    # Half a minute and more, by default, of waiting for nothing when a replica or the service ends.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "30",
    # Clients that neither read nor write are let go; the default is an hour.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "60",
}


def environment(settings: ServingSettings, folder: Path, fallback_port: int) -> dict[str, str]:
    """Variables for Serve's processes on this machine; empty where the HAProxy command is not installed.

    ``folder``: for sockets and configuration, short (a socket's path has 107 characters at most), the owner's alone.
    ``fallback_port``: for the proxy that takes over while there is no replica; a fixed one would be shared with another
    endpoint on the same machine.
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
    """Whether the HAProxy command is there, so that endpoints started here have it in front."""
    return _command() is not None


def _command() -> str | None:
    beside = Path(sys.executable).with_name(COMMAND)
    return str(beside) if beside.is_file() else shutil.which(COMMAND)
