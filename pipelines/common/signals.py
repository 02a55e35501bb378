"""Ctrl-C and SIGTERM: a job ends with its context managers, exit code 130 or 143, and a line on how to go on.

A signal raises :class:`Stopped` in the main thread. A process that has not ended ``GRACE_SECONDS`` later is ended by
force, before an orchestrator kills it without a message; files are complete at any moment.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from pipelines.common.failures import as_given

GRACE_SECONDS = 8.0
"""Docker and Kubernetes kill after 10 and 30 s."""
_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_AGAIN_SECONDS = 0.05
_advice: list[Callable[[], str]] = []
_received: list[int] = []
_dropped: list[int] = []


class Stopped(BaseException):
    """Raised when a signal requests this process to end."""


@contextmanager
def advised(advice: Callable[[], str]) -> Iterator[None]:
    """If a signal ends the process in this block, print the text of ``advice``: what is kept and how to continue."""
    _advice.append(advice)
    try:
        yield
    except BaseException:
        if not _received:
            _advice.remove(advice)
        raise
    _advice.remove(advice)


def install() -> None:
    """Make SIGINT and SIGTERM raise :class:`Stopped`; only in the main thread."""
    _received.clear()
    _dropped.clear()
    if not isinstance(sys.unraisablehook, _Unraisable):
        sys.unraisablehook = _Unraisable(sys.unraisablehook)
    for number in _NUMBERS:
        signal.signal(number, _stop)


def uninstall() -> None:
    """Make both signals end the process at once and without a message, since its work is done."""
    for number in _NUMBERS:
        signal.signal(number, _leave)


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
            if handler is not None:
                signal.signal(number, handler)


def received(error: BaseException | None = None) -> int | None:
    """Return the signal that requested this process to end, or ``None``; ``error`` is what ended it.

    While Ray starts, its own handlers are active; they exit with the number of the signal.
    """
    if not _received and isinstance(error, SystemExit) and error.code == signal.SIGTERM:
        _received.append(signal.SIGTERM)
    if not _received and isinstance(error, KeyboardInterrupt):
        _received.append(signal.SIGINT)
    return _received[0] if _received else None


def end() -> NoReturn:
    """Print how to continue and exit with 128 plus the number of the received signal."""
    number = _received[0]
    print(f"setrec: {_line(number)}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    sys.exit(128 + number)


def _line(number: int) -> str:
    name = "interrupted" if number == signal.SIGINT else "terminated"
    try:
        said = _advice[-1]() if _advice else "nothing is left half done; run the same command again"
    except Exception:  # an unreachable store must not change the exit code
        said = "run the same command again"
    return as_given(f"{name}: {said}")


def _stop(number: int, _: FrameType | None) -> None:
    if _dropped:
        _dropped.clear()
        raise Stopped
    if _received:  # a second signal: end at once
        os._exit(128 + number)
    _received.append(number)
    threading.Thread(target=_insist, args=(number,), daemon=True).start()
    raise Stopped


def _leave(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)


@dataclass
class _Unraisable:
    """Raises :class:`Stopped` again where Python drops it: in a finaliser or in the callback of an import lock."""

    other: Callable[[Any], object]

    def __call__(self, what: Any) -> None:
        if what.exc_type is Stopped:
            threading.Thread(target=_again, args=(_received[0],), daemon=True).start()
        else:
            self.other(what)


def _again(number: int) -> None:
    threading.Event().wait(_AGAIN_SECONDS)
    _dropped.append(number)
    os.kill(os.getpid(), number)


def _insist(number: int) -> None:
    threading.Event().wait(GRACE_SECONDS)
    print(f"setrec: {_line(number)}", file=sys.stderr, flush=True)
    os._exit(128 + number)
