"""Trainings in which something breaks at a stated step: a worker, the driver, a node, the way to the checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import noted_train
import numpy as np
import pandas as pd
import psutil
from loopback_s3 import KEYS, LoopbackS3
from noted_train import Note, Place
from ray_nodes import ENVIRONMENT, RayNodes, lives, wait_until

from pipelines.common import storage
from pipelines.common.run_directory import Run
from pipelines.config.job import JobConfig, load_config
from pipelines.features import item_features, preparation
from pipelines.training.checkpoint_store import CheckpointStore
from pipelines.training.worker import store_of

CONFIG = """
data: {{interactions: {folder}/interactions.csv, columns: {{position: position}}}}
sasrec: {{epochs: 1, layers: 1, width: 16, heads: 1}}
model: {{max_items: 10, dropout: 0.1}}
training: {{epochs: {epochs}, patience: {epochs}, targets_per_batch: 64, precision: float32, checkpoint_steps: 2,
  refit_epochs: 0}}
cluster: {{workers: 2, threads: 1, storage_patience: 120}}
"""
ITEMS = 30
PATIENCE = 300.0
"""Seconds that anything waited for here may take."""


def _walk(rng: np.random.Generator, length: int) -> np.ndarray:
    """Mostly the next item, else any: something to learn, but no metric that ends at 1."""
    steps = np.where(rng.random(length) < 0.6, 1, rng.integers(0, ITEMS, length))
    return np.cumsum(steps) % ITEMS


def prepare(folder: Path, users: int = 80, epochs: int = 4) -> Path:
    """A run with data and collaborative vectors, ready to train the recommender with two workers."""
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"i{item}", step)
        for user in range(users)
        for step, item in enumerate(_walk(rng, int(rng.integers(5, 25))))
    ]
    pd.DataFrame(rows, columns=["user_id", "item_id", "position"]).to_csv(folder / "interactions.csv", index=False)
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder, epochs=epochs))
    run, config = Run(folder / "prepared"), load_config(folder / "config.yaml")
    preparation.prepare(run, config)
    item_features.train_collaborative(run, config)
    return run.root


def place_of(seed: int, epochs: int = 4, steps: int = 14) -> Place:
    """A worker and a step well inside an epoch, neither the first epoch nor the last, by the seed."""
    rng = np.random.default_rng(seed)
    return Place(int(rng.integers(2)), int(rng.integers(1, epochs - 1)), int(rng.integers(5, steps - 3)))


class Cluster:
    """Two nodes of one core each, so that two workers need both, and a process that starts trainings on them."""

    def __enter__(self) -> Cluster:
        self._ends = ExitStack()
        with self._ends:
            self.nodes = self._ends.enter_context(RayNodes(1, KEYS))
            self.nodes.add(1)
            self._driver = self.start("serve")
            self._ends.callback(_end, self._driver)
            self._ends = self._ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def start(self, *options: str) -> subprocess.Popen[str]:
        """``setrec`` with notes, in a process of its own."""
        return subprocess.Popen(
            [sys.executable, noted_train.__file__, *options],
            env={**os.environ, **ENVIRONMENT, **KEYS},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def train(self, run: Run) -> None:
        """Train to the end.

        Raises:
            RuntimeError: training failed; with its reason.
        """
        assert self._driver.stdin is not None
        assert self._driver.stdout is not None
        self._driver.stdin.write(f"{run.root}\n")
        self._driver.stdin.flush()
        said = []
        while not (answer := self._driver.stdout.readline()).startswith(noted_train.DONE):
            said.append(answer)  # of what dies, Ray may say a word
            if not answer:
                raise RuntimeError(f"the driver ended: {''.join(said)}")
        if reason := answer.removeprefix(noted_train.DONE).strip():
            raise RuntimeError(reason)


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@dataclass
class Job:
    """A copy of the prepared run, trained on a cluster; ``struck`` is when the fault happened."""

    prepared: Path
    name: str
    cluster: Cluster
    where: str | None = None
    struck: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.run = Run(self.prepared.parent / self.name)
        shutil.copytree(self.prepared, self.run.root)
        load_config(self.run.config, self._overrides()).save(self.run.config)

    def _overrides(self) -> list[str]:
        found = {"cluster.address": self.cluster.nodes.address, "cluster.storage": self.where}
        return [f"{key}={json.dumps(value)}" for key, value in found.items()]

    @property
    def config(self) -> JobConfig:
        """As the run has it."""
        return load_config(self.run.config)

    def command(self) -> subprocess.Popen[str]:
        """The command, resumed where there is a checkpoint."""
        # --resume before there is a checkpoint keeps the collaborative vectors and starts the recommender afresh.
        return self.cluster.start("train", "--run", str(self.run.root), "--resume")

    @contextmanager
    def breaking(self, place: Place, fault: Callable[[int], None], store: CheckpointStore) -> Iterator[None]:
        """While the block runs: ``fault`` gets the id of the worker's process once that has come to ``place``, and
        ``store`` holds a checkpoint from within that epoch."""
        noted_train.hold(self.run.root, place)
        over = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(self._break, place, fault, store, over)
            try:
                yield
                waiting.result(PATIENCE)
            finally:
                over.set()

    def _break(self, place: Place, fault: Callable[[int], None], store: CheckpointStore, over: threading.Event) -> None:
        def there() -> list[int]:
            if over.is_set():
                raise RuntimeError(f"training ended before {place}")
            return [note.pid for note in noted_train.notes(self.run.root) if note.place == place]

        try:
            wait_until(
                lambda: bool(there()) and inside(store, place.epoch), PATIENCE, f"no checkpoint and step at {place}"
            )
            self.struck = time.time()
            fault(there()[0])
        finally:
            noted_train.release(self.run.root)


def inside(store: CheckpointStore, epoch: int) -> bool:
    """Whether the newest checkpoint is from the middle of an epoch (from 0)."""
    names = store.names()
    return bool(names) and names[-1].split("-")[1:3] > [f"{epoch:06d}", f"{0:09d}"]


@dataclass(frozen=True)
class Outcome:
    """How a training went: its curve, its steps, seconds in all, and when the fault struck (0 for never)."""

    curve: list[dict[str, Any]]
    notes: list[Note]
    seconds: float
    struck: float

    def lives(self) -> list[list[Note]]:
        """Steps of worker 0, one list for each of its processes."""
        mine = [note for note in self.notes if note.place.rank == 0]
        return [[n for n in mine if n.pid == pid] for pid in dict.fromkeys(n.pid for n in mine)]

    def repeated(self) -> int:
        """Steps done more than once, as worker 0 counts them."""
        mine = [note.place for note in self.notes if note.place.rank == 0]
        return len(mine) - len(set(mine))

    def standstill(self) -> float:
        """Seconds from the fault to the next step."""
        return min(note.time for note in self.notes if note.time > self.struck) - self.struck


def outcome(job: Job, seconds: float) -> Outcome:
    """Of a job that is done."""
    lines = [json.loads(line) for line in (job.run.root / "curves.jsonl").read_text().splitlines()]
    curve = [line for line in lines if line["system"] == "SETRec"]
    return Outcome(curve, noted_train.notes(job.run.root), seconds, job.struck)


def _timed(job: Job, work: Callable[[], None]) -> Outcome:
    began = time.perf_counter()
    work()
    return outcome(job, time.perf_counter() - began)


def unbroken(job: Job) -> Outcome:
    """Nothing happens."""
    return _timed(job, lambda: job.cluster.train(job.run))


def unbroken_command(job: Job) -> Outcome:
    """Nothing happens, in a process of its own."""
    return _timed(job, lambda: _finish(job.command()))


def _finish(process: subprocess.Popen[str]) -> None:
    said, _ = process.communicate(timeout=2 * PATIENCE)
    if process.returncode:
        raise RuntimeError(f"the command ended with {process.returncode}: {said}")


def worker_killed(job: Job, place: Place) -> Outcome:
    """The worker that comes to ``place`` is killed there."""

    def work() -> None:
        with job.breaking(place, lambda pid: os.kill(pid, signal.SIGKILL), store_of(job.run, job.config)):
            job.cluster.train(job.run)

    return _timed(job, work)


def node_lost(job: Job, place: Place) -> Outcome:
    """The cluster's last node, on which one of the workers runs, goes with all its processes; another one comes."""

    nodes = job.cluster.nodes

    def replace(_: int) -> None:
        nodes.lose(nodes.nodes[-1])
        nodes.add()

    def work() -> None:
        with job.breaking(place, replace, store_of(job.run, job.config)):
            job.cluster.train(job.run)

    return _timed(job, work)


