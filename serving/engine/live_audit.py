"""Recall of the answers that are given: some are computed again by the dense route, where no request waits for it."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Full, Queue
from typing import Protocol

import numpy as np

from serving.bundle.reader import Bundle
from serving.retrieval import recall_audit
from serving.telemetry import logs, metrics

_LATEST = 200  # audited answers that the figure is the mean of
_NICE = 19
_ROUNDING = 1e-9
"""Of the largest score: sums in another order differ by less."""


@dataclass(frozen=True)
class Answered:
    """The ``scores`` float64, falling, of an answer of ``bundle``, and what computes the ``best`` ones by the dense
    route from the items as they were; it stays as it is when items come and go."""

    bundle: Bundle
    best: Callable[[], np.ndarray]
    scores: np.ndarray

    def share(self) -> float:
        """The share of the best that was answered."""
        best = self.best()
        return recall_audit.share(self.scores + _ROUNDING * np.abs(self.scores).max(initial=0), best)


class Audits(Protocol):
    """Who is offered answers that may hold less than the best."""

    def draws(self, bundle: Bundle) -> bool:
        """Whether the next answer of ``bundle`` is wanted."""
        ...

    def offer(self, answered: Answered) -> None:
        """Take an answer."""
        ...


class Auditor:
    """Keeps ``metrics.RECALL``: of an index the mean recall of the latest answers drawn, of exact search 1.

    Until the first is audited it is what was found at export. Comparing takes no lock of the engine: one pass over all
    items, on a thread that other work goes before and that starts with the first answer drawn.
    """

    def __init__(self, share: float, room: int = 16) -> None:
        """``share`` of the answers is drawn; those that come while ``room`` wait are dropped."""
        self._share, self._waiting = share, Queue[Answered | None](room)
        self._bundle: Bundle | None = None
        self._found: deque[float] = deque(maxlen=_LATEST)
        self._lock = threading.Lock()  # around what changes with the model, and the thread's start
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, bundle: Bundle) -> None:
        """Audit answers of ``bundle`` from now on, and no others."""
        with self._lock:
            self._bundle = bundle
            self._found.clear()
            known = bundle.manifest.agreement
            metrics.RECALL.set(float("nan") if known is None else known.recall)

    @property
    def recall(self) -> float | None:
        """Mean recall of the latest answers audited, ``None`` before the first."""
        with self._lock:
            return float(np.mean(self._found)) if self._found else None

    def draws(self, bundle: Bundle) -> bool:
        """Whether the next answer of ``bundle`` is to be audited."""
        return bundle is self._bundle and bundle.retriever.kind != "exact" and random.random() < self._share

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
        share = answered.share()
        with self._lock:
            if answered.bundle is self._bundle:
                self._found.append(share)
                metrics.RECALL.set(float(np.mean(self._found)))
        metrics.AUDITS.labels("compared").inc()
