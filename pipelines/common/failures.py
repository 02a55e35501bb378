"""Messages of errors as users read them: without the layers that Ray puts around an error on a cluster, and with the
name that they gave in place of where a folder of a store was copied to."""

from __future__ import annotations

import re

from setrec.errors import ConfigError, SetRecError

_RAISED = re.compile(r"[A-Za-z_.]*(?:Error|Exception|Interrupt|Exit)\b: ")
_OURS = re.compile(r"^setrec\.errors\.\w+: (.+)$", re.MULTILINE)

copies: dict[str, str] = {}
"""Folders here, and the URIs that they are copies of."""


def as_given(text: str) -> str:
    """``text`` with the URIs of copied folders in place of where the copies lie."""
    for folder, where in copies.items():
        text = text.replace(folder, where)
    return text


def told(error: BaseException, what: str) -> SetRecError:
    """The error raised on purpose inside ``error``, or a ConfigError that says why ``what`` failed."""
    inner: BaseException | None = error
    last = error
    for _ in range(10):
        if inner is None:
            break
        if isinstance(inner, SetRecError) and not hasattr(inner, "cause"):
            return type(inner)(str(inner).splitlines()[0])  # Ray Data puts advice of its own behind the line
        last = inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    # Of what was raised in Ray Data's workers only the text comes back.
    if named := _OURS.findall(str(error)):
        return ConfigError(named[-1])
    lines = [line.strip() for line in str(last).splitlines() if line.strip()]
    # Ray adds hints behind the line that names the error.
    named = [line for line in lines if _RAISED.match(line)]
    return ConfigError(f"{what} failed: {(named or lines or [type(last).__name__])[-1]}")
