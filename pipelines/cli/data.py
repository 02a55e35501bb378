"""``setrec check`` and ``setrec prepare``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import (
    AddressOption,
    ConfigOption,
    ForceOption,
    JsonOption,
    RunOption,
    SetOption,
    locked_run,
    overrides_of,
    print_json,
)

commands = typer.Typer()


@commands.command()
def check(
    config: Annotated[Path, typer.Argument(help="YAML configuration.")],
    set_: SetOption = None,
    json_only: JsonOption = False,
) -> None:
    """Check a configuration, and profile its data: rows read and rejected, splits, and what later jobs will refuse."""
    from pipelines.jobs.check import check as checked
    from pipelines.reports.profile import profile_lines

    found = checked(config, overrides_of(set_, None))
    if json_only:
        print_json(found)
    else:
        print("\n".join(profile_lines(found)))
    if found["errors"]:
        sys.exit(2)


@commands.command()
def prepare(
    config: ConfigOption,
    run: RunOption,
    force: ForceOption = False,
    address: AddressOption = None,
    set_: SetOption = None,
) -> None:
    """Read, check and split interactions and items; encode item texts."""
    from pipelines.config.job import load_config

    settings = load_config(config, overrides_of(set_, address), agree=True)
    from pipelines.features import preparation

    with locked_run(run, "earlier files are kept if no new data had been accepted; run it again") as folder:
        preparation.require_force(folder, force)
        summary = preparation.prepare(folder, settings)
    print_json(preparation.short_summary(summary))
