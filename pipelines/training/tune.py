"""Search for settings with Ray Tune: random settings, worse trials stopped early, by validation NDCG@10.

A trial is the loop of ``setrec.training.trainer`` on one worker. After every epoch it writes a checkpoint, reports, and
continues when it has been judged; a killed search, including the driver, continues from checkpoints and the book of
trials. Trials share the prepared data and, except those that change ``sasrec``, the collaborative vectors. A trial's
curve depends on its settings and seed only; which trials are stopped early depends on their order of completion, and so
on the machine.

Files written to the run: ``trials.json``; ``best.yaml``, the configuration of the best trial, for ``setrec train``.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from pipelines.common.cluster import ray_session
from pipelines.common.failures import readable_error
from pipelines.common.progress import Bar, bar
from pipelines.common.run_directory import Run
from pipelines.common.trackers import tracking
from pipelines.config.job import JobConfig, validate
from pipelines.features import item_features
from pipelines.training.trials import METRIC, Trial, Trials
from pipelines.training.worker import trainer_of, wrapper
from setrec.atomic import atomic_directory
from setrec.errors import ConfigError

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_RESULT_DELIM": "/",
}


def tune(run: Run, config: JobConfig, *, resume: bool = False) -> list[Trial]:
    """Search as configured in ``config.tune``; ``run`` holds the prepared data. Returns all trials.

    ``resume``: continue an earlier search with the same settings; trials and minutes may be increased.

    Raises:
        ConfigError: the space is empty or a trial's settings are not allowed, there is nothing to resume or another
            search, or no trial finished an epoch.
    """
    s = config.tune
    if not s.space:
        raise ConfigError("tune.space is empty: it must define what to search")
    folder = run.root / "tuning"
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    book = Trials(run, _trials(run, config, resume=resume))
    configs = [_changed(config, trial.settings) for trial in book.trials]
    item_features.shared_view(run, config, folder)
    for trial in book.trials:
        trial.stop = None if trial.stop == "time" else trial.stop
    book.save()
    cores = os.cpu_count() or 1
    with bar("Search") as progress, tracking(run, config) as follow, ray_session(config.cluster.address, cores):

        def on_epoch(trial: Trial) -> None:
            follow.epoch(f"trial-{trial.number:04d}", trial.curve[-1])
            _show(book, trial, progress)

        book.on_epoch = on_epoch
        if not all(trial.over for trial in book.trials):
            _search(run, config, configs, book)
        best = book.best()
        progress.update(1, 1, f"{len(book.trials)} trials, best {best.number}: NDCG@10 {best.best:.4f}")
    _changed(config, best.settings).save(run.root / "best.yaml", without=("tune",))
    if all(trial.over for trial in book.trials):
        shutil.rmtree(folder, ignore_errors=True)
    return book.trials


def _trials(run: Run, config: JobConfig, *, resume: bool) -> list[Trial]:
    """Return the trials of the earlier search if it is resumed, and new ones up to the configured number."""
    known = Trials.read(run) if resume else []
    if resume and not known:
        raise ConfigError(f"{run.root} holds no search to resume")
    drawn = [Trial(number, config.tune.draw(number)) for number in range(max(config.tune.trials, len(known)))]
    if [t.settings for t in known] != [t.settings for t in drawn[: len(known)]]:
        raise ConfigError(f"{run.root} holds a search over another space or with another seed; it cannot be resumed")
    return known + drawn[len(known) :]


def _changed(config: JobConfig, settings: dict[str, Any]) -> JobConfig:
    raw = config.model_dump(mode="json")
    for key, value in settings.items():
        section, *middle, leaf = key.split(".")
        place = raw[section]
        for name in middle:
            place = place[name] if isinstance(place, dict) and name in place else {}
        if not isinstance(place, dict) or leaf not in place:
            raise ConfigError(f"tune.space: there is no setting '{key}'")
        place[leaf] = value
    return validate(raw, "tune.space")


def _search(run: Run, config: JobConfig, configs: list[JobConfig], book: Trials) -> None:
    os.environ.update(QUIET)
    import ray
    from ray import tune

    from pipelines.training.halving import Halving

    s, storage = config.tune, run.root.resolve() / "tuning" / "ray"
    threads = config.cluster.threads or max(1, int(ray.cluster_resources().get("CPU", 1)) // len(book.trials))
    given = [
        {
            "number": trial.number, "config": configs[trial.number].model_dump(mode="json"), "threads": threads,
            "root": str(run.root.resolve()), "judged": len(trial.curve),
        }
        for trial in book.trials if not trial.over
    ]  # fmt: skip
    shutil.rmtree(storage, ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(_trial, {"cpu": threads, "gpu": int(config.cluster.gpu)}),
        param_space={"trial": tune.grid_search(given)},
        tune_config=tune.TuneConfig(
            scheduler=Halving(s, max(c.training.epochs for c in configs), book),
            time_budget_s=60 * s.minutes,
            trial_dirname_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(storage),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )
    try:
        results = tuner.fit()
    except Exception as error:
        raise readable_error(error, "the search") from error
    for result in (results[i] for i in range(len(results))):
        if result.error is not None and result.config is not None:
            book.end(result.config["trial"]["number"], "failed", str(readable_error(result.error, "the trial")))
    for trial in book.trials:
        if not trial.over:
            book.end(trial.number, "time")


def _folder_name(trial: Any) -> str:
    return f"trial-{trial.config['trial']['number']:04d}-{trial.trial_id}"


def _trial(given: dict[str, Any]) -> None:
    """Run one trial in a worker, from its last checkpoint if it has one."""
    from ray import tune

    spec = given["trial"]
    torch.set_num_threads(spec["threads"])
    run, config = Run(Path(spec["root"])), validate(spec["config"], "trial")
    place = run.root / "tuning" / "checkpoints" / f"{spec['number']:04d}"
    device = torch.device("cuda" if config.cluster.gpu else "cpu")
    trainer = trainer_of(
        item_features.shared_view(run, config, run.root / "tuning"), config, wrap=wrapper(config, 1, device)
    )
    if place.exists():
        trainer.load(place)

    def report(record: dict[str, Any]) -> None:
        exhausted = trainer.finished and record["epoch"] == trainer.progress.epoch
        # As text, because Ray flattens nested values.
        found = {"epoch": record["epoch"], METRIC: record[METRIC], "record": json.dumps(record), "exhausted": exhausted}
        tune.report(found)

    for record in trainer.progress.curve[spec["judged"] :]:  # trained, but not judged before the search ended
        report(record)
    while not trainer.finished:
        record = trainer.epoch()
        with atomic_directory(place) as folder:
            trainer.save(folder)
        report(record)


def _show(book: Trials, trial: Trial, progress: Bar) -> None:
    best = max(t.best or 0.0 for t in book.trials)
    note = f"trial {trial.number}, epoch {len(trial.curve)}, best NDCG@10 {best:.4f}"
    progress.update(sum(t.over for t in book.trials), len(book.trials), note)
