"""Options that several commands share, the resulting configuration, and the run that a command locks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.common import cluster, signals
from pipelines.common.run_directory import Run
from setrec.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.config.job import JobConfig


def place(context: typer.Context, value: str | Path | None) -> Path | None:
    """Return the folder that a command works in: a path, or a copy of a URI, which is stored when the command ends.

    Raises:
        ConfigError: the store cannot be reached.
    """
    return _here(value, context)


def place_of_state(context: typer.Context, value: str | Path | None) -> Path | None:
    """Return the same for commands that read and change only small files."""
    return _here(value, context, small=True)


def to_read(value: str | Path | None) -> Path | None:
    """Return the folder that a command reads: a path, or a copy of a URI.

    Raises:
        ConfigError: the store cannot be reached, or the folder does not exist.
    """
    return _here(value)


def state_to_read(value: str | Path | None) -> Path | None:
    """Return the same for commands that read only small files."""
    return _here(value, small=True)


def _here(value: str | Path | None, context: typer.Context | None = None, *, small: bool = False) -> Path | None:
    if value is None or "://" not in str(value):
        return None if value is None else Path(value)
    from pipelines.remote import mirror

    largest = mirror.SMALL if small else None
    if context is None:
        return mirror.fetched(str(value), largest)
    return context.with_resource(mirror.mirrored(str(value), largest))


def store_changes() -> None:
    """Store the changes so far in the folders of this command that are in a store."""
    from pipelines.remote.mirror import push

    push()


RunOption = Annotated[
    Path, typer.Option("--run", help="Folder of the run, or a URI.", parser=str, callback=place, metavar="PATH")
]
ConfigOption = Annotated[Path, typer.Option("--config", help="YAML configuration.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override, e.g. training.epochs=20. Repeatable.")]
AddressOption = Annotated[str | None, typer.Option("--address", help="Ray cluster to join; default: this machine.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace a trained run.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

_BY_COMMAND = {
    "train": ("sasrec", "model", "loss", "training", "warm_start", "name", "cluster", "tracking"),
    "evaluate": ("evaluation", "sasrec", "name", "cluster", "tracking"),
    "export": ("retriever",),
    "ablate": ("data", "encoder", "structural", "sasrec", "model", "loss", "training", "evaluation", "cluster"),
}
"""Sections that a command over an existing run reads."""
_WOULD = {
    **dict.fromkeys(("data", "encoder", "structural"), "prepare --config CONFIG --run {run}"),
    **dict.fromkeys(("sasrec", "model", "loss", "training", "warm_start", "name", "cluster", "tracking"),
                    "train --run {run}"),
    "evaluation": "evaluate --run {run}",
    "retriever": "export --run {run}",
    "tune": "tune --config CONFIG --run {run}",
    "serving": "serve --config FILE",
    **dict.fromkeys(("gate", "release"), "pipeline run CONFIG"),
}  # fmt: skip
"""The command in which a section takes effect."""


def overrides_of(set_: list[str] | None, address: str | None) -> list[str]:
    """Return the overrides without the address of the cluster, which applies to this command only."""
    return cluster.take_address(set_ or [], address)


def config_of(run: Path, command: str, overrides: list[str] | None = None, given: Path | None = None) -> JobConfig:
    """Return the run's configuration, updated by the ``given`` file if it does not change the prepared data.

    Raises:
        ConfigError: the run is not prepared, a key or value is not allowed, or an override cannot take effect in
            ``command``; the message names the command in which it does.
    """
    from pipelines.common.yaml_file import read_yaml
    from pipelines.config.job import load_config

    folder = Run(run)
    path = folder.require(folder.config, "prepare --config CONFIG")
    _require_effect(run, command, overrides or [])
    own = load_config(path, None if given else overrides)
    if given is None:
        return own
    from pipelines.recipes import applied

    other = applied(own, read_yaml(given), *(overrides or []), source=str(given))
    from pipelines.features.preparation import SECTIONS as PREPARED

    if changed := [part for part in PREPARED if getattr(own, part) != getattr(other, part)]:
        raise ConfigError(f"{given}: its section {changed[0]} is not the run's: prepare again, or use another folder")
    return other


def _require_effect(run: Path, command: str, overrides: list[str]) -> None:
    for override in overrides:
        section = override.partition("=")[0].strip().partition(".")[0]
        if section not in _BY_COMMAND[command] and section in _WOULD:
            would = _WOULD[section].format(run=run)
            raise ConfigError(
                f"--set {override} cannot take effect in `setrec {command}`: `setrec {would} --set {override}` would"
            )


@contextmanager
def locked_run(folder: Path, advice: Callable[[Run], str] | str) -> Iterator[Run]:
    """Lock the run in ``folder`` for one job; ``advice`` says after Ctrl-C what is kept and how to continue."""
    run = Run(folder)
    with signals.advised(lambda: advice if isinstance(advice, str) else advice(run)), run.job():
        yield run


def print_json(value: Any) -> None:
    """Print a result."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
