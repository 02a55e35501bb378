"""Progress bars with the time left, for people at a terminal; a plain line per step where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers.utils import logging as transformers_logging

console = Console(stderr=True)
"""Progress and remarks go to standard error; results go to standard output."""

LINES_EVERY = 30.0
"""Seconds between lines of progress off a terminal."""

transformers_logging.disable_progress_bar()


class Bar:
    """One line of progress. ``update`` may be called as often as one likes."""

    def __init__(self, progress: Progress, task: Any, title: str = "") -> None:
        self._progress, self._task, self._title = progress, task, title
        self._told = time.monotonic()

    def update(self, done: float, total: float, note: str = "") -> None:
        """Show ``done`` of ``total`` and a short note."""
        self._progress.update(self._task, completed=done, total=total, note=note)
        # Where a bar cannot be drawn, a line every half minute says that work goes on.
        if not console.is_terminal and time.monotonic() - self._told > LINES_EVERY:
            self._told = time.monotonic()
            console.print(f"  {self._title:<34} {done / total if total else 0:6.1%}  {note}", highlight=False)


@contextmanager
def bar(title: str) -> Iterator[Bar]:
    """A bar for one step; on leaving, a line stays that says how long the step took and its last note."""
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=28),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    began = time.perf_counter()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=None, note="")
        yield Bar(progress, task, title)
        note = progress.tasks[0].fields["note"]
    console.print(f"[green]✓[/green] {title:<34} {time.perf_counter() - began:6.1f} s  [dim]{note}[/dim]")
