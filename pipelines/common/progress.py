"""Progress with the time left: a bar at a terminal; elsewhere a line every half minute and one at the end of a step.

Whether it is a terminal is asked of the stream, for variables such as ``FORCE_COLOR`` are set where logs are kept, too.
Nothing is wrapped where lines go to a file or a pipe.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 30.0
"""Longest time between two lines of a step off a terminal."""
_UNBOUNDED = 10_000
_said = 0.0  # when a line was last written


def console_on(stream: TextIO) -> Console:
    """A console that wraps at the width of a terminal, and nowhere else."""
    return Console(file=stream, width=None if stream.isatty() else _UNBOUNDED)


class _Standard(Console):
    """Writes to what standard error is at the time."""

    def __init__(self) -> None:
        super().__init__(stderr=True, width=None if sys.stderr.isatty() else _UNBOUNDED)


console: Console = _Standard()
"""Progress and remarks go to standard error; results go to standard output."""


def results() -> Console:
    """The console that results go to."""
    return console_on(sys.stdout)


class Bar:
    """The progress of one step. ``update`` may be called as often as one likes, from any thread."""

    def __init__(self) -> None:
        self.done, self.total, self.note = 0.0, 0.0, ""

    def update(self, done: float, total: float, note: str = "") -> None:
        """Show ``done`` of ``total`` and a short note."""
        self.done, self.total, self.note = done, total, note


class _Drawn(Bar):
    """A bar at a terminal."""

    def __init__(self, progress: Progress, title: str) -> None:
        super().__init__()
        self._progress, self._task = progress, progress.add_task(title, total=None, note="")

    def update(self, done: float, total: float, note: str = "") -> None:
        super().update(done, total, note)
        self._progress.update(self._task, completed=done, total=total, note=note)


@contextmanager
def bar(title: str) -> Iterator[Bar]:
    """The progress of one step; at its end a line says how long it took and its last note."""
    began = time.perf_counter()
    with _drawn(title) if console.file.isatty() else _lines(title, began) as shown:
        yield shown
    _say(f"[green]✓[/green] {title:<34} {time.perf_counter() - began:6.1f} s  [dim]{shown.note}[/dim]")


@contextmanager
def _drawn(title: str) -> Iterator[Bar]:
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=28),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Drawn(progress, title)


@contextmanager
def _lines(title: str, began: float) -> Iterator[Bar]:
    shown, ended = Bar(), threading.Event()

    def say() -> None:
        while not ended.wait(0.95 * LINE_SECONDS):  # before the command itself would speak
            _say(f"… {_line(title, shown, time.perf_counter() - began)}")

    with beside(say, ended):
        yield shown


@contextmanager
def alive(title: str) -> Iterator[None]:
    """Off a terminal, a line of the command ``title`` wherever none of a step has come for :data:`LINE_SECONDS`."""
    if console.file.isatty():
        yield
        return
    began, ended = time.perf_counter(), threading.Event()

    def say() -> None:
        due = LINE_SECONDS
        while not ended.wait(due):
            due = LINE_SECONDS - (time.perf_counter() - max(began, _said))
            if due <= 0:
                _say(f"… {_line(title, Bar(), time.perf_counter() - began)}")
                due = LINE_SECONDS

    with beside(say, ended):
        yield


@contextmanager
def beside(work: Callable[[], None], ended: threading.Event) -> Iterator[None]:
    """Have ``work`` done in a thread during the block; it returns once ``ended`` is set, and is waited for."""
    thread = threading.Thread(target=work, daemon=True, name="beside")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _say(line: str) -> None:
    global _said
    console.print(line)
    _said = time.perf_counter()


def _line(title: str, shown: Bar, seconds: float) -> str:
    """Step, share, time so far, time left and note; of what is not known yet nothing is said."""
    parts = [title]
    if share := shown.done / shown.total if shown.total else 0.0:
        parts.append(f"{share:.0%}")
    parts.append(f"{_clock(seconds)} so far")
    if share:
        parts.append(f"about {_clock(seconds * (1 - share) / share)} left")
    return ", ".join([*parts, *([shown.note] if shown.note else [])])


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
