"""The steps of a run in order, each timed, as used by the command line and the demonstration."""

from __future__ import annotations

from typing import Any

from pipelines.common import trackers
from pipelines.common.run_directory import TRAINED, Run
from pipelines.config.job import JobConfig, load_config, validate
from pipelines.config.search_space import SECTIONS
from pipelines.evaluation import evaluate
from pipelines.features import item_features, lineage, preparation, warm
from pipelines.features.encode_texts import encode_texts
from pipelines.features.preparation import keep_configuration
from pipelines.features.tune_encoder import tune_encoder
from pipelines.jobs import ablation, export, run_report
from pipelines.training import train, tune
from pipelines.training.trials import Trial
from setrec.errors import ConfigError

ABLATION_COLD_SHARE = 0.2
"""Share of the items that an ablation removes from training."""


def fit(run: Run, config: JobConfig, *, resume: bool = False) -> dict[str, Any]:
    """Train the recommender, if configured after the SASRec that initialises its collaborative table; ``resume`` keeps
    completed parts and continues.

    An earlier training is not changed before a cluster has been joined and the data has been checked.

    Raises:
        ConfigError: see :func:`pipelines.training.train.train`; or ``resume`` is true and the interrupted training has
            another model.
    """
    run.require(run.data, "prepare")
    train.require_validation(run)
    run.claim(*TRAINED)
    begun = resume and train.has_checkpoint(run, config)
    with train.cluster(config):
        lineage.begin_training(run, config, resume=begun)
        keep_configuration(run, config)
        if not resume:
            trackers.forget(run)
        if config.model.table == "sasrec" and not (
            resume and lineage.fits(run, lineage.COLLABORATIVE, lineage.of_sasrec(run, config))
        ):
            with run.timed("sasrec"):
                item_features.train_collaborative(run, config)
        if tune_encoder(run, config):  # a warm start goes on with the encoders of its source
            encode_texts(run, config)
        lexical = warm.lexical_encoder(config.warm_start)
        if lexical is not None or run.made_from(lineage.WORDS):  # those of an earlier warm start belong to another run
            item_features.encode_words(run, config, lexical)
        with run.timed("setrec"):
            done = train.train(run, config, resume=begun)
    lineage.end_training(run, config)
    run.log("trained", **done)
    return done


def search(run: Run, config: JobConfig, *, resume: bool = False, force: bool = False) -> list[Trial]:
    """Search for settings as configured in ``config.tune``; data already prepared with this configuration is kept.

    Raises:
        ConfigError: see :func:`pipelines.training.tune.tune`; or the search to resume has other prepared data.
    """
    prepared = run.config.exists() and run.data.exists()
    known = load_config(run.config) if prepared else None
    compared = (*preparation.SECTIONS, *SECTIONS) if resume else preparation.SECTIONS
    if known is None or any(getattr(known, part) != getattr(config, part) for part in compared):
        if resume:
            raise ConfigError(f"{run.root} holds no search with this configuration; without --resume one begins")
        preparation.require_force(run, force)
        preparation.prepare(run, config)
    train.require_validation(run)
    run.claim("tuning", "trials.json", "best.yaml")
    keep_configuration(run, config)
    if not resume:
        trackers.forget(run)
    with run.timed("tune"):
        return tune.tune(run, config, resume=resume)


def assess(run: Run, config: JobConfig) -> list[dict[str, Any]]:
    """Evaluate all systems and write the report; return the rows of metrics.json."""
    lineage.require_model(run, config)
    if "sasrec" in config.evaluation.opponents and not lineage.fits(run, "sasrec", lineage.of_sasrec(run, config)):
        with run.timed("sasrec"):
            item_features.train_sasrec_opponent(run, config)
    with run.timed("evaluate"):
        rows = evaluate.evaluate(run, config)
    keep_configuration(run, config)
    with trackers.tracking(run, config) as follow:
        follow.metrics(rows)
    run_report.write_report(run.root)
    return rows


def ablate(run: Run, config: JobConfig, seeds: int) -> dict[str, Any]:
    """Train once per set of slots and seed, and compare; write ablation.json in the folder ``ablation`` of the run.

    Unless the configuration makes cold items, the data is prepared again there with a fifth of the items removed from
    training: most splits have almost no cold items, and the kinds of slots differ on cold items.
    """
    run.require(run.data, "prepare --config CONFIG")
    run.claim("ablation", "ablation.json")
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
