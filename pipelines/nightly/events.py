"""Events under a root, one per line of ``history.jsonl``; and the model that is held back or was approved."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from setrec.atomic import atomic_file
from setrec.errors import ConfigError

FILE, HELD_BACK, APPROVED = "history.jsonl", "state/held_back.json", "state/approved.json"


def note(root: Path, event: str, **fields: Any) -> None:
    """Append an event."""
    line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **fields}
    with (root / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def history(root: Path) -> list[dict[str, Any]]:
    """Return all events, oldest first."""
    path = root / FILE
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def hold_back(root: Path, step: str, reason: str, what: str | None) -> None:
    """Record why a model is held back. ``what``: the hash for its approval, ``None`` if it cannot be approved."""
    known = held_back(root)
    found = {"step": step, "reason": reason, "what": what}
    if known is None or {**known, **found} != known:
        note(root, "held back", step=step, reason=reason)
        with atomic_file(root / HELD_BACK) as temporary:
            since = datetime.now(UTC).isoformat(timespec="seconds")
            temporary.write_text(json.dumps({**found, "since": since}, indent=2))


def held_back(root: Path) -> dict[str, Any] | None:
    """Return what is held back, since when and why, or ``None``."""
    return _read(root / HELD_BACK)


def clear(root: Path) -> None:
    """Remove the record of what is held back."""
    (root / HELD_BACK).unlink(missing_ok=True)


def approve(root: Path) -> dict[str, Any]:
    """Approve what is held back for the next night, and return it.

    Raises:
        ConfigError: nothing is held back, or it cannot be approved.
    """
    found = held_back(root)
    if found is None:
        raise ConfigError(f"{root}: nothing is held back")
    if found["what"] is None:
        raise ConfigError(f"{root}: what `{found['step']}` holds back cannot be approved: {found['reason']}")
    with atomic_file(root / APPROVED) as temporary:
        temporary.write_text(json.dumps(found))
    note(root, "approved", step=found["step"], reason=found["reason"])
    return found


def approved(root: Path, what: str) -> bool:
    """Return whether this hash was approved."""
    return (_read(root / APPROVED) or {}).get("what") == what


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is damaged") from error
