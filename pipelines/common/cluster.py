"""Ray, started quietly."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pipelines.common import signals
from serving.deployment.quiet import quiet
from serving.deployment.ray_start import start_ray
from setrec.errors import ConfigError

REACH_SECONDS = 10.0
"""Time limit for an answer of a cluster's address. Ray itself waits for a minute or more."""
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
    """Connect to the cluster at ``address``, or start a cluster on this machine that ends with the block.

    ``cpus``: number of CPUs that the local cluster declares, at least the number of requested workers, so that a job
    never waits for a core that does not exist. An existing session is used and left running. Without ``address`` the
    variable RAY_ADDRESS is used, which Ray sets for a submitted job.

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
    options: dict[str, Any] = {"address": address, "attempts": 1} if address else own
    try:
        with signals.unchanged():
            start_ray(logging_level=logging.ERROR, log_to_driver=False, configure_logging=True, **options)
    except Exception as error:  # Ray raises errors of many kinds; the user has to fix the cause
        raise ConfigError(_why_not_joined(error, address)) from error
    for name in ("ray", "ray.train", "ray.data", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


_chosen: list[str | None] = [None]


def join(address: str | None) -> None:
    """Make this process join the cluster at ``address``, regardless of the configuration; ``None`` uses the latter."""
    _chosen[0] = address


def take_address(overrides: Sequence[str], address: str | None = None) -> list[str]:
    """Join the cluster at ``address`` or in the overrides; return the other overrides. Runs do not store the
    address."""
    others = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key.strip() == "cluster.address":
            address = address or value.strip().strip("'\"")
        else:
            others.append(override)
    join(None if address in ("", "null", "~") else address)
    return others


def _require_answer(address: str) -> None:
    """Require a gRPC server at ``HOST:PORT`` or ``ray://HOST:PORT``; other forms of address are not checked.

    Raises:
        ConfigError: there is no answer within :data:`REACH_SECONDS`.
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
        reason = "no answer"
    hint = "if it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
    return f"cannot join a Ray cluster at {address}: {reason}; {hint}"


def free_threads(tasks: int) -> int:
    """Return how many cores each of ``tasks`` tasks can ask for: its share of the free ones, at most a machine's.

    Cores that another job on the cluster holds are left out: a task that asks for them waits until that job ends.
    """
    import ray

    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    machine = min((count for count in cores if count), default=1)
    return max(1, min(machine, int(ray.available_resources().get("CPU", 0)) // tasks))


def quiet_data() -> None:
    """Hide Ray Data's progress bars and messages on the terminal, in the process that starts a dataset.

    Its log files contain them, and errors are raised anyway.
    """
    import ray.data  # sets up its loggers, which overwrites earlier settings

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    for handler in logging.getLogger("ray.data").handlers:
        # Only Ray's own handlers, not those that others have attached.
        if isinstance(handler, logging.StreamHandler) and type(handler).__module__.startswith("ray."):
            handler.setLevel(logging.CRITICAL + 1)
