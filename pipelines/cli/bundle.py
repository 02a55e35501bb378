"""``setrec bundle``: inspect, compare and sign bundles. ``setrec experiment``: results of an experiment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import to_read

bundle_app = typer.Typer(
    help="Inspect, compare, sign and verify bundles.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)
BundleArgument = Annotated[
    Path, typer.Argument(help="Folder of a bundle, or a URI.", parser=str, callback=to_read, metavar="BUNDLE")
]


@bundle_app.command()
def inspect(bundle: BundleArgument) -> None:
    """Check every file of a bundle and print its description, as JSON."""
    from serving.bundle import inspection

    typer.echo(json.dumps(inspection.inspect(bundle), indent=2))


@bundle_app.command()
def diff(before: BundleArgument, after: BundleArgument) -> None:
    """Print what changes when one bundle replaces another, as JSON."""
    from serving.bundle import inspection

    typer.echo(json.dumps(inspection.difference(before, after), indent=2))


@bundle_app.command()
def key(file: Annotated[Path, typer.Argument(help="File of the private key; FILE.pub is the public one.")]) -> None:
    """Make a pair of keys for signing bundles."""
    from serving.bundle.signature import make_keys

    typer.echo(json.dumps({"private": str(file), "public": str(make_keys(file))}, indent=2))


@bundle_app.command()
def sign(
    bundle: BundleArgument, key: Annotated[Path, typer.Option(help="Private key, made by `setrec bundle key`.")]
) -> None:
    """Check every file of a bundle and sign its manifest."""
    from serving.bundle import signature

    signature.sign(bundle, key)
    typer.echo(json.dumps({"signed": str(bundle)}, indent=2))


@bundle_app.command()
def verify(
    bundle: BundleArgument,
    key: Annotated[Path | None, typer.Option(help="Public key that the signature must match.")] = None,
) -> None:
    """Check every file of a bundle, and with a key its signature."""
    from serving.bundle.signature import verify_signed

    verify_signed(bundle, key)
    typer.echo(json.dumps({"verified": str(bundle), "signed": key is not None}, indent=2))


def experiment(
    exposures: Annotated[Path, typer.Argument(help="Folder of the exposure log.")],
    name: Annotated[str, typer.Argument(help="Name of the experiment.")],
) -> None:
    """Print click rates by arm with intervals and off-policy estimates from an exposure log, as JSON."""
    from serving.runtime.experiments.click_report import report

    typer.echo(json.dumps(report(exposures, name), indent=2))
