"""Peak memory and CPU time of a process and all below it, Ray's included, sampled while they run."""

from __future__ import annotations

import os
import re
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_FIELDS = re.compile(r"^(Pss|Private_Clean|Private_Dirty|Anonymous):\s+(\d+) kB", re.MULTILINE)


@dataclass
class Peak:
    """In 1e9 bytes. ``total``: of all processes, pages that several share (the object store, libraries) counted once;
    ``largest``: what the largest one had to itself, pages of files that it maps included; ``held``: the most of one
    that is not a page of a file, so that the system cannot drop it."""

    total: float = 0.0
    largest: float = 0.0
    held: float = 0.0


class Sampler:
    """Samples the tree of a process every ``pause`` seconds until the block ends.

    ``total`` sums the kernel's proportional set sizes, in which a page that k processes map counts 1/k in each, so
    that nothing counts twice; ``largest`` is a process's private pages. Pages that nobody maps, such as the kernel's
    cache of files, are not counted. A peak shorter than the pause may be missed.
    """

    def __init__(self, pid: int, pause: float = 0.2) -> None:
        self.peak = Peak()
        self._pid, self._pause, self._stop = pid, pause, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._pause):
            found = [_sizes(pid) for pid in _tree(self._pid)]
            self.peak.total = max(self.peak.total, sum(total for total, _, _ in found) / 1e9)
            self.peak.largest = max([self.peak.largest, *(private / 1e9 for _, private, _ in found)])
            self.peak.held = max([self.peak.held, *(anonymous / 1e9 for _, _, anonymous in found)])


class CpuTime:
    """CPU seconds of a block, in ``seconds`` after it: of this process, and of all below it, sampled every ``pause``
    seconds; what one of those uses between its last sample and its end is missed."""

    def __init__(self, pause: float = 0.5) -> None:
        self.seconds, self._pause, self._stop = 0.0, pause, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> CpuTime:
        self._before = _cpu_below()
        self._below, self._began = dict(self._before), time.process_time()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._below |= _cpu_below()
        below = sum(self._below.values()) - sum(self._before.values())
        self.seconds = time.process_time() - self._began + below

    def _watch(self) -> None:
        while not self._stop.wait(self._pause):
            self._below |= _cpu_below()


def _cpu_below() -> dict[tuple[int, float], float]:
    """CPU seconds so far of every process below this one, by its number and start."""
    found = {}
    for process in psutil.Process(os.getpid()).children(recursive=True):
        with suppress(psutil.Error):
            times = process.cpu_times()
            found[process.pid, process.create_time()] = times.user + times.system
    return found


def _tree(pid: int) -> list[int]:
    try:
        process = psutil.Process(pid)
        return [pid, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def _sizes(pid: int) -> tuple[int, int, int]:
    """Proportional, private and anonymous bytes of a process; nothing of one that has gone."""
    try:
        found = _FIELDS.findall(Path(f"/proc/{pid}/smaps_rollup").read_text())
    except OSError:
        return 0, 0, 0
    sizes: dict[str, int] = {name: int(kib) * 1024 for name, kib in found}
    private = sizes.get("Private_Clean", 0) + sizes.get("Private_Dirty", 0)
    return sizes.get("Pss", 0), private, sizes.get("Anonymous", 0)
