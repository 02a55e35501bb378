"""Bearer tokens with scopes.

A token is 32 random bytes; only its SHA-256 is stored, in a file or in the variable ``SETREC_TOKENS``, from which the
token cannot be recovered. A slow hash, as for passwords, is not needed: there is no dictionary of random tokens.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from pydantic import Field, ValidationError
from starlette.exceptions import HTTPException

from setrec.atomic import atomic_file
from setrec.errors import ConfigError
from setrec.settings import Settings

Scope = Literal["read", "write", "admin", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
VARIABLE = "SETREC_TOKENS"
_RECHECK_SECONDS = 2.0


class TokenEntry(Settings):
    """One token: its name in logs and limits, its SHA-256 in hexadecimal, and its scopes."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    scopes: tuple[Scope, ...] = Field(min_length=1)


class TokenList(Settings):
    """All tokens, in the format of the file and the variable."""

    tokens: tuple[TokenEntry, ...]


@dataclass(frozen=True)
class Caller:
    """A caller: the name of its token, or its address if authentication is off."""

    name: str
    scopes: frozenset[str]


class Tokens:
    """The valid tokens. A changed file is read again within two seconds, so tokens can be revoked."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._stamp, self._checked = self._state(), time.monotonic()
        self._known = _parse(file)

    def caller(self, token: str) -> Caller | None:
        """Return the caller of ``token``, in the same time for all invalid tokens, and for all valid ones.

        The hash is compared with every entry, each in constant time.
        """
        self._refresh()
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        found: Caller | None = None
        for known, caller in self._known:
            if hmac.compare_digest(digest, known):
                found = caller
        return found

    def _state(self) -> tuple[int, int] | None:
        if self._file is None:
            return None
        try:
            stat = self._file.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino

    def _refresh(self) -> None:
        if self._file is None or time.monotonic() - self._checked < _RECHECK_SECONDS:
            return
        self._checked = time.monotonic()
        state = self._state()
        if state is not None and state != self._stamp:
            try:
                self._known = _parse(self._file)
            except ConfigError:
                return  # an incomplete edit must not lock out all callers; the previous tokens stay valid
            self._stamp = state


def _parse(file: Path | None) -> list[tuple[bytes, Caller]]:
    source = VARIABLE if file is None else str(file)
    try:
        text = os.environ.get(VARIABLE) if file is None else file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: cannot be read: {error}") from error
    if not text:
        raise ConfigError(
            "no tokens: make one with `setrec token NAME --file tokens.json` and serve with --tokens tokens.json, "
            f"set {VARIABLE}, or switch authentication off with --no-auth on a loopback address"
        )
    try:
        entries = TokenList.model_validate_json(text).tokens
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first(error)}") from error
    return [(bytes.fromhex(entry.sha256), Caller(entry.name, frozenset(entry.scopes))) for entry in entries]


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'not JSON'}: {first['msg']}"


def issue(file: Path, name: str, scopes: Sequence[str]) -> str:
    """Create a token, add its hash to ``file`` (which only its owner may read) and return it; it is not stored
    anywhere.

    Raises:
        ConfigError: the file is not a list of tokens, a scope is unknown, or ``name`` is taken.
    """
    token = "setrec_" + secrets.token_urlsafe(32)
    try:
        entries = TokenList.model_validate_json(file.read_text()).tokens if file.exists() else ()
        sha256 = hashlib.sha256(token.encode()).hexdigest()
        entry = TokenEntry.model_validate({"name": name, "sha256": sha256, "scopes": scopes})
    except ValidationError as error:
        raise ConfigError(f"{file}: {_first(error)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error
    if any(known.name == name for known in entries):
        raise ConfigError(f"{file}: there is a token named '{name}' already")
    with atomic_file(file) as temporary:
        temporary.chmod(0o600)
        temporary.write_text(json.dumps(TokenList(tokens=(*entries, entry)).model_dump(mode="json"), indent=2))
    return token


def may(connection: Mapping[str, Any], scope: Scope) -> bool:
    """Return whether the caller has ``scope``; ``connection``: ASGI's scope."""
    caller: Caller | None = connection.get("state", {}).get("caller")
    return caller is not None and scope in caller.scopes


# Only for the OpenAPI document; the token itself is read before the body (serving.api.access.authentication).
_SCHEME = HTTPBearer(auto_error=False, description="A token made with `setrec token`.")


def _allowed(scope: Scope) -> Callable[..., Awaitable[None]]:
    async def check(request: Request, _: object = Security(_SCHEME)) -> None:
        if not may(request.scope, scope):
            raise HTTPException(403, f"the token lacks the scope '{scope}'")

    check.scope = scope  # type: ignore[attr-defined]
    return check


# Scope of a route, as `@app.post(..., dependencies=[READ])`. A test fails if a route has none and is not in
# serving.api.access.authentication.OPEN.
READ, WRITE, ADMIN, METRICS = (Depends(_allowed(scope)) for scope in SCOPES)
