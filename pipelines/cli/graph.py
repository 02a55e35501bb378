"""``setrec graph``: tokenize, train, evaluate, ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from pipelines.cli.options import place, to_read
from pipelines.common.progress import results
from setrec.errors import ConfigError

graph_app = typer.Typer(
    help="Node tokens, and a language model that reads graphs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

DataOption = Annotated[Path, typer.Option("--data", help="Folder with nodes/edges, entities/triples, or questions.")]
TaskOption = Annotated[
    str,
    typer.Option(
        "--task",
        help="structure, classification, edge_classification, links, completion, connectivity, cycle, shortest_path or "
        "stance.",
    ),
]
RunOption = Annotated[
    Path, typer.Option("--run", help="Folder to write to, or a URI.", parser=str, callback=place, metavar="PATH")
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML with overrides of the task's defaults.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override, e.g. learning.epochs=5. Repeatable.")]


@graph_app.command()
def tokenize(data: DataOption, run: RunOption, config: ConfigOption = None, set_: SetOption = None) -> None:
    """Choose anchors, compute distances, write the node tokens and a report with their picture."""
    from pipelines.graph.config import graph_config

    settings = graph_config(None, config, set_)
    from pipelines.graph import jobs

    _print(jobs.tokenize(data, run, settings))


@graph_app.command()
def train(
    data: DataOption, task: TaskOption, run: RunOption, config: ConfigOption = None, set_: SetOption = None
) -> None:
    """Train the graph language model on a task; RUN/graph answers questions and can be put into a bundle."""
    from pipelines.graph.config import graph_config

    settings = graph_config(task, config, set_)
    from pipelines.graph import jobs

    _print(jobs.train(data, run, settings))


@graph_app.command()
def evaluate(
    task: TaskOption,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="JSON file for the rows; a report is written next to it.")],
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON instead of a table.")] = False,
) -> None:
    """Train node tokens, the controls and the opponents with several seeds; write metrics with intervals."""
    from pipelines.graph.config import graph_config

    settings = graph_config(task, config, set_)
    from pipelines.graph import jobs

    rows = jobs.evaluate(data, out, settings)
    if as_json:
        _print(rows)
        return
    table = Table(title=f"{task}, test part")
    for name in ("system", "metric", "value", "95% interval", "seeds"):
        table.add_column(name, justify="left" if name in ("system", "metric") else "right")
    for row in rows:
        low, high = f"{row['low']:.4f}", f"{row['high']:.4f}"
        table.add_row(row["system"], row["metric"], f"{row['value']:.4f}", f"{low} to {high}", str(row["seeds"]))
    results().print(table)


@graph_app.command()
def ask(
    question: Annotated[str, typer.Argument(help="Question; nodes by id, title, words of their text, or as [[id]].")],
    run: Annotated[
        Path, typer.Option("--run", help="Folder of the run, or a URI.", parser=str, callback=to_read, metavar="PATH")
    ],
    k: Annotated[int, typer.Option("-k", help="Number of answers.", min=1)] = 5,
    mode: Annotated[str, typer.Option(help="grounded or text.")] = "grounded",
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer with all its details as JSON.")] = False,
) -> None:
    """Ask a trained model, e.g. setrec graph ask "How far is 35 from 1033?" --run runs/g"""
    from pipelines.graph import jobs

    if mode not in ("grounded", "text"):
        raise ConfigError(f"--mode {mode}: grounded or text")
    found = jobs.answer(run, question, k, mode)
    if as_json:
        _print(found)
        return
    print(found["sentence"])
    if found["edges"]:
        print("rests on " + ", ".join(" - ".join(edge) for edge in found["edges"]))


def _print(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
