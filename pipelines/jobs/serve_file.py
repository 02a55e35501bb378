"""The Serve configuration file: for ``serve deploy`` on a cluster and ``setrec serve --config`` on one machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from pipelines.common import storage
from pipelines.common.yaml_file import read_yaml
from pipelines.config.problems import SettingsError, problems_of
from pipelines.remote import mirror
from serving.runtime.settings import ServingSettings
from setrec.errors import ConfigError
from setrec.settings import Settings

IMPORT_PATH = "pipelines.jobs.serve:application"


class HttpOptions(Settings):
    """Host and port of the endpoint, with Ray's own defaults."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)


class Application(Settings):
    """The application; ``args``: ``bundle`` and the keys of ``ServingSettings``, including replicas and batching."""

    name: str = "setrec"
    route_prefix: Literal["/"] = "/"
    import_path: Literal["pipelines.jobs.serve:application"]
    args: dict[str, Any]


class ServeFile(Settings):
    """The part of Ray's format that has the same meaning on one machine; other keys are refused, not ignored."""

    proxy_location: Literal["HeadOnly", "EveryNode"] = "EveryNode"
    http_options: HttpOptions = HttpOptions()
    applications: tuple[Application, ...] = Field(min_length=1, max_length=1)


def read_serve_file(file: Path, changes: Mapping[str, Any]) -> tuple[Path, ServingSettings]:
    """Return bundle and settings of the endpoint on one machine.

    ``changes``: overrides of the command line, including ``bundle`` and ``host``.

    Raises:
        ConfigError: the file cannot be read, or a key or value is not allowed; the message names it.
    """
    raw = read_yaml(file)
    try:
        found = ServeFile.model_validate(raw)
    except ValidationError as error:
        raise SettingsError(str(file), problems_of(error, ServeFile, raw)) from error
    place = found.http_options.model_dump()
    return settings_of({**found.applications[0].args, **changes}, str(file), place)


def settings_of(
    args: Mapping[str, Any], source: str, place: Mapping[str, Any] | None = None
) -> tuple[Path, ServingSettings]:
    """Return bundle and settings from plain values; ``source`` names them in an error, ``place``: host and port. A
    bundle in a store is copied to this machine; by default it is the current one at ``follow``.

    Raises:
        ConfigError: a key or value is not allowed, or there is no bundle.
    """
    bundle, follow = args.get("bundle"), args.get("follow")
    if bundle is None and isinstance(follow, str):
        bundle = storage.join(follow, "current")
    if not isinstance(bundle, str | Path):
        raise ConfigError(f"{source}: bundle: the directory of a bundle is expected")
    raw = {**(place or {}), **{key: value for key, value in args.items() if key != "bundle"}}
    try:
        settings = ServingSettings.model_validate(raw)
    except ValidationError as error:
        raise SettingsError(source, problems_of(error, ServingSettings, raw)) from error
    return (mirror.fetched(str(bundle)) if storage.is_uri(bundle) else Path(bundle)).resolve(), settings
