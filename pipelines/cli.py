"""``setrec``: prepare, train, evaluate, tune, ablate, benchmark, export, serve, token, recommend, demo, graph."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from pipelines.bundle_cli import bundle_app, experiment
from pipelines.graph_cli import graph_app
from pipelines.pipeline_cli import pipeline_app
from pipelines.runs import Run
from setrec.errors import ConfigError, SetRecError

if TYPE_CHECKING:
    from pipelines.config import JobConfig

# What a command needs is imported when it runs: torch, transformers and Ray take seconds, help should not.

app = typer.Typer(
    help="Generative recommendation with order-agnostic sets of continuous tokens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(bundle_app, name="bundle")
app.add_typer(graph_app, name="graph")
app.command()(experiment)
app.add_typer(pipeline_app, name="pipeline")

RunOption = Annotated[Path, typer.Option("--run", help="Folder of the run.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override, e.g. training.epochs=20. Repeatable.")]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="Ray cluster to join; default: this machine alone.")
]
BundleOption = Annotated[Path, typer.Option("--bundle", help="Bundle directory, as `setrec export` writes it.")]


@app.command()
def prepare(
    config: Annotated[Path, typer.Option("--config", help="YAML configuration.")],
    run: RunOption,
    address: AddressOption = None,
    set_: SetOption = None,
) -> None:
    """Read, check and split interactions and items; encode item texts."""
    from pipelines import jobs
    from pipelines.config import load_config

    summary = jobs.prepare(Run(run), load_config(config, _joined(set_, address)))
    _print_json({key: summary[key] for key in ("users", "items", "interactions") if key in summary})


@app.command()
def train(
    run: RunOption,
    config: Annotated[
        Path | None, typer.Option("--config", help="Overrides of the run's own configuration, on the same data: YAML.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Training workers.", min=1)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    address: AddressOption = None,
    warm: Annotated[Path | None, typer.Option(help="Run or bundle whose weights training begins with.")] = None,
    set_: SetOption = None,
) -> None:
    """Train the recommender with Ray Train."""
    from pipelines import jobs

    overrides = _joined(set_, address)
    overrides += [f"cluster.workers={workers}"] if workers else []
    overrides += [f"warm_start={json.dumps(str(warm))}"] if warm else []
    _print_json(jobs.fit(Run(run), _config_of(run, overrides, config), resume=resume))


@app.command()
def evaluate(
    run: RunOption,
    json_only: Annotated[bool, typer.Option("--json", help="Print the rows as JSON, no table.")] = False,
    actors: Annotated[int | None, typer.Option(help="Processes that rank batches of users.", min=1)] = None,
    address: AddressOption = None,
    set_: SetOption = None,
) -> None:
    """Rank the whole catalogue for every test user; write metrics.json and report.html."""
    from pipelines import jobs
    from pipelines.tables import ranking_table

    overrides = _joined(set_, address)
    overrides += [f"evaluation.actors={actors}"] if actors else []
    rows = jobs.assess(Run(run), _config_of(run, overrides))
    if json_only:
        _print_json(rows)
    else:
        Console().print(ranking_table(rows))


@app.command()
def tune(
    config: Annotated[Path, typer.Option("--config", help="YAML configuration with a section `tune`.")],
    run: RunOption,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an earlier search.")] = False,
    address: AddressOption = None,
    json_only: Annotated[bool, typer.Option("--json", help="Print JSON, no table.")] = False,
    set_: SetOption = None,
) -> None:
    """Search for settings on validation NDCG@10; write trials.json and best.yaml."""
    from pipelines import jobs
    from pipelines.config import load_config
    from pipelines.tables import trial_table

    overrides = [*(set_ or []), *([f"cluster.address={address}"] if address else [])]
    trials = jobs.search(Run(run), load_config(config, overrides), resume=resume)
    if json_only:
        _print_json([trial.record() for trial in trials])
    else:
        Console().print(trial_table(trials))


@app.command()
def ablate(
    run: RunOption,
    seeds: Annotated[int, typer.Option(help="Trainings per set of slots.", min=1)] = 1,
    json_only: Annotated[bool, typer.Option("--json", help="Print JSON, no tables.")] = False,
    address: AddressOption = None,
    set_: SetOption = None,
) -> None:
    """Train once per set of slots, what semantic and structural slots add, in RUN/ablation; writes ablation.json."""
    from pipelines import jobs
    from pipelines.tables import difference_table, ranking_table

    found = jobs.ablate(Run(run), _config_of(run, _joined(set_, address)), seeds)
    if json_only:
        _print_json(found)
    else:
        Console().print(ranking_table(found["rows"]), difference_table(found["differences"]))


@app.command()
def export(
    run: RunOption,
    out: Annotated[Path | None, typer.Option(help="Bundle directory; default: RUN/bundle.")] = None,
    graph: Annotated[Path | None, typer.Option(help="Folder of a graph run: its node tokens are served too.")] = None,
    encoder: Annotated[bool, typer.Option(help="Take the sentence encoder along, so that items can be added.")] = True,
) -> None:
    """Write the bundle that serving needs."""
    from pipelines.export import export as export_bundle

    _print_json({"bundle": str(export_bundle(Run(run), _config_of(run), out, graph, encoder=encoder))})


@app.command()
def serve(
    bundle: Annotated[Path | None, typer.Option(help="Bundle directory, as `setrec export` writes it.")] = None,
    config: Annotated[Path | None, typer.Option(help="Ray Serve configuration file; options here win.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: 8000.")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Default: 1.")] = None,
    store: Annotated[str | None, typer.Option(help="Live events and items: an SQLite file or a redis:// URL.")] = None,
    releases: Annotated[Path | None, typer.Option(help="Folder of bundles that may be released while serving.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="Token file, as `setrec token` writes it.")] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Answer anyone; on a loopback address only.")] = False,
    log: Annotated[str | None, typer.Option(help="errors (default), or requests: a JSON line for each.")] = None,
) -> None:
    """Serve recommendations over HTTP until interrupted; documentation at /docs."""
    from pipelines.serve import serve_until_interrupted
    from pipelines.serve_file import read_serve_file, settings_of

    given = {"bundle": bundle, "host": host, "port": port, "replicas": replicas, "store": store, "log": log}
    given |= {"releases": releases, "tokens": tokens, "auth": "off" if no_auth else None}
    changes = {key: value for key, value in given.items() if value is not None}
    if config is not None:
        serve_until_interrupted(*read_serve_file(config, changes))
    else:
        serve_until_interrupted(*settings_of(changes, "options"))


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="What the token is called in logs and limits.")],
    file: Annotated[Path, typer.Option("--file", help="Token file; made where it is missing.")],
    scope: Annotated[list[str], typer.Option("--scope", help="read, write, admin or metrics. Repeatable.")],
) -> None:
    """Make a token and print it; the file keeps only its hash."""
    from serving.api.access.tokens import issue

    print(issue(file, name, scope))


@app.command()
def recommend(
    bundle: BundleOption,
    history: Annotated[str | None, typer.Option(help="Item ids, oldest first, separated by commas.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="A user the bundle knows.")] = None,
    batch: Annotated[str | None, typer.Option("--batch", help="Parquet table of users: file, folder or URI.")] = None,
    out: Annotated[str | None, typer.Option("--out", help="Folder or URI for the answers to --batch.")] = None,
    k: Annotated[int, typer.Option("-k", help="How many items.", min=1)] = 10,
    keep_history: Annotated[
        bool, typer.Option("--keep-history", help="Items of the history may be recommended.")
    ] = False,
    actors: Annotated[int | None, typer.Option(help="Processes for --batch; default: one a core.", min=1)] = None,
    address: AddressOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Recommend items without a server: to one user, or with --batch to all users of a table."""
    if [history, user, batch].count(None) != 2:
        raise ConfigError("give one of --history, --user and --batch")
    if (batch is None) != (out is None):
        raise ConfigError("--batch and --out go together")
    if batch is not None and out is not None:
        from pipelines.batch_recommend import BatchRequest, recommend_batch

        _print_json(recommend_batch(BatchRequest(bundle, batch, out, k, not keep_history, actors, address)))
        return
    from pipelines.serve import recommend_once
    from pipelines.tables import answer_table
    from serving.engine.engine import Request

    ids = None if history is None else tuple(part.strip() for part in history.split(",") if part.strip())
    answer = recommend_once(bundle, Request(ids, user, k, not keep_history))
    if as_json:
        _print_json(answer)
    else:
        Console().print(answer_table(answer))


