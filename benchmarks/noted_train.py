"""``setrec`` whose training workers note every step, and stop for a while where something is to go wrong; a script.

Steps are lines of ``steps.log`` in the run's folder. Where ``hold.json`` there names a worker and a step, the worker
waits behind that step until the file is gone: so a fault hits at that very step, however slow or quick the machine is.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

STEPS, HOLD = "steps.log", "hold.json"
DONE = "training-is-over"
"""Begins the line that says a training is over, followed by the reason where it failed."""
LONGEST_HOLD = 120.0
"""Seconds after which a worker that nobody struck goes on."""


@dataclass(frozen=True)
class Place:
    """Behind the ``step``-th step (from 1) of ``epoch`` (from 0), on worker ``rank``."""

    rank: int
    epoch: int
    step: int


@dataclass(frozen=True)
class Note:
    """A step that was done: when, by which process, where."""

    time: float
    pid: int
    place: Place


def notes(root: Path) -> list[Note]:
    """All steps of a run in order of time, those done twice twice."""
    path = root / STEPS
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [line.split() for line in lines if line.endswith("\n")]
    return sorted(
        (Note(float(when), int(pid), Place(*map(int, place))) for when, pid, *place in found), key=lambda n: n.time
    )


def hold(root: Path, place: Place) -> None:
    """Have a worker stop at ``place``."""
    (root / HOLD).write_text(json.dumps(asdict(place)))


def release(root: Path) -> None:
    """Let it go on."""
    (root / HOLD).unlink(missing_ok=True)


def _note(root: Path, place: Place) -> None:
    with (root / STEPS).open("a") as file:
        file.write(" ".join(map(str, (time.time(), os.getpid(), *astuple(place)))) + "\n")
    until = time.monotonic() + LONGEST_HOLD
    while _held(root, place) and time.monotonic() < until:
        time.sleep(0.01)


def _held(root: Path, place: Place) -> bool:
    try:
        return bool(json.loads((root / HOLD).read_text()) == asdict(place))
    except (FileNotFoundError, ValueError):  # it comes or goes at this moment
        return False


def noted_worker(settings: dict[str, Any]) -> None:
    """What ``pipelines.training.train`` has every worker do, and a note of each step."""
    from pipelines.training import train

    work = train.work

    def noted(run: Any, config: Any, rank: int, *others: Any, on_step: Any, **options: Any) -> Any:
        def step(trainer: Any, done: float) -> None:
            on_step(trainer, done)
            at = trainer.progress
            _note(run.root, Place(rank, at.epoch, at.position.step))

        return work(run, config, rank, *others, on_step=step, **options)

    train.work = noted
    train._worker(settings)


def serve() -> None:
    """Train the runs whose folders come in, a line each; to each the answer is a line too, empty or what went wrong."""
    from pipelines.common.run_directory import Run
    from pipelines.config.job import load_config
    from pipelines.training import train

    for line in sys.stdin:
        run = Run(Path(line.strip()))
        try:
            train.train(run, load_config(run.config))
            print(DONE, flush=True)
        except Exception as error:
            print(f"{DONE} {error!r}", flush=True)


if __name__ == "__main__":
    from pipelines.cli import app
    from pipelines.training import train

    # Of this module as the script, so that it is sent to the workers, which do not find this file.
    train._worker = noted_worker
    serve() if sys.argv[1:] == ["serve"] else app.main()
