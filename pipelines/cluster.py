"""Ray, started quietly."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serving.deployment.quiet import quiet
from setrec.errors import ConfigError

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
        ConfigError: no cluster can be joined at the address.
    """
    quiet(_TRAINING)
    import ray

    address = address or os.environ.get("RAY_ADDRESS") or None
    if ray.is_initialized():
        yield
        return
    # Without "local" Ray joins what `ray start` last started on this machine.
    own: dict[str, Any] = {"address": "local", "num_cpus": cpus or os.cpu_count(), "include_dashboard": False}
    options: dict[str, Any] = {"address": address} if address else own
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, configure_logging=True, **options)
    except ConnectionError as error:
        hint = "if it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        raise ConfigError(f"cannot join a Ray cluster at {address}: none answers there; {hint}") from error
    for name in ("ray", "ray.train", "ray.data", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


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