@app.command()
def benchmark(
    data: Annotated[Path, typer.Option(help="Folder with interactions.parquet and items.parquet.")],
    protocol: Annotated[str, typer.Option(help="setrec (global time, warm and cold) or leave-one-out.")],
    run: Annotated[Path | None, typer.Option("--run", help="Default: runs/benchmark/DATA-PROTOCOL.")] = None,
    minutes: Annotated[float, typer.Option(help="CPU time per fit; as much again for all tries.", min=0.01)] = 15.0,
    tries: Annotated[int, typer.Option(help="Settings of each system tried on validation.", min=1)] = 4,
    seeds: Annotated[int, typer.Option(help="Fits per system that stand in the table.", min=1)] = 3,
    opponent_seeds: Annotated[int | None, typer.Option(help="As --seeds, of systems but ours.", min=1)] = None,
    only: Annotated[list[str] | None, typer.Option(help="A system by its name. Repeatable; default: all.")] = None,
    ablation: Annotated[bool, typer.Option(help="Also every step between the published design and ours.")] = False,
    gpu: Annotated[float, typer.Option(help="Share of a GPU per fit, beside its core.", min=0, max=1)] = 0.0,
    encoder: Annotated[str | None, typer.Option(help="Sentence encoder; default: the packaged one.")] = None,
    address: AddressOption = None,
    json_only: Annotated[bool, typer.Option("--json", help="Print JSON, no table.")] = False,
) -> None:
    """Compare SETRec with tuned opponents under a published protocol; goes on where it was broken off."""
    from pipelines.benchmark.job import benchmark as compare
    from pipelines.benchmark.job import protocol_of
    from pipelines.benchmark.report import terminal_tables
    from pipelines.benchmark.run import BenchmarkSettings

    known, systems = protocol_of(protocol), None if only is None else tuple(only)
    settings = BenchmarkSettings(
        minutes=minutes, tries=tries, seeds=seeds, opponent_seeds=opponent_seeds, systems=systems, ablation=ablation,
        gpu=gpu,
    )  # fmt: skip
    place = Run(run or Path("runs/benchmark") / f"{data.resolve().name}-{known}")
    found = compare(data.resolve(), known, place, settings, encoder=encoder, address=address)
    if json_only:
        _print_json(found)
    else:
        Console().print(*terminal_tables(found))


