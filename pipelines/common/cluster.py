"""Ray, started quietly."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.common import signals
from serving.deployment.quiet import quiet
from setrec.errors import ConfigError

REACH_SECONDS = 10.0
"""How long a cluster's address is given to answer. Ray itself waits for a minute or more."""
_TRAINING = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore",
}


@contextmanager
def ray_session(address: str | None = None, cpus: int | None = None) -> Iterator[None]:
    """A connection to the cluster at ``address``, or a cluster of this machine's own that ends with the block.

    ``cpus``: how many the local cluster says it has, at least as many as the workers asked for, so that a job never
    waits for a core that will not come. A session that exists already is used and left running. Without ``address``
    the variable RAY_ADDRESS counts, which a submitted job finds set.

    Raises:
        ConfigError: no cluster can be joined at the address, or Ray does not start on this machine.
    """
    quiet(_TRAINING)
    import ray

    address = _chosen[0] or address or os.environ.get("RAY_ADDRESS") or None
    if ray.is_initialized():
        yield
        return
    if address:
        _require_answer(address)
    # Without "local" Ray joins what `ray start` last started on this machine.
    own: dict[str, Any] = {"address": "local", "num_cpus": cpus or os.cpu_count(), "include_dashboard": False}
    options: dict[str, Any] = {"address": address} if address else own
    try:
        with signals.unchanged():
            ray.init(logging_level=logging.ERROR, log_to_driver=False, configure_logging=True, **options)
    except Exception as error:  # Ray raises errors of many kinds, and what went wrong is the user's to mend
        ray.shutdown()
        raise ConfigError(_why_not_joined(error, address)) from error
    for name in ("ray", "ray.train", "ray.data", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


_chosen: list[str | None] = [None]


def join(address: str | None) -> None:
    """Have this process join the cluster at ``address``, whatever configurations say; ``None`` leaves it to them."""
    _chosen[0] = address


def _require_answer(address: str) -> None:
    """See that something that speaks gRPC answers at ``HOST:PORT`` or ``ray://HOST:PORT``; other forms are Ray's.

    Raises:
        ConfigError: nobody answers within :data:`REACH_SECONDS`.
    """
    found = re.fullmatch(r"(?:ray://)?([^/:]+|\[[^]]+\]):(\d+)", address)
    if found is None or os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return
    import grpc

    with grpc.insecure_channel(f"{found[1]}:{found[2]}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=REACH_SECONDS)
        except grpc.FutureTimeoutError:
            raise ConfigError(_why_not_joined(ConnectionError(), address)) from None


def _why_not_joined(error: Exception, address: str | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    if address is None:
        return f"Ray did not start on this machine: {reason}; run again when it is less busy"
    if isinstance(error, ConnectionError):
        reason = "none answers there"
    hint = "if it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
    return f"cannot join a Ray cluster at {address}: {reason}; {hint}"


def quiet_data() -> None:
    """Keep Ray Data's bars and remarks from the terminal, in the process that starts a dataset.

    Its log files keep them, and what went wrong is told by the error itself.
    """
    import ray.data  # sets up its loggers, so that what was said of them before is lost

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    for handler in logging.getLogger("ray.data").handlers:
        # Ray's own, not what others have attached to see what is logged.
        if isinstance(handler, logging.StreamHandler) and type(handler).__module__.startswith("ray."):
            handler.setLevel(logging.CRITICAL + 1)
