"""Serving from the command line: an endpoint until interrupted, or one answer without a server."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipelines import graph_service
from pipelines.progress import console
from serving import app
from serving.bundle import Bundle
from serving.engine import Engine, Request
from serving.settings import ServingSettings
from setrec.errors import ConfigError

IMPORT_PATH = "pipelines.serve:application"
_EVERYWHERE = "0.0.0.0"


def serve_until_interrupted(bundle: Path, settings: ServingSettings) -> None:
    """Serve the bundle; returns after SIGINT or SIGTERM, the service ended."""
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    app.start(bundle, settings, graph_loader=graph_service.load)
    try:
        console.print(
            f"Serving {bundle} at http://{settings.host}:{settings.port} (documentation at /docs). Ctrl-C ends."
        )
        done.wait()
    finally:
        app.stop()


def application(args: dict[str, Any]) -> Any:
    """What a Serve configuration file imports: ``args`` are ``bundle`` and the keys of ``ServingSettings``.

    On a cluster it is the file's ``http_options`` that say where the endpoint listens, so authentication stays on.

    Raises:
        ConfigError: a key or value is not allowed.
    """
    bundle, settings = settings_of(args, "args", {"host": _EVERYWHERE})
    return app.application(bundle, settings, graph_loader=graph_service.load)


def read_serve_file(file: Path, changes: Mapping[str, Any]) -> tuple[Path, ServingSettings]:
    """Bundle and settings from a Serve configuration file, the one that ``serve deploy`` takes for a cluster.

    ``changes``: what the command line says otherwise, ``bundle`` and ``host`` included.

    Raises:
        ConfigError: the file cannot be read, or a key or value is not allowed; the message names it.
    """
    try:
        raw = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not YAML: {' '.join(str(error).split())}") from error
    http, only = _parts(raw, file)
    place = {key: http[key] for key in ("host", "port") if key in http}
    return settings_of({**only, **changes}, str(file), place)


def _parts(raw: Any, file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """``http_options`` and the arguments of the one application."""
    from ray.serve.schema import ServeDeploySchema

    try:
        found = ServeDeploySchema.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{file}: {_first(error)}") from error
    if len(found.applications) != 1 or found.applications[0].import_path != IMPORT_PATH:
        raise ConfigError(f"{file}: applications: one with the import_path {IMPORT_PATH} is expected")
    if found.applications[0].deployments:
        raise ConfigError(f"{file}: applications.0.deployments: say it under args instead")
    return raw.get("http_options") or {}, raw["applications"][0].get("args") or {}


def settings_of(
    args: Mapping[str, Any], source: str, place: Mapping[str, Any] | None = None
) -> tuple[Path, ServingSettings]:
    """Bundle and settings from plain values; ``source`` names them in an error, ``place`` says host and port.

    Raises:
        ConfigError: a key or value is not allowed, or there is no bundle.
    """
    if not isinstance(args.get("bundle"), str | Path):
        raise ConfigError(f"{source}: bundle: the directory of a bundle is expected")
    try:
        settings = ServingSettings(
            **{**(place or {}), **{key: value for key, value in args.items() if key != "bundle"}}
        )
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first(error)}") from error
    return Path(args["bundle"]).resolve(), settings


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'settings'}: {first['msg']}"


def recommend_once(bundle: Path, request: Request) -> dict[str, Any]:
    """One answer from a bundle, as the endpoint would give it."""
    return asdict(Engine(Bundle.open(bundle)).recommend_one(request))
