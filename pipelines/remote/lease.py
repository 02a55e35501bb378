"""Lease of a folder in a store, which has no locks: an object that names the job and is renewed.

A killed job does not renew it, and after :data:`SECONDS` the next may begin; clocks must agree within less than that.
If two begin at once, the first to write sees the other :data:`SETTLED` seconds later and gives up.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pyarrow import fs

from pipelines.common import storage
from pipelines.common.progress import in_thread
from setrec.errors import ConfigError

NAME = ".lease.json"
SECONDS, RENEWED, SETTLED = 90.0, 20.0, 1.0


@contextmanager
def leased(where: str) -> Iterator[None]:
    """Hold the folder ``where``, a URI, until the block ends.

    Raises:
        ConfigError: another job holds it, or the store cannot be reached.
    """
    system, folder = storage.filesystem(where)
    path, ended = f"{folder}/{NAME}", threading.Event()
    own = {"holder": uuid.uuid4().hex, "host": platform.node(), "pid": os.getpid()}

    def write() -> None:
        with system.open_output_stream(path) as stream:
            stream.write(json.dumps({**own, "time": time.time()}).encode())

    def renew() -> None:
        while not ended.wait(RENEWED):
            with suppress(OSError):  # tried again at the next renewal
                write()

    with store_errors(where, "written to"):
        _require_free(where, _read(system, path), own["holder"])
        storage.make_folder(system, folder)
        write()
        time.sleep(SETTLED)
        _require_free(where, _read(system, path), own["holder"])
    try:
        with in_thread(renew, ended):
            yield
    finally:
        with suppress(OSError):
            system.delete_file(path)


def _read(system: fs.FileSystem, path: str) -> dict[str, Any] | None:
    if system.get_file_info(path).type != fs.FileType.File:
        return None
    with suppress(ValueError):
        return dict(json.loads(system.open_input_file(path).read()))
    return None


def _require_free(where: str, found: dict[str, Any] | None, own: object) -> None:
    if found is None or found.get("holder") == own or time.time() - found.get("time", 0) > SECONDS:
        return
    who = f"process {found.get('pid')} on {found.get('host')}"
    raise ConfigError(
        f"{storage.shown(where)}: another job is under way ({who}); where it was killed, try again in {SECONDS:.0f} s"
    )


@contextmanager
def store_errors(where: str, what: str) -> Iterator[None]:
    """Convert errors of the store to one line; errors with a file name are local and raised unchanged."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        reason = " ".join((str(error).splitlines() or [type(error).__name__])[0].split())[:300]
        raise ConfigError(f"{storage.shown(where)}: cannot be {what}: {reason}") from error
