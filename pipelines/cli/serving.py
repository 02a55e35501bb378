"""``setrec export``, ``setrec serve``, ``setrec token`` and ``setrec recommend``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.cli.options import (
    AddressOption,
    RunOption,
    SetOption,
    config_of,
    locked_run,
    overrides_of,
    place,
    print_json,
    to_read,
)
from pipelines.common.progress import results
from setrec.collection import without_collection
from setrec.errors import ConfigError

commands = typer.Typer()

DEFAULT_K = 10
_BUNDLE = "Bundle directory or URI, as `setrec export` writes it."
BundleOption = Annotated[Path, typer.Option("--bundle", help=_BUNDLE, parser=str, callback=to_read, metavar="PATH")]


@commands.command()
def export(
    run: RunOption,
    out: Annotated[
        Path | None,
        typer.Option(help="Bundle directory; default: RUN/bundle.", parser=str, callback=place, metavar="PATH"),
    ] = None,
    graph: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a graph run: its node tokens are served too.", parser=str, callback=to_read, metavar="PATH"
        ),
    ] = None,
    encoder: Annotated[bool, typer.Option(help="Include the sentence encoder, so that items can be added.")] = True,
    set_: SetOption = None,
) -> None:
    """Write the bundle that serving needs."""
    with locked_run(run, "an earlier bundle is unchanged; run the same command again") as folder:
        settings = config_of(run, "export", overrides_of(set_, None))
        from pipelines.jobs.export import export as export_bundle

        bundle = export_bundle(folder, settings, out, graph, encoder=encoder)
    print_json({"bundle": str(bundle)})


@commands.command()
def serve(
    bundle: Annotated[str | None, typer.Option(help=_BUNDLE, metavar="PATH")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Ray Serve configuration file; options here take precedence.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: 8000.")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Default: 1.")] = None,
    store: Annotated[str | None, typer.Option(help="Live events and items: an SQLite file or a redis:// URL.")] = None,
    releases: Annotated[Path | None, typer.Option(help="Folder of bundles that may be released while serving.")] = None,
    follow: Annotated[str | None, typer.Option(help="URI of releases: the current one is served.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="Token file, as `setrec token` writes it.")] = None,
    verify_key: Annotated[
        Path | None, typer.Option(help="Public key: bundles without a valid signature are refused.")
    ] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="No authentication; on a loopback address only.")] = False,
    log: Annotated[str | None, typer.Option(help="errors (default), or requests: a JSON line for each.")] = None,
) -> None:
    """Serve recommendations over HTTP until interrupted; documentation at /docs."""
    from pipelines.jobs.serve_file import read_serve_file, settings_of

    given: dict[str, object] = {"bundle": bundle, "host": host, "port": port, "replicas": replicas, "store": store}
    given |= {"log": log, "releases": releases, "follow": follow, "tokens": tokens, "verify_key": verify_key}
    given["auth"] = "off" if no_auth else None
    changes = {key: value for key, value in given.items() if value is not None}
    chosen = settings_of(changes, "options") if config is None else read_serve_file(config, changes)
    with without_collection():
        from pipelines.jobs.serve import serve_until_interrupted

    serve_until_interrupted(*chosen)


@commands.command()
def token(
    name: Annotated[str, typer.Argument(help="Name of the token in logs and limits.")],
    file: Annotated[Path, typer.Option("--file", help="Token file; created if it is missing.")],
    scope: Annotated[list[str], typer.Option("--scope", help="read, write, admin or metrics. Repeatable.")],
) -> None:
    """Make a token and print it; the file keeps only its hash."""
    from serving.api.access.tokens import issue

    print(issue(file, name, scope))


@commands.command()
def recommend(
    bundle: BundleOption,
    history: Annotated[str | None, typer.Option(help="Item ids, oldest first, separated by commas.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="A user of the bundle.")] = None,
    batch: Annotated[str | None, typer.Option("--batch", help="Parquet table of users: file, folder or URI.")] = None,
    out: Annotated[str | None, typer.Option("--out", help="Folder or URI for the answers to --batch.")] = None,
    k: Annotated[
        int | None, typer.Option("-k", help="Number of items; default: 10, or all if there are fewer.", min=1)
    ] = None,
    keep_history: Annotated[
        bool, typer.Option("--keep-history", help="Items of the history may be recommended.")
    ] = False,
    actors: Annotated[int | None, typer.Option(help="Processes for --batch; default: one a core.", min=1)] = None,
    unknown_items: Annotated[
        Literal["refuse", "skip"], typer.Option(help="Items of a history that the bundle does not contain.")
    ] = "refuse",
    unknown_users: Annotated[
        Literal["popular", "reject"] | None,
        typer.Option(help="With --batch: users without a known history; default: popular."),
    ] = None,
    filter_: Annotated[
        str | None, typer.Option("--filter", help='JSON as for the endpoint: {"attribute": .., "equals": ..}')
    ] = None,
    rejected_share: Annotated[
        float | None,
        typer.Option(help="With --batch: share of the rows that may have no answer; default: 0.01.", min=0, max=1),
    ] = None,
    address: AddressOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Recommend items without a server: to one user, or with --batch to all users of a table."""
    if [history, user, batch].count(None) != 2:
        raise ConfigError("give one of --history, --user and --batch")
    if (batch is None) != (out is None):
        raise ConfigError("--batch and --out go together")
    of_batch = {"--actors": actors, "--unknown-users": unknown_users, "--rejected-share": rejected_share,
                "--address": address}  # fmt: skip
    if batch is None and (given := [name for name, value in of_batch.items() if value is not None]):
        raise ConfigError(f"{given[0]} has an effect with --batch only")
    if batch is not None and out is not None:
        from pipelines.jobs.batch_recommend import BatchRequest, recommend_batch
        from pipelines.jobs.recommend import AnswerOptions

        options = AnswerOptions(k or DEFAULT_K, not keep_history, unknown_items, unknown_users != "reject", filter_)
        share = {} if rejected_share is None else {"rejected_share": rejected_share}
        print_json(recommend_batch(BatchRequest(bundle, batch, out, options, actors, address, **share)))
        return
    ids = None if history is None else tuple(part.strip() for part in history.split(",") if part.strip())
    with without_collection():
        from pipelines.jobs.recommend import AnswerOptions, recommend_once
        from pipelines.reports.terminal import answer_table
        from serving.engine.requests import Request

        chosen = AnswerOptions(filter=filter_).parsed_filter()
        request = Request(ids, user, k or DEFAULT_K, not keep_history, filter=chosen, unknown_items=unknown_items)
        answer = recommend_once(bundle, request, clip=k is None)
    if as_json:
        print_json(answer)
    else:
        results().print(answer_table(answer))
