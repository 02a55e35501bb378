"""Asynchronous storage of checkpoints during training."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from pipelines.training.checkpoint_store import CheckpointStore


class CheckpointWriter:
    """Stores checkpoints during training; a context manager that waits for the last one at its end.

    One checkpoint is being stored and at most one waits; a newer one replaces the waiting one. If the store is
    unreachable for longer than its patience, the next call, or the end of the context, raises the error.
    """

    def __init__(self, store: CheckpointStore) -> None:
        self.store = store
        self._turn = threading.Condition()
        self._waiting: tuple[Path, str] | None = None
        self._closed = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="checkpoints")

    def __enter__(self) -> CheckpointWriter:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._turn:
            self._closed = True
            self._turn.notify_all()
        if kind is None:
            self._thread.join()
            self._raise()

    def hand_over(self, folder: Path, name: str) -> None:
        """Store ``folder`` as ``name`` and delete the folder afterwards.

        Raises:
            CheckpointStoreError: an earlier checkpoint could not be stored.
        """
        self._raise()
        with self._turn:
            if self._waiting is not None:
                shutil.rmtree(self._waiting[0], ignore_errors=True)
            self._waiting = folder, name
            self._turn.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._waiting is not None or self._closed)
                if self._waiting is None:
                    return
                (folder, name), self._waiting = self._waiting, None
            try:
                self.store.put(folder, name)
            except Exception as error:
                self._error = error
                return
            finally:
                shutil.rmtree(folder, ignore_errors=True)
