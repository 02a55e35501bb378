"""``setrec demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import RunOption, SetOption, locked_run, overrides_of

commands = typer.Typer()


@commands.command()
def demo(
    run: RunOption = Path("runs/demo"),
    port: Annotated[int, typer.Option(help="Port of the endpoint.", min=1, max=65535)] = 8000,
    set_: SetOption = None,
) -> None:
    """Run all steps on MovieLens-100K: raw files to a trained model, its ranking table and a served answer."""
    from pipelines.jobs.demo import run_demo

    with locked_run(run, "the same command starts the demonstration again") as folder:
        run_demo(folder, port, overrides_of(set_, None))
