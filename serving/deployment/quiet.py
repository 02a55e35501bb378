"""Environment variables that suppress Ray's own output."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType

NOTHING: Mapping[str, str] = MappingProxyType({})
VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # on a busy machine, importing alone takes longer than 5
    "RAY_COLOR_PREFIX": "0",
    # Ray prints these on standard output, which is for results; lost processes are restarted automatically. Read when
    # ray is first imported.
    "RAY_DEDUP_LOGS_SKIP_REGEX": (
        "ServeController.graceful_shutdown|A worker died or was killed|has been marked dead because"
        "|Raylet is terminated"
    ),
    "TOKENIZERS_PARALLELISM": "false",
}


def quiet(more: Mapping[str, str] = NOTHING) -> None:
    """Set :data:`VARIABLES` and ``more`` for this process and its children, except variables that are already set. Call
    it before Ray is imported."""
    for key, value in {**VARIABLES, **more}.items():
        os.environ.setdefault(key, value)
