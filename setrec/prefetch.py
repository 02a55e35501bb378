"""Prefetching of items in a thread, with the remaining waiting time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_END = object()


class Prefetched(Generic[T]):
    """Iterator over ``items`` that prepares up to ``depth`` of them in advance; a context manager, which ends the
    thread.

    An error of ``items`` is raised when the reader reaches it.
    """

    def __init__(self, items: Iterable[T], depth: int) -> None:
        self._items, self._ready = items, queue.Queue[Any](maxsize=depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True, name="prefetch")

    def __enter__(self) -> Prefetched[T]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def __iter__(self) -> Iterator[tuple[T, float]]:
        """Yield each item, and the seconds spent waiting for it."""
        while True:
            began = time.perf_counter()
            item, error = self._ready.get()
            waited = time.perf_counter() - began
            if error is not None:
                raise error
            if item is _END:
                return
            yield item, waited

    def _fill(self) -> None:
        try:
            for item in self._items:
                if not self._put((item, None)):
                    return
            self._put((_END, None))
        except BaseException as error:
            self._put((None, error))

    def _put(self, entry: tuple[Any, BaseException | None]) -> bool:
        while not self._stopped.is_set():
            try:
                self._ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
