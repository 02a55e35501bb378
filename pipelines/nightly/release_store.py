"""Released bundles: their folder, the current one, and the notification of an endpoint.

``RELEASES/NAME`` is a bundle, under the name for ``POST /v1/admin/release``; ``RELEASES/current`` is a link to the last
one. ``ROOT/records/NAME`` contains what the next night needs of its run: the model and its items for a warm start, and
metrics per user for the gate.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines.nightly.steps import HeldBackError
from setrec.atomic import atomic_directory, atomic_file
from setrec.errors import ConfigError

URL, TOKEN = "SETREC_RELEASE_URL", "SETREC_RELEASE_TOKEN"
"""Environment variables: the endpoint to notify, and a token with the scope ``admin``."""
POINTER, RECORD = "released.json", "records"
KEPT = (
    "model", "sasrec", "encoder", "data/items.parquet", "features/lexical", "per_user.parquet", "metrics.json",
    "scorer.json", "config.yaml", "data.json",
)  # fmt: skip
"""Parts of a run in its record, which a warm start reads like the folder of a run."""
_OURS = re.compile(r"\d{8}T\d{9}-[A-Za-z0-9._-]+")
_PATIENCE_SECONDS = 600.0
_PAUSE_SECONDS = 1.0


def current(root: Path) -> tuple[str, Path] | None:
    """Return name and record of the last release, or ``None`` before the first."""
    name = _pointer(root).get("release")
    record = root / RECORD / str(name)
    return (str(name), record) if name is not None and record.is_dir() else None


def release(
    bundle: Path,
    run: Path,
    root: Path,
    folder: Path,
    keep: int,
    environment: Mapping[str, str] = os.environ,
    store: str | None = None,
) -> dict[str, Any]:
    """Release ``bundle``, made by ``run``; idempotent. Return the content of ``released.json``.

    ``store``: the URI of a copy of ``folder``.

    In this order: the bundle is copied to ``folder``, the endpoint at :data:`URL` (if any) is notified and accepts it,
    the record is written, the pointers are updated, all but the last ``keep`` are removed. After a kill it is repeated.

    Raises:
        HeldBackError: the endpoint refused the bundle; pointers are unchanged.
        ConfigError: the endpoint cannot be reached.
    """
    name, before = name_of(bundle), _pointer(root)
    if _version(name) in map(_version, before.get("withdrawn", ())):
        return before
    if (last := before.get("release")) and _version(last) == _version(name):
        name = last  # the same model, exported again: the release there is stays, or is put back where it is missing
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / name).is_dir():
        with atomic_directory(folder / name) as target:
            _copy(bundle, target)
    endpoint = tell(environment[URL], environment.get(TOKEN, ""), name) if environment.get(URL) else None
    record = root / RECORD / name
    if not record.is_dir():
        with atomic_directory(record) as target:
            for part in KEPT:
                _copy(run / part, target / part)
    found = {**before, "release": name, "bundle": _shown(folder / name, root), "endpoint": endpoint, "store": store}
    _move(root, folder, found)
    for place in (folder, root / RECORD):
        _prune(place, keep, {name, *_served(folder)})
    _copy_to(store, root, folder)
    return found


def rollback(root: Path, name: str, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Make an earlier release current, the endpoint first; later ones are withdrawn and never released again. Return
    the content of ``released.json``.

    Raises:
        ConfigError: there is no such release, or the endpoint cannot be reached.
        HeldBackError: the endpoint refused it.
    """
    before = _pointer(root)
    folder = (root / before["bundle"]).parent if before else root / "releases"
    known = [release for release in released(root) if (folder / release).is_dir()]
    if name not in known:
        raise ConfigError(f"{root} holds no release '{name}'; there are {', '.join(known) or 'none'}")
    endpoint = tell(environment[URL], environment.get(TOKEN, ""), name) if environment.get(URL) else None
    withdrawn = sorted({*before.get("withdrawn", ()), *(release for release in known if release > name)} - {name})
    changed = {"release": name, "bundle": _shown(folder / name, root), "endpoint": endpoint, "withdrawn": withdrawn}
    found = {**before, **changed}
    _move(root, folder, found)
    _copy_to(before.get("store"), root, folder)
    return found


