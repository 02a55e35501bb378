"""``setrec train``, ``setrec tune``, ``setrec train-reranker`` and ``setrec ablate``."""

from __future__ import annotations

import json
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
    config_of,
    locked_run,
    overrides_of,
    print_json,
    to_read,
)
from pipelines.common.progress import results
from pipelines.common.run_directory import Run

commands = typer.Typer()


@commands.command()
def train(
    run: RunOption,
    config: Annotated[
        Path | None, typer.Option("--config", help="Overrides of the run's own configuration, on the same data: YAML.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Training workers.", min=1)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = False,
    address: AddressOption = None,
    warm: Annotated[
        Path | None,
        typer.Option(
            help="Run or bundle whose weights training starts from.", parser=str, callback=to_read, metavar="PATH"
        ),
    ] = None,
    set_: SetOption = None,
) -> None:
    """Train the recommender with Ray Train."""
    overrides = overrides_of(set_, address)
    overrides += [f"cluster.workers={workers}"] if workers else []
    overrides += [f"warm_start={json.dumps(str(warm))}"] if warm else []
    with locked_run(run, _how_to_go_on) as folder:
        settings = config_of(run, "train", overrides, config)
        from pipelines.jobs import stages

        done = stages.fit(folder, settings, resume=resume)
    print_json(done)


def _how_to_go_on(run: Run) -> str:
    from pipelines.config.job import load_config
    from pipelines.training.train import has_checkpoint

    if has_checkpoint(run, load_config(run.config)):
        return f"the last checkpoint is kept: `setrec train --run {run.root} --resume` continues from it"
    return "no checkpoint was written yet; run the same command again"


@commands.command()
def tune(
    config: ConfigOption,
    run: RunOption,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an earlier search.")] = False,
    force: ForceOption = False,
    address: AddressOption = None,
    json_only: JsonOption = False,
    set_: SetOption = None,
) -> None:
    """Search for settings on validation NDCG@10; write trials.json and best.yaml."""
    from pipelines.cli.trial_table import trial_table
    from pipelines.config.job import load_config

    settings = load_config(config, overrides_of(set_, address), agree=True)
    with locked_run(run, "evaluated epochs are kept: the same command with --resume continues from them") as folder:
        from pipelines.jobs import stages

        trials = stages.search(folder, settings, resume=resume, force=force)
    if json_only:
        print_json([trial.record() for trial in trials])
    else:
        results().print(trial_table(trials))


@commands.command("train-reranker")
def train_reranker(run: RunOption, set_: SetOption = None) -> None:
    """Learn the order of the best candidates on validation, after evaluate; export includes it if it gains."""
    with locked_run(run, "nothing is changed; run the same command again") as folder:
        settings = config_of(run, "train-reranker", overrides_of(set_, None))
        from pipelines.evaluation import reranker

        with folder.timed("reranker"):
            found = reranker.train_reranker(folder, settings)
    print_json(found)


@commands.command()
def ablate(
    run: RunOption,
    seeds: Annotated[int, typer.Option(help="Trainings per set of slots.", min=1)] = 1,
    json_only: JsonOption = False,
    address: AddressOption = None,
    set_: SetOption = None,
) -> None:
    """Train once per set of slots in RUN/ablation, to measure the gain of each kind; write ablation.json."""
    from pipelines.reports.terminal import difference_table, ranking_table

    overrides = overrides_of(set_, address)
    with locked_run(run, "the run itself is unchanged; the same command starts the ablation again") as folder:
        settings = config_of(run, "ablate", overrides)
        from pipelines.jobs import stages

        found = stages.ablate(folder, settings, seeds)
    if json_only:
        print_json(found)
    else:
        results().print(ranking_table(found["rows"]), difference_table(found["differences"]))
