"""Keeps the engine in use up to date with live changes of other replicas."""

from __future__ import annotations

import threading
import time

from serving.runtime.models import Live
from serving.stores import StoreError
from serving.telemetry import logs


class Follower:
    """A thread that polls the store for changes every ``seconds``, until it is closed; ``polls``: number of polls."""

    def __init__(self, live: Live, seconds: float = 0.25) -> None:
        self._live, self._seconds = live, seconds
        self.polls = 0
        self._stop, self._reachable = threading.Event(), True
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._thread.start()

    def wait_until(self, seq: int, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds and return whether the change numbered ``seq`` is applied."""
        deadline = time.monotonic() + timeout
        while min(engine.applied for engine in self._live.engines) < seq:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def close(self) -> None:
        """Stop polling."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                for engine in self._live.engines:
                    engine.catch_up()
                self._reachable = True
            except StoreError as error:
                self._report(error)
            except Exception as error:  # the polling thread must not end
                self._report(error)
            self.polls += 1

    def _report(self, error: Exception) -> None:
        """Log an error once, not at every poll, until the store answers again."""
        if self._reachable:
            logs.warning("live changes cannot be read", error=type(error).__name__)
        self._reachable = False
