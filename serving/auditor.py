"""Recall of the answers that are given: some of them are searched again, exactly, where no request waits for it."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from queue import Full, Queue
from typing import Protocol

import numpy as np

from serving import audit, logs, metrics
from serving.exact import Hits
from serving.retriever import Retriever

_LATEST = 200  # audited answers that the figure is the mean of
_NICE = 19


class FindsBest(Protocol):
    """Exact search."""

    def best(self, query: np.ndarray, k: int, mask: np.ndarray | None = None) -> Hits:
        """The ``k`` best rows for ``query`` float32 (D,) that ``mask`` bool (R,) allows."""
        ...


@dataclass(frozen=True)
class Answered:
    """An answer as it was searched for, of the index ``base``; all of it stays as it is when items come and go.

    ``query`` float32 (D,), ``exact`` over R rows, ``left`` bool (R,): those that could be answered, ``k``, and the
    ``scores`` float64 of what was.
    """

    base: Retriever
    query: np.ndarray
    exact: FindsBest
    left: np.ndarray
    k: int
    scores: np.ndarray


class Auditor:
    """Keeps ``metrics.RECALL``: of an index the mean recall of the latest answers drawn, of exact search 1.

    Until the first is audited it is what was found when the index was built. Comparing takes no lock of the engine: one
    exact search, on a thread that other work goes before and that starts with the first answer drawn.
    """

    def __init__(self, share: float, room: int = 16) -> None:
        """``share`` of the answers is drawn; those that come while ``room`` wait are dropped."""
        self._share, self._waiting = share, Queue[Answered | None](room)
        self._base: Retriever | None = None
        self._found: deque[float] = deque(maxlen=_LATEST)
        self._lock = threading.Lock()  # around what changes with the model, and the thread's start
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, base: Retriever) -> None:
        """Audit answers of ``base`` from now on, and no others."""
        with self._lock:
            self._base = base
            self._found.clear()
            metrics.RECALL.set(_known(base))

    def draws(self, base: Retriever) -> bool:
        """Whether the next answer of ``base`` is to be audited."""
        return base is self._base and base.kind != "exact" and random.random() < self._share

    def offer(self, answered: Answered) -> None:
        """Have an answer audited, or dropped where too many wait; returns at once."""
        try:
            self._waiting.put_nowait(answered)
        except Full:
            metrics.AUDITS.labels("dropped").inc()
        else:
            self._start()

    def close(self) -> None:
        """Stop auditing; what waits is left."""
        self._stop.set()
        with suppress(Full):  # a full queue wakes the thread as well
            self._waiting.put_nowait(None)
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="auditor", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        if sys.platform == "linux":  # where a thread has a niceness of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while (answered := self._waiting.get()) is not None and not self._stop.is_set():
            try:
                self._compare(answered)
            except Exception:  # nobody else would audit any more
                logs.failure("an answer could not be audited")

    def _compare(self, answered: Answered) -> None:
        best = answered.exact.best(answered.query, answered.k, answered.left)
        with self._lock:
            if answered.base is self._base:
                self._found.append(audit.share(answered.scores, best.scores))
                metrics.RECALL.set(float(np.mean(self._found)))
        metrics.AUDITS.labels("compared").inc()


def _known(base: Retriever) -> float:
    if base.kind == "exact":
        return 1.0
    return base.built_audit.recall if base.built_audit is not None else float("nan")
