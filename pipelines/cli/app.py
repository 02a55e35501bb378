"""``setrec``: check, prepare, train, evaluate, tune, ablate, benchmark, export, serve, token, recommend, demo, graph,
pipeline."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import nullcontext
from itertools import takewhile
from typing import Annotated

import typer

from pipelines.cli import data, demo, evaluation, serving, training
from pipelines.cli.bundle import bundle_app, experiment
from pipelines.cli.graph import graph_app
from pipelines.cli.nightly import pipeline_app
from pipelines.common import cluster, signals
from pipelines.common.failures import as_given, missing_extra
from pipelines.common.progress import alive
from setrec import __version__
from setrec.errors import SetRecError

# What a command needs is imported when it runs: torch, transformers and Ray take seconds, help should not.

app = typer.Typer(
    help="Generative recommendation with order-agnostic sets of continuous tokens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for group in (data, training, evaluation, serving, demo):
    app.add_typer(group.commands)
app.add_typer(graph_app, name="graph")
app.add_typer(pipeline_app, name="pipeline")
app.add_typer(bundle_app, name="bundle")
app.command()(experiment)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"setrec {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; an error that the user can fix is one line and exit code 2."""
    # Read when torch is first imported. Threads that wait by spinning cost ten times the work if cores are shared with
    # other jobs: training on Cora then took 530 s instead of 25.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    handled = threading.current_thread() is threading.main_thread()
    try:
        if handled:
            signals.install()
        code = _run()
    except BaseException as error:
        if signals.received(error) is not None:
            signals.end()
        raise
    finally:
        if handled:
            signals.uninstall()
    if code:
        sys.exit(code)


def _run() -> int | None:
    try:
        with nullcontext() if sys.argv[1:2] == ["serve"] else alive(_command()):
            code: int | None = app(standalone_mode=False)
            return code
    except Exception as error:
        return _report_error(error)
    finally:
        cluster.join(None)


def _command() -> str:
    """Return the command without its options."""
    return " ".join(["setrec", *takewhile(lambda word: not word.startswith("-"), sys.argv[1:3])])


def _report_error(error: Exception) -> int:
    """Print the one line of an error and return its exit code; an error that the user cannot fix is raised."""
    if isinstance(error, SetRecError):
        print(as_given(f"setrec: {error}"), file=sys.stderr)
        return 2
    if isinstance(error, ModuleNotFoundError) and (advice := missing_extra(error, "".join(sys.argv[1:2]))):
        print(f"setrec: {advice}", file=sys.stderr)
        return 2
    if isinstance(error, BrokenPipeError):
        # The reader of standard output has closed it; Python would report it again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, OSError):
        print(f"setrec: {_of_the_system(error)}", file=sys.stderr)
        return 2
    code = getattr(error, "exit_code", None)
    if code is None:
        raise error
    show = getattr(error, "show", None)
    if show is not None:
        show()
    return int(code)


def _of_the_system(error: OSError) -> str:
    """Return an error of the file system with its path. Copies of many files raise a list of errors."""
    if error.args and isinstance(error.args[0], list) and error.args[0]:
        _, target, reason = error.args[0][0]
        return f"{target}: {reason}"
    place = error.filename2 or error.filename
    reason = error.strerror or (str(error).splitlines() or [type(error).__name__])[0]
    return f"{place}: {reason}" if place is not None else reason


if __name__ == "__main__":
    main()
