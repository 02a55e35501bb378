"""Evaluation in batches of users, in this process or over a pool of actors that each hold the systems once.

Both ways have the same batches, joined in the same order, and so give the same ranks and the same metrics per user, bit
for bit for equal numbers of threads. Otherwise float32 scores may differ in their last digit, and with them the order
of items that are almost tied.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

import torch

from pipelines.common.cluster import ray_session
from pipelines.common.failures import readable_error
from pipelines.config.job import JobConfig
from pipelines.evaluation.systems import Systems
from setrec.evaluation import ranking
from setrec.ragged import Ragged

RETRIES = 3
"""Number of retries of a batch after its actor died."""
AHEAD = 2
"""Batches queued per actor, so that it need not wait for the next one."""

R = TypeVar("R")
Part = tuple[Ragged, Ragged]
Progress = Callable[[int, int], None]


class Workers(Protocol):
    """Processes that work on batches of cases."""

    def map(self, work: Callable[..., R], parts: Sequence[Part], progress: Progress | None = None) -> list[R]:
        """Return ``work(systems, history, truth)`` of every part, in order; ``progress`` receives parts done and in
        all."""
        ...


@contextmanager
def workers(load: Callable[[], Systems], config: JobConfig) -> Iterator[Workers]:
    """Yield this process, or ``evaluation.actors`` actors if more than one, each with the result of ``load``."""
    count = config.evaluation.actors
    if count == 1:
        yield Here(load())
        return
    cores = os.cpu_count() or 1
    threads = config.cluster.threads or max(1, cores // count)
    with ray_session(config.cluster.address, max(cores, count * threads)):
        pool = Pool(load, count, threads, gpu=config.cluster.gpu)
        try:
            yield pool
        finally:
            pool.close()


def rank(
    each: Workers,
    name: str,
    cases: ranking.Cases,
    groups: Sequence[ranking.Group],
    *,
    ks: Sequence[int] = (5, 10, 20),
    batch: int = 256,
    progress: Progress | None = None,
) -> ranking.PerUser:
    """Return the result of :func:`setrec.evaluation.ranking.evaluate` for the system ``name``; ``groups`` are those of
    the workers."""
    found = each.map(partial(Systems.rank, name=name), _parts(cases, batch), progress)
    return ranking.joined(cases.users, found, groups, ks)


def _parts(cases: ranking.Cases, batch: int) -> list[Part]:
    return [cases.batch(start, batch) for start in range(0, len(cases), batch)]


class Here:
    """This process as the only worker."""

    def __init__(self, systems: Systems) -> None:
        self.systems = systems

    def map(self, work: Callable[..., R], parts: Sequence[Part], progress: Progress | None = None) -> list[R]:
        """See :class:`Workers`."""
        found = []
        for history, truth in parts:
            found.append(work(self.systems, history, truth))
            if progress is not None:
                progress(len(found), len(parts))
        return found


class Pool:
    """Actors of a running Ray session. An actor that dies is restarted, and its batches are repeated.

    ``load`` is put into the object store once; an actor calls it before its first batch. Memory: the systems, once per
    actor.
    """

    def __init__(self, load: Callable[[], Systems], actors: int, threads: int = 1, *, gpu: bool = False) -> None:
        import ray

        kind: Any = ray.remote(_Worker)
        kind = kind.options(num_cpus=threads, num_gpus=int(gpu), max_restarts=-1, max_task_retries=RETRIES)
        # Sent with every batch: constructor arguments of an actor may be lost when it is restarted.
        self.load = ray.put(load)
        self.actors = [kind.remote(threads) for _ in range(actors)]

    def map(self, work: Callable[..., R], parts: Sequence[Part], progress: Progress | None = None) -> list[R]:
        """See :class:`Workers`.

        Raises:
            ConfigError: a batch killed its actor at every attempt.
            SetRecError: ``work`` raised it.
        """
        from ray.exceptions import RayError

        try:
            return self._map(work, parts, progress)
        except RayError as error:
            raise readable_error(error, "evaluation") from error

    def _map(self, work: Callable[..., R], parts: Sequence[Part], progress: Progress | None) -> list[R]:
        import ray

        stored = ray.put(work)
        found: dict[int, R] = {}
        waiting, free = deque(enumerate(parts)), deque(self.actors * AHEAD)
        running: dict[Any, tuple[int, Any]] = {}
        while waiting or running:
            while waiting and free:
                (number, part), actor = waiting.popleft(), free.popleft()
                running[actor.work.remote([self.load], stored, *part)] = number, actor
            (done,), _ = ray.wait(list(running), num_returns=1)
            number, actor = running.pop(done)
            found[number] = ray.get(done)
            free.append(actor)
            if progress is not None:
                progress(len(found), len(parts))
        return [found[number] for number in range(len(parts))]

    def close(self) -> None:
        """End the actors."""
        import ray

        for actor in self.actors:
            ray.kill(actor)


class _Worker:
    """The actor of a :class:`Pool`."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self.systems: Systems | None = None

    def work(self, load: Sequence[Any], work: Callable[..., Any], history: Ragged, truth: Ragged) -> Any:
        """Work on one batch; ``load`` is a reference to the function that loads the systems, fetched only if needed."""
        import ray

        if self.systems is None:
            self.systems = ray.get(load[0])()
        return work(self.systems, history, truth)
