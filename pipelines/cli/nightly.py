"""``setrec pipeline``: run, status, approve, rollback, history."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import place, place_of_state, print_json, state_to_read, store_changes
from pipelines.common import signals

pipeline_app = typer.Typer(
    help="The nightly loop: from new data to a released model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

HELD_BACK = 3
"""Exit code if all steps succeeded but the new model must not be released."""

_HELP = "Folder of the loop, or a URI: run, releases, records, state."
RootOption = Annotated[Path, typer.Option("--root", help=_HELP, parser=str, callback=place, metavar="PATH")]
StateOption = Annotated[Path, typer.Option("--root", help=_HELP, parser=str, callback=place_of_state, metavar="PATH")]
ReadOption = Annotated[Path, typer.Option("--root", help=_HELP, parser=str, callback=state_to_read, metavar="PATH")]


@pipeline_app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML configuration.")],
    root: RootOption = Path("runs/nightly"),
    first: Annotated[str | None, typer.Option("--from", help="Run this step and all after it in any case.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run every step in any case.")] = False,
    cold: Annotated[bool, typer.Option("--cold", help="Train from random weights, not from the last release.")] = False,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; default: this machine.")] = None,
    held_back_code: Annotated[
        int,
        typer.Option(help="Exit code if a model is held back; 0 for callers that retry failed jobs.", min=0, max=255),
    ] = HELD_BACK,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override, e.g. gate.margin=0.1. Repeatable.")] = None,
) -> None:
    """Ingest, tokenise, train, evaluate, gate, export, audit, release: each step only if something changed."""
    from pipelines.nightly import loop
    from pipelines.nightly.steps import HeldBackError

    overrides = [*(set_ or []), *([f"cluster.address={address}"] if address else [])]
    try:
        with signals.advised(
            lambda: "finished steps are kept, training continues from its last checkpoint: run it again"
        ):
            print_json(loop.run(config, root, overrides, first=first, force=force, cold=cold, ended=store_changes))
    except HeldBackError as error:
        print(f"setrec: {error}", file=sys.stderr)
        sys.exit(held_back_code)


@pipeline_app.command()
def status(root: ReadOption = Path("runs/nightly")) -> None:
    """Show the time and duration of each step, the current release, and what is held back and why."""
    from pipelines.nightly import events, release_store
    from pipelines.nightly.loop import NAMES
    from pipelines.nightly.steps import Steps

    known = Steps(root, (), {}, "")
    found = {name: known.done(name) for name in NAMES}
    last = release_store.current(root)
    steps = {name: done and {"finished": done.finished, "seconds": done.seconds} for name, done in found.items()}
    print_json({"steps": steps, "release": None if last is None else last[0], "held_back": events.held_back(root)})


@pipeline_app.command()
def approve(root: StateOption = Path("runs/nightly")) -> None:
    """Approve the model or the data that is held back; `setrec pipeline run` then continues."""
    from pipelines.nightly import events

    print_json(events.approve(root))


@pipeline_app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="A release, as `setrec pipeline history` lists it.")],
    root: RootOption = Path("runs/nightly"),
) -> None:
    """Make an earlier release current again; later ones are withdrawn and never released again."""
    from pipelines.common.locks import exclusive
    from pipelines.nightly import events, release_store
    from pipelines.nightly.loop import LOCK

    with exclusive(root / LOCK):
        found = release_store.rollback(root, name)
        events.note(root, "rolled back", release=name, withdrawn=found["withdrawn"])
    print_json(found)


@pipeline_app.command()
def history(root: ReadOption = Path("runs/nightly")) -> None:
    """Show the kept releases, including the current one, and all events, oldest first."""
    from pipelines.nightly import events, release_store

    last = release_store.current(root)
    print_json(
        {
            "releases": release_store.released(root),
            "current": None if last is None else last[0],
            "events": events.history(root),
        }
    )
