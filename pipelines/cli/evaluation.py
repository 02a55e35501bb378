"""``setrec evaluate`` and ``setrec benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import (
    AddressOption,
    JsonOption,
    RunOption,
    SetOption,
    config_of,
    locked_run,
    overrides_of,
    place,
    print_json,
)
from pipelines.common.progress import results

commands = typer.Typer()


@commands.command()
def evaluate(
    run: RunOption,
    json_only: Annotated[bool, typer.Option("--json", help="Print the rows as JSON instead of a table.")] = False,
    actors: Annotated[int | None, typer.Option(help="Processes that rank batches of users.", min=1)] = None,
    address: AddressOption = None,
    set_: SetOption = None,
) -> None:
    """Rank the whole catalogue for every test user; write metrics.json and report.html."""
    overrides = overrides_of(set_, address)
    overrides += [f"evaluation.actors={actors}"] if actors else []
    with locked_run(run, "the model is kept; run the same command again") as folder:
        settings = config_of(run, "evaluate", overrides)
        from pipelines.jobs import stages
        from pipelines.reports.terminal import ranking_table

        rows = stages.assess(folder, settings)
    if json_only:
        print_json(rows)
    else:
        results().print(ranking_table(rows))


@commands.command()
def benchmark(
    data: Annotated[Path, typer.Option(help="Folder with interactions.parquet and items.parquet.")],
    protocol: Annotated[str, typer.Option(help="setrec (global time, warm and cold) or leave-one-out.")],
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", help="Default: runs/benchmark/DATA-PROTOCOL.", parser=str, callback=place, metavar="PATH"
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(help="CPU time per fit; as much again for all tries.", min=0.01)] = 15.0,
    tries: Annotated[int, typer.Option(help="Settings of each system tried on validation.", min=1)] = 4,
    seeds: Annotated[int, typer.Option(help="Fits per system in the table.", min=1)] = 3,
    opponent_seeds: Annotated[
        int | None, typer.Option(help="The same as --seeds, for the other systems.", min=1)
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Name of a system. Repeatable; default: all.")] = None,
    ablation: Annotated[bool, typer.Option(help="Also fit every step between the published design and ours.")] = False,
    gpu: Annotated[float, typer.Option(help="Share of a GPU per fit, in addition to its core.", min=0, max=1)] = 0.0,
    encoder: Annotated[str | None, typer.Option(help="Sentence encoder; default: the packaged one.")] = None,
    address: AddressOption = None,
    json_only: JsonOption = False,
) -> None:
    """Compare SETRec with tuned opponents under a published protocol; an interrupted benchmark is continued."""
    from pipelines.benchmark.job import benchmark as compare
    from pipelines.benchmark.job import protocol_of
    from pipelines.benchmark.report import terminal_tables
    from pipelines.benchmark.run import BenchmarkSettings

    known, systems = protocol_of(protocol), None if only is None else tuple(only)
    settings = BenchmarkSettings(
        minutes=minutes, tries=tries, seeds=seeds, opponent_seeds=opponent_seeds, systems=systems, ablation=ablation,
        gpu=gpu,
    )  # fmt: skip
    root = run or Path("runs/benchmark") / f"{data.resolve().name}-{known}"
    with locked_run(root, "finished fits are kept; the same command continues from them") as folder:
        found = compare(data.resolve(), known, folder, settings, encoder=encoder, address=address)
    if json_only:
        print_json(found)
    else:
        results().print(*terminal_tables(found))
