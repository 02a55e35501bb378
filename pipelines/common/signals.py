"""Ctrl-C and SIGTERM: a job ends with its context managers, exit code 130 or 143, and a line on how to go on.

A signal raises :class:`Stopped` in the main thread. What has not ended ``GRACE_SECONDS`` later is ended by force, as an
orchestrator would do without a word; files are whole at any moment.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

GRACE_SECONDS = 8.0
"""Docker and Kubernetes kill after 10 and 30 s."""
_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_advice: list[Callable[[], str]] = []
_received: list[int] = []


class Stopped(BaseException):
    """A signal asked this process to end."""


@contextmanager
def kept(advice: Callable[[], str]) -> Iterator[None]:
    """Say what ``advice`` returns, what is kept and how to go on, where a signal ends the process in this block."""
    _advice.append(advice)
    try:
        yield
    except BaseException:
        if not _received:
            _advice.remove(advice)
        raise
    _advice.remove(advice)


def install() -> None:
    """Have SIGINT and SIGTERM raise :class:`Stopped`; only in the main thread."""
    _received.clear()
    for number in _NUMBERS:
        signal.signal(number, _stop)


@contextmanager
def unchanged() -> Iterator[None]:
    """Restore the handlers of both signals after the block, in which a library installs its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def received() -> int | None:
    """The signal that asked this process to end; ``None`` where none did."""
    return _received[0] if _received else None


def end() -> NoReturn:
    """Say how to go on and exit with 128 and the number of the signal that was received."""
    number = _received[0]
    print(f"setrec: {_line(number)}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    sys.exit(128 + number)


def _line(number: int) -> str:
    name = "interrupted" if number == signal.SIGINT else "terminated"
    try:
        said = _advice[-1]() if _advice else "nothing is left half done; run the same command again"
    except Exception:  # a store that cannot be asked is no reason to lose the exit code
        said = "run the same command again"
    return f"{name}: {said}"


def _stop(number: int, _: FrameType | None) -> None:
    if _received:  # asked again: whoever waits has waited enough
        os._exit(128 + number)
    _received.append(number)
    threading.Thread(target=_insist, args=(number,), daemon=True).start()
    raise Stopped


def _insist(number: int) -> None:
    threading.Event().wait(GRACE_SECONDS)
    print(f"setrec: {_line(number)}", file=sys.stderr, flush=True)
    os._exit(128 + number)
