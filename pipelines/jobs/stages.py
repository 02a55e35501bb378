"""The steps of a run in order, each timed; what the commands of the command line and the demonstration are made of."""

from __future__ import annotations

from typing import Any

from pipelines.common import trackers, warm
from pipelines.common.run_directory import Run
from pipelines.config.job import JobConfig, load_config, validate
from pipelines.config.search_space import SECTIONS
from pipelines.evaluation import evaluate
from pipelines.features import item_features, preparation
from pipelines.features.preparation import keep_configuration
from pipelines.jobs import ablation, export, run_report
from pipelines.training import train, tune
from pipelines.training.trials import Trial
from setrec.errors import ConfigError

ABLATION_COLD_SHARE = 0.2
"""Share of the items that an ablation keeps out of training."""


def fit(run: Run, config: JobConfig, *, resume: bool = False) -> dict[str, Any]:
    """Train the recommender, after the SASRec that its collaborative table begins with, where one is asked for;
    ``resume`` keeps what is complete and goes on from there."""
    run.require(run.data, "prepare")
    keep_configuration(run, config)
    if not resume:
        trackers.forget(run)
    if config.model.table == "sasrec" and not (resume and item_features.has_collaborative(run, config)):
        with run.timed("sasrec"):
            item_features.train_collaborative(run, config)
    if lexical := warm.lexical_encoder(config.warm_start):
        item_features.encode_words(run, config, lexical)
    with run.timed("setrec"):
        done = train.train(run, config, resume=resume and train.has_checkpoint(run, config))
    run.log("trained", **done)
    return done


def search(run: Run, config: JobConfig, *, resume: bool = False) -> list[Trial]:
    """Search for settings as ``config.tune`` says; what is prepared already, as the configuration asks, is kept.

    Raises:
        ConfigError: see :func:`pipelines.training.tune.tune`; or what is to be resumed was prepared otherwise.
    """
    prepared = run.config.exists() and run.data.exists()
    known = load_config(run.config) if prepared else None
    compared = (*preparation.SECTIONS, *SECTIONS) if resume else preparation.SECTIONS
    if known is None or any(getattr(known, part) != getattr(config, part) for part in compared):
        if resume:
            raise ConfigError(f"{run.root} holds no search with this configuration; without --resume one begins")
        preparation.prepare(run, config)
    keep_configuration(run, config)
    if not resume:
        trackers.forget(run)
    with run.timed("tune"):
        return tune.tune(run, config, resume=resume)


def assess(run: Run, config: JobConfig) -> list[dict[str, Any]]:
    """Evaluate all systems and write the report; returns the rows of metrics.json."""
    if "sasrec" in config.evaluation.opponents and not run.sasrec.exists():
        run.require(run.model, "train")
        with run.timed("sasrec"):
            item_features.train_sasrec_opponent(run, config)
    with run.timed("evaluate"):
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
    preparation.prepare(run, config)
    item_features.place_items(run, config)
    if not item_features.has_collaborative(run, config):
        with run.timed("sasrec"):
            item_features.train_collaborative(run, config)
    with run.timed("ablation"):
        return ablation.ablate(run, config, seeds)


def release(run: Run, config: JobConfig) -> None:
    """Export the bundle."""
    with run.timed("export"):
        export.export(run, config)
