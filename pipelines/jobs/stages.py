"""The steps of a run in order, each timed; what the commands of the command line and the demonstration are made of."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.common.progress import bar, console
from pipelines.common.run_directory import Run
from pipelines.config import JobConfig, load_config, validate
from pipelines.data import ingest
from pipelines.evaluation import ablation, evaluate
from pipelines.features import item_features
from pipelines.features.encode_texts import encode_texts
from pipelines.jobs import export
from pipelines.reports import run_report
from pipelines.training import trackers, train, warm
from pipelines.tuning import tune
from pipelines.tuning.search_space import SECTIONS
from pipelines.tuning.trials import Trial
from setrec.errors import ConfigError

ABLATION_COLD_SHARE = 0.2
"""Share of the items that an ablation keeps out of training."""
PREPARED = ("data", "encoder", "structural")
"""Sections that say what `prepare` leaves."""


@contextmanager
def timed(run: Run, step: str) -> Iterator[None]:
    """Keep the seconds of a step in the run's environment.json, its start and end in the run's log."""
    began = time.perf_counter()
    run.log("started", step=step)
    try:
        yield
    except BaseException as error:
        run.log("failed", step=step, error=type(error).__name__, reason=str(error))
        raise
    seconds = time.perf_counter() - began
    run.note_seconds(step, seconds)
    run.log("finished", step=step, seconds=round(seconds, 2))


def seeds(config: JobConfig) -> dict[str, int]:
    """The seed of every section that has one."""
    sections = config.model_dump(mode="json")
    return {name: part["seed"] for name, part in sections.items() if isinstance(part, dict) and "seed" in part}


def _keep(run: Run, config: JobConfig) -> None:
    config.save(run.config)
    run.note(seeds=seeds(config))


def prepare(run: Run, config: JobConfig) -> dict[str, Any]:
    """Ingest, split, encode texts, place items; starts the run's folder anew once the data has been accepted."""
    summary = ingest_data(run, config)
    tokenise(run, config)
    return summary


def ingest_data(run: Run, config: JobConfig) -> dict[str, Any]:
    """Ingest and split; starts the run's folder anew once the data has been accepted."""
    run.root.mkdir(parents=True, exist_ok=True)
    with timed(run, "ingest"), bar("Ingest and split") as progress:
        summary = ingest.ingest(config.data, run.data, progress=progress)
        # A model of other data must not be taken for one of this.
        run.clear(keep=("data", "logs", "environment.json"))
        progress.update(
            1, 1, f"{summary['users']} users, {summary['items']} items, {summary['interactions']} interactions"
        )
    for name, use in (
        ("valid", "validation: training will refuse this data"),
        ("test", "test: nothing to evaluate on"),
    ):
        if not summary["splits"][name]:
            console.print(f"[yellow]![/yellow] The split leaves no interaction for {use}.")
    run.write_json("data.json", summary)
    run.log("ingested", **{key: summary[key] for key in ("users", "items", "interactions")})
    _keep(run, config)
    return summary


TOLD = (
    "rows", "rejected", "rejected_reasons", "dropped", "users", "items", "interactions", "splits", "cold_items",
    "cold_item_share", "items_without_text",
)  # fmt: skip


def told(summary: dict[str, Any]) -> dict[str, Any]:
    """What a person wants to know of an ingest, for its end."""
    return {key: summary[key] for key in TOLD if summary.get(key) not in (None, {})}


def tokenise(run: Run, config: JobConfig) -> None:
    """Encode item texts and, where positions are asked for, place items in their graph."""
    run.require(run.data, "prepare")
    _keep(run, config)
    with timed(run, "encode"):
        encode_texts(run, config)
        item_features.encode_words(run, config)
    if config.structural.enabled:
        with timed(run, "structure"):
            item_features.place_items(run, config)


def fit(run: Run, config: JobConfig, *, resume: bool = False) -> dict[str, Any]:
    """Train the recommender, after the SASRec that its collaborative table begins with, where one is asked for;
    ``resume`` keeps what is complete and goes on from there."""
    run.require(run.data, "prepare")
    _keep(run, config)
    if not resume:
        trackers.forget(run)
    if config.model.table == "sasrec" and not (resume and item_features.has_collaborative(run, config)):
        with timed(run, "sasrec"):
            item_features.train_collaborative(run, config)
    if lexical := warm.lexical_encoder(config.warm_start):
        item_features.encode_words(run, config, lexical)
    with timed(run, "setrec"):
        done = train.train(run, config, resume=resume and train.has_checkpoint(run, config))
    run.log("trained", **done)
    return done


def search(run: Run, config: JobConfig, *, resume: bool = False) -> list[Trial]:
    """Search for settings as ``config.tune`` says; what is prepared already, as the configuration asks, is kept.

    Raises:
        ConfigError: see :func:`pipelines.tuning.tune.tune`; or what is to be resumed was prepared otherwise.
    """
    prepared = run.config.exists() and run.data.exists()
    known = load_config(run.config) if prepared else None
    compared = (*PREPARED, *SECTIONS) if resume else PREPARED
    if known is None or any(getattr(known, part) != getattr(config, part) for part in compared):
        if resume:
            raise ConfigError(f"{run.root} holds no search with this configuration; without --resume one begins")
        prepare(run, config)
    _keep(run, config)
    if not resume:
        trackers.forget(run)
    with timed(run, "tune"):
        return tune.tune(run, config, resume=resume)


def assess(run: Run, config: JobConfig) -> list[dict[str, Any]]:
    """Evaluate all systems and write the report; returns the rows of metrics.json."""
    if "sasrec" in config.evaluation.opponents and not run.sasrec.exists():
        run.require(run.model, "train")
        with timed(run, "sasrec"):
            item_features.train_sasrec_opponent(run, config)
    with timed(run, "evaluate"):
        rows = evaluate.evaluate(run, config)
    with trackers.tracking(run, config) as follow:
        follow.metrics(rows)
    run_report.write_report(run.root)
    return rows


def ablate(run: Run, config: JobConfig, seeds: int) -> dict[str, Any]:
    """Train once per set of slots and seed, and compare; leaves ablation.json in the folder ``ablation`` of the run.

    The data is prepared anew there with a fifth of the items unknown to training, where the configuration makes no
    cold items of its own: most splits have next to none, and cold items are what the kinds of slots differ in.
    """
    run.require(run.data, "prepare --config CONFIG")
    share = config.data.cold_share or ABLATION_COLD_SHARE
    config = validate(config.model_dump(mode="json"), "ablation", [f"data.cold_share={share}"])
    run = Run(run.root / "ablation")
    prepare(run, config)
    item_features.place_items(run, config)
    if not item_features.has_collaborative(run, config):
        with timed(run, "sasrec"):
            item_features.train_collaborative(run, config)
    with timed(run, "ablation"):
        return ablation.ablate(run, config, seeds)


def release(run: Run, config: JobConfig) -> None:
    """Export the bundle."""
    with timed(run, "export"):
        export.export(run, config)
