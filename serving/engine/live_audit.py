"""Audit of live recall: some answers are computed again by the dense route, in the background."""

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

_LATEST = 200  # number of audited answers in the mean
_NICE = 19
_ROUNDING = 1e-9
"""Tolerance relative to the largest score: sums in another order differ by less."""


@dataclass(frozen=True)
class Answered:
    """The ``scores`` float64, descending, of an answer of ``bundle``, and a function that computes the ``best`` ones by
    the dense route from the items at that time; later changes of items do not affect it."""

    bundle: Bundle
    best: Callable[[], np.ndarray]
    scores: np.ndarray

    def share(self) -> float:
        """Return the share of the best scores in the answer."""
        best = self.best()
        return recall_audit.share(self.scores + _ROUNDING * np.abs(self.scores).max(initial=0), best)


class Audits(Protocol):
    """Interface of an auditor of approximate answers."""

    def draws(self, bundle: Bundle) -> bool:
        """Return whether the next answer of ``bundle`` should be offered."""
        ...

    def offer(self, answered: Answered) -> None:
        """Receive an answer."""
        ...


class Auditor:
    """Updates ``metrics.RECALL``: the mean recall of the latest audited answers of an index, and 1 for exact search.

    Before the first audit it is the recall at export. Audits take no lock of the engine: they are one pass over all
    items, on a low-priority thread that starts with the first sampled answer.
    """

    def __init__(self, share: float, room: int = 16) -> None:
        """A random ``share`` of the answers is audited; answers are dropped while ``room`` are waiting."""
        self._share, self._waiting = share, Queue[Answered | None](room)
        self._bundle: Bundle | None = None
        self._found: deque[float] = deque(maxlen=_LATEST)
        self._lock = threading.Lock()  # protects the state of the current model, and the thread's start
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, bundle: Bundle) -> None:
        """Audit only answers of ``bundle`` from now on."""
        with self._lock:
            self._bundle = bundle
            self._found.clear()
            known = bundle.manifest.agreement
            metrics.RECALL.set(float("nan") if known is None else known.recall)

    @property
    def recall(self) -> float | None:
        """Mean recall of the latest audited answers, ``None`` before the first."""
        with self._lock:
            return float(np.mean(self._found)) if self._found else None

    def draws(self, bundle: Bundle) -> bool:
        """Return whether the next answer of ``bundle`` is to be audited."""
        return bundle is self._bundle and bundle.retriever.kind != "exact" and random.random() < self._share

    def offer(self, answered: Answered) -> None:
        """Queue an answer for audit, or drop it if too many are waiting; return immediately."""
        try:
            self._waiting.put_nowait(answered)
        except Full:
            metrics.AUDITS.labels("dropped").inc()
        else:
            self._start()

    def close(self) -> None:
        """Stop auditing; waiting answers are dropped."""
        self._stop.set()
        with suppress(Full):  # a full queue also wakes the thread
            self._waiting.put_nowait(None)
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="auditor", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        if sys.platform == "linux":  # on systems with a niceness per thread
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while (answered := self._waiting.get()) is not None and not self._stop.is_set():
            try:
                self._compare(answered)
            except Exception:  # the audit thread must not end
                logs.failure("an answer could not be audited")

    def _compare(self, answered: Answered) -> None:
        share = answered.share()
        with self._lock:
            if answered.bundle is self._bundle:
                self._found.append(share)
                metrics.RECALL.set(float(np.mean(self._found)))
        metrics.AUDITS.labels("compared").inc()