@app.command()
def demo(
    run: RunOption = Path("runs/demo"),
    port: Annotated[int, typer.Option(help="Port of the endpoint.", min=1, max=65535)] = 8000,
    set_: SetOption = None,
) -> None:
    """The whole way on MovieLens-100K: raw files to a trained model, its ranking table and a served answer."""
    from pipelines.demo import run_demo

    run_demo(Run(run), port, set_ or [])


def _config_of(run: Path, overrides: list[str] | None = None, given: Path | None = None) -> JobConfig:
    """The run's configuration, with those of the ``given`` file in it if they leave the prepared data as it is."""
    from pipelines.config import load_config, read_yaml

    folder = Run(run)
    own = load_config(folder.require(folder.config, "prepare --config CONFIG"), None if given else overrides)
    if given is None:
        return own
    from pipelines.jobs import PREPARED
    from pipelines.recipes import applied

    other = applied(own, read_yaml(given), *(overrides or []), source=str(given))
    if changed := [part for part in PREPARED if getattr(own, part) != getattr(other, part)]:
        raise ConfigError(f"{given}: its section {changed[0]} is not the run's: prepare anew, or take another folder")
    return other


def _joined(set_: list[str] | None, address: str | None) -> list[str]:
    """The overrides, with the cluster to join among them."""
    return [*(set_ or []), *([f"cluster.address={address}"] if address else [])]


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def main() -> None:
    """Run the command line; an error that is the user's to mend is one line and exit code 2."""
    # Read when torch is first imported. Threads that wait by spinning cost ten times the work where cores are shared
    # with anything else: training on Cora beside other jobs took 530 s instead of 25.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(standalone_mode=False)
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except SetRecError as error:
        print(f"setrec: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        show = getattr(error, "show", None)
        if show is not None:
            show()
        sys.exit(code)


if __name__ == "__main__":
    main()
