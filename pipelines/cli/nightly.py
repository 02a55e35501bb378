"""``setrec pipeline``: run, status."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

pipeline_app = typer.Typer(
    help="The nightly loop: from new data to a released model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

HELD_BACK = 3
"""Exit code where everything went well but the new model is not to be released."""

RootOption = Annotated[Path, typer.Option("--root", help="Folder of the loop: run, releases, records, state.")]


@pipeline_app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML configuration.")],
    root: RootOption = Path("runs/nightly"),
    first: Annotated[str | None, typer.Option("--from", help="Run this step and all after it in any case.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run every step in any case.")] = False,
    cold: Annotated[bool, typer.Option("--cold", help="Train from nothing, not from the last release.")] = False,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; default: this machine alone.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override, e.g. gate.margin=0.1. Repeatable.")] = None,
) -> None:
    """Ingest, tokenise, train, evaluate, gate, export, audit, release: each only where something changed."""
    from pipelines.nightly import loop
    from pipelines.nightly.steps import HeldBackError

    overrides = [*(set_ or []), *([f"cluster.address={address}"] if address else [])]
    try:
        print(json.dumps(loop.run(config, root, overrides, first=first, force=force, cold=cold), indent=2))
    except HeldBackError as error:
        print(f"setrec: {error}", file=sys.stderr)
        sys.exit(HELD_BACK)


@pipeline_app.command()
def status(root: RootOption = Path("runs/nightly")) -> None:
    """When each step last ended, how long it took, and which release is current."""
    from pipelines.nightly import release_store
    from pipelines.nightly.loop import NAMES
    from pipelines.nightly.steps import Steps

    known = Steps(root, (), {}, "")
    found = {name: known.done(name) for name in NAMES}
    last = release_store.current(root)
    steps = {name: done and {"finished": done.finished, "seconds": done.seconds} for name, done in found.items()}
    print(json.dumps({"steps": steps, "release": None if last is None else last[0]}, indent=2))
