"""A benchmark: every system is tuned on validation with the same number of tries and minutes, then fitted with every
seed. Fits are tasks on a Ray cluster with a core each; finished fits are reused."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from pipelines.benchmark import fits, registry, tabulate
from pipelines.benchmark.base import problem
from pipelines.benchmark.fan_out import fan_out
from pipelines.benchmark.fits import FitTask, Record
from pipelines.common.board import FitsBoard
from pipelines.common.cluster import ray_session
from pipelines.common.fingerprints import of_statements
from pipelines.common.progress import Bar, bar
from pipelines.common.run_directory import Run
from setrec.errors import ConfigError
from setrec.settings import Settings


class BenchmarkSettings(Settings):
    """Settings of a benchmark. ``minutes``: CPU time of a system's final training, and again of all its tries on
    validation together, in equal parts. ``seeds``: number of fits of our system in the table, ``opponent_seeds`` those
    of the others (``null``: as many). ``tries``: settings of each system that are tried, the first of its grid.
    ``systems``: the systems by name, ``null`` for all of the table; ``ablation``: with the rows between the published
    design and ours. ``gpu``: the share of a GPU per fit, in addition to its core.
    """

    minutes: float = 15.0
    tries: int = 4
    seeds: int = 3
    opponent_seeds: int | None = None
    systems: tuple[str, ...] | None = None
    ablation: bool = False
    gpu: float = Field(0.0, ge=0, le=1)


@dataclass
class Benchmark:
    """A benchmark in a folder."""

    root: Path
    settings: BenchmarkSettings
    address: str | None = None
    _data: str = ""
    _code: str = ""

    def execute(self) -> dict[str, Any]:
        """Run the missing fits, write the results, and return them; the problem must be prepared."""
        s = self.settings
        given = problem.load(self.root / "problem")
        names = registry.names(given, s.systems, ablation=s.ablation)
        self._data, self._code = given.hash, of_statements(("setrec", "pipelines"))
        with ray_session(self.address):
            self._all("Tune", [task for name in names for task in self._tries(name)])
            best = {name: self._best(name) for name in names}
            finals = {name: self._finals(name, number) for name, number in best.items()}
            self._all("Fit", [task for tasks in finals.values() for task in tasks])
        return tabulate.write(Run(self.root), finals, s.model_dump(mode="json"))

    def _tries(self, name: str) -> list[FitTask]:
        system, s = registry.system(name), self.settings
        count = min(s.tries, len(system.grid))
        tries = range(count) if count > 1 else ()
        return [self._task(name, number, 0, s.minutes / s.tries, final=False) for number in tries]

    def _best(self, name: str) -> int:
        """Return the setting with the best validation metric; the first of equal ones."""
        values = [self._record(task).valid for task in self._tries(name)]
        return max(range(len(values)), key=values.__getitem__) if values else 0

    def _finals(self, name: str, number: int) -> list[FitTask]:
        s, seeds = self.settings, 1
        if registry.system(name).random:
            seeds = s.seeds if name == registry.OURS or s.opponent_seeds is None else s.opponent_seeds
        return [self._task(name, number, seed, self.settings.minutes) for seed in range(seeds)]

    def _task(self, name: str, number: int, seed: int, minutes: float, *, final: bool = True) -> FitTask:
        return fits.task(registry.system(name), number, seed, minutes, self._data, self._code, final=final)

    def _record(self, task: FitTask) -> Record:
        record = fits.done(self.root, task)
        if record is None:
            raise ConfigError(f"{task.folder(self.root)} is missing")
        return record

    def _all(self, title: str, tasks: Sequence[FitTask]) -> None:
        missing = [task for task in tasks if fits.done(self.root, task) is None]
        with bar(f"{title} {len({task.system for task in tasks})} systems") as progress:
            if missing:
                self._fit(missing, len(tasks), progress)
            progress.update(len(tasks), max(1, len(tasks)), f"{len(tasks)} fits, {len(missing)} of them new")

    def _fit(self, missing: Sequence[FitTask], total: int, progress: Bar) -> None:
        import ray

        board = ray.remote(num_cpus=0)(FitsBoard).remote()
        done = _Done(total - len(missing), total)
        calls = ((str(self.root.resolve()), task, board) for task in missing)
        with _watched(board, done, progress):
            for _ in fan_out(_work, calls, "a fit", gpu=self.settings.gpu):
                done.count += 1


@dataclass
class _Done:
    """Progress: the number of finished fits, and of all fits."""

    count: int
    total: int


def _work(root: str, task: FitTask, board: Any) -> None:
    """Run one fit on one core."""
    import torch

    torch.set_num_threads(1)
    name = f"{task.system} {task.number}.{task.seed}"
    fits.fit(Path(root), registry.system(task.system), task, lambda share, note: board.write.remote(name, share, note))
    board.write.remote(name, 1.0, "")


@contextmanager
def _watched(board: Any, done: _Done, progress: Bar) -> Iterator[None]:
    stop = threading.Event()

    def watch() -> None:
        import ray

        while not stop.wait(1.0):
            try:
                under_way = ray.get(board.read.remote(), timeout=5)
            except Exception:  # a progress bar must not fail a run
                continue
            shares = sum(share for share, _ in under_way.values())
            progress.update(done.count + shares, done.total, _note(under_way.items()))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join(timeout=10)


def _note(under_way: Iterable[tuple[str, tuple[float, str]]]) -> str:
    return "; ".join(f"{name} {share:.0%} {note}" for name, (share, note) in under_way)
