"""The start of Ray, for endpoints and jobs."""

from __future__ import annotations

from typing import Any

STARTS = 2
"""Number of attempts to start a cluster on this machine. Beside much other work its first process sometimes takes
longer than the 30 seconds that Ray waits for it."""


def start_ray(attempts: int = STARTS, **options: Any) -> None:
    """Call ``ray.init`` with ``options``, at most ``attempts`` times; after a failed one nothing of it is left.

    Raises:
        Exception: what the last attempt raised; Ray raises errors of many kinds.
    """
    import ray

    for left in reversed(range(attempts)):
        try:
            ray.init(**options)
            return
        except Exception:
            ray.shutdown()
            if not left:
                raise