def released(root: Path) -> list[str]:
    """Return the names of the releases whose records are kept, oldest first."""
    records = root / RECORD
    return sorted(path.name for path in records.iterdir() if _OURS.fullmatch(path.name)) if records.is_dir() else []


def _shown(path: Path, root: Path) -> str:
    """Return a relative path if ``path`` is below the root, because the root may be moved."""
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _copy_to(store: str | None, root: Path, folder: Path) -> None:
    if store is not None:
        from pipelines.remote.mirror import Mirror

        Mirror(store, folder, root / "state" / "store.json").push()


def _pointer(root: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((root / POINTER).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _move(root: Path, folder: Path, found: dict[str, Any]) -> None:
    with atomic_file(root / POINTER) as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n")
    _point(folder, found["release"])


def _version(name: str) -> str:
    """Return the model's version in the name of a release."""
    return name.partition("-")[2]


def name_of(bundle: Path) -> str:
    """Return a release's name: the time at which its bundle was made, and the model's version."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    created = datetime.fromisoformat(manifest["created"])
    when = f"{created:%Y%m%dT%H%M%S}{created.microsecond // 1000:03}"
    return f"{when}-{re.sub('[^A-Za-z0-9._-]', '-', str(manifest['model_version']))}"[:100]


def tell(url: str, token: str, name: str) -> str:
    """Make the endpoint at ``url`` serve the bundle ``name``; return once it does.

    Raises:
        HeldBackError: it refused the bundle; the message has the reason.
        ConfigError: it cannot be reached, or does not know the token or the bundle.
    """
    import httpx

    route, until = f"{url.rstrip('/')}/v1/admin/release", time.monotonic() + _PATIENCE_SECONDS
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx.Client(headers=headers, timeout=60) as client:
            answer = client.post(route, json={"bundle": name})
            while time.monotonic() < until:
                if _serves(route, name, answer.status_code, answer.json()):
                    return url
                time.sleep(_PAUSE_SECONDS)
                busy = answer.status_code == 409
                answer = client.post(route, json={"bundle": name}) if busy else client.get(route)
    except (httpx.HTTPError, json.JSONDecodeError) as error:
        raise ConfigError(f"{route}: no usable answer ({error or type(error).__name__}): run again") from error
    raise ConfigError(f"{route}: does not serve {name} after {_PATIENCE_SECONDS:.0f} s: run again")


def _serves(route: str, name: str, status: int, body: dict[str, Any]) -> bool:
    """Return whether an answer says that the bundle is served; raise its refusal."""
    if status == 200 and body.get("bundle") == name:
        return True
    refused = body.get("refused") or {}
    if status == 200 and refused.get("bundle") == name:
        raise HeldBackError(f"held back: {route} refused {name}: {refused.get('reason')}")
    if status in (200, 202, 409):
        return False
    message = (body.get("error") or {}).get("message", f"status {status}")
    if status == 422:
        raise HeldBackError(f"held back: {route} refused {name}: {message}")
    raise ConfigError(f"{route}: {message}")


def _copy(source: Path, target: Path) -> None:
    """Copy with hard links where possible; finished files are never modified."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link, dirs_exist_ok=True)
    elif source.is_file():
        _link(str(source), str(target))


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
    return target


def _point(folder: Path, name: str) -> None:
    """Point the link ``current`` to ``name``, atomically."""
    with tempfile.TemporaryDirectory(prefix=".current.", dir=folder) as work:
        (Path(work) / "link").symlink_to(name, target_is_directory=True)
        os.replace(Path(work) / "link", folder / "current")


def _served(folder: Path) -> set[str]:
    """Return the bundles that an endpoint over this folder uses or may return to."""
    try:
        state = json.loads((folder / ".state" / "release.json").read_text())
        return {state[name] for name in ("bundle", "before") if state.get(name)}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _prune(folder: Path, keep: int, needed: set[str]) -> None:
    """Remove all releases but the last ``keep`` and those ``needed``; other names are not touched."""
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    ours = [path for path in found if _OURS.fullmatch(path.name)]
    for path in ours[:-keep]:
        if path.name not in needed:
            gone = folder / f".{path.name}.gone"
            path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
