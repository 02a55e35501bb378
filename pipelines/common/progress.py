"""Progress with the remaining time: a bar on a terminal; otherwise a line every half minute and at the end of a step.

The stream itself decides whether it is a terminal, because variables such as ``FORCE_COLOR`` are also set where logs
are stored. Lines to a file or a pipe are not wrapped.
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
"""Longest time between two lines of a step without a terminal."""
_UNBOUNDED = 10_000
_said = 0.0  # when a line was last written


def console_on(stream: TextIO) -> Console:
    """Return a console that wraps only at the width of a terminal."""
    return Console(file=stream, width=None if stream.isatty() else _UNBOUNDED)


class _Standard(Console):
    """Writes to the current standard error."""

    def __init__(self) -> None:
        super().__init__(stderr=True, width=None if sys.stderr.isatty() else _UNBOUNDED)


console: Console = _Standard()
"""The console of progress and remarks, standard error; results go to standard output."""


def results() -> Console:
    """Return the console of results."""
    return console_on(sys.stdout)


class Bar:
    """The progress of one step. ``update`` may be called at any rate and from any thread."""

    def __init__(self) -> None:
        self.done, self.total, self.note = 0.0, 0.0, ""

    def update(self, done: float, total: float, note: str = "") -> None:
        """Show ``done`` of ``total`` and a short note."""
        self.done, self.total, self.note = done, total, note


class _Drawn(Bar):
    """A bar on a terminal."""

    def __init__(self, progress: Progress, title: str) -> None:
        super().__init__()
        self._progress, self._task = progress, progress.add_task(title, total=None, note="")

    def update(self, done: float, total: float, note: str = "") -> None:
        super().update(done, total, note)
        self._progress.update(self._task, completed=done, total=total, note=note)


@contextmanager
def bar(title: str) -> Iterator[Bar]:
    """Show the progress of one step; at its end a line gives its duration and last note."""
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
        while not ended.wait(0.95 * LINE_SECONDS):  # before the command's own line
            _say(f"… {_line(title, shown, time.perf_counter() - began)}")

    with in_thread(say, ended):
        yield shown


@contextmanager
def alive(title: str) -> Iterator[None]:
    """Without a terminal, print a line of the command ``title`` if no step printed one for :data:`LINE_SECONDS`."""
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

    with in_thread(say, ended):
        yield


@contextmanager
def in_thread(work: Callable[[], None], ended: threading.Event) -> Iterator[None]:
    """Run ``work`` in a thread during the block; it returns once ``ended`` is set, and is joined."""
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
    """Return step, share, elapsed time, remaining time and note; unknown parts are left out."""
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