def driver_killed(job: Job, place: Place) -> Outcome:
    """The command is killed, and given again once its workers are gone."""

    def work() -> None:
        first = job.command()

        def kill(pid: int) -> None:
            worker = psutil.Process(pid)
            first.kill()
            wait_until(lambda: not lives(worker), 60, "the worker outlives its driver")

        with job.breaking(place, kill, store_of(job.run, job.config)):
            first.communicate(timeout=2 * PATIENCE)
        _finish(job.command())

    return _timed(job, work)


@dataclass
class Seen:
    """Newest good checkpoint at every look at the store while nobody else reached it, and the steps done meanwhile."""

    checkpoints: list[str | None] = field(default_factory=list)
    steps: int = 0


def direct_store(job: Job, s3: LoopbackS3) -> CheckpointStore:
    """The job's checkpoints, past the door."""
    return CheckpointStore(storage.join(s3.uri(direct=True), job.name), patience=5)


def store_away(job: Job, place: Place, s3: LoopbackS3, seconds: float, steps: int = 4) -> tuple[Outcome, Seen]:
    """From ``place`` on the store refuses connections, for ``seconds`` and until ``steps`` more steps are done."""
    seen = Seen()
    direct = direct_store(job, s3)

    def done() -> int:
        return sum(n.time > job.struck and n.place.rank == 0 for n in noted_train.notes(job.run.root))

    def shut(_: int) -> None:
        s3.door.shut()
        noted_train.release(job.run.root)
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:

            def look() -> bool:
                seen.checkpoints.append(direct.latest(Path(scratch) / "found"))
                time.sleep(0.2)
                return time.monotonic() - began > seconds and done() >= steps

            try:
                wait_until(look, PATIENCE, "training stood still while the store was away")
            finally:
                s3.door.open()
        seen.steps = done()

    def work() -> None:
        with job.breaking(place, shut, direct):
            job.cluster.train(job.run)

    return _timed(job, work), seen
