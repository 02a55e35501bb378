"""Execution of many small tasks on a Ray cluster, with retries of those whose workers died."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pipelines.common.failures import readable_error
from setrec.errors import ConfigError

RETRIES = 3
"""Number of retries of a task after its worker died, ran out of memory or could not reach a file."""


def fan_out(
    task: Callable[..., Any], calls: Iterable[tuple[Any, ...]], what: str, *, gpu: float = 0.0
) -> Iterator[Any]:
    """Yield the results of ``task(*call)`` for every call in order of completion; each task has a core and a share
    ``gpu`` of a GPU.

    A task must have the same effect when it runs twice. Object references in arguments are resolved.

    Raises:
        SetRecError: a task raised one, or (ConfigError) failed permanently; ``what`` is the subject of the message.
        ConfigError: the tasks need a GPU, and the cluster has none.
    """
    import ray
    from ray.exceptions import RayError

    remote: Any = ray.remote(task)
    if gpu and not ray.cluster_resources().get("GPU"):
        raise ConfigError(f"{what} needs {gpu:g} of a GPU, and the cluster has none")
    remote = remote.options(num_cpus=1, num_gpus=gpu, max_retries=RETRIES, retry_exceptions=[MemoryError, OSError])
    waiting, running = deque(calls), set[Any]()
    room = max(1, int(ray.cluster_resources().get("CPU", 1)))
    try:
        while waiting or running:
            # One spare task per core: finished results fill the object store, waiting tasks do not.
            while waiting and len(running) < room + 1:
                running.add(remote.remote(*waiting.popleft()))
            done, _ = ray.wait(list(running), num_returns=1)
            running.remove(done[0])
            yield ray.get(done[0])
            del done
    except RayError as error:
        raise readable_error(error, what) from error
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
