"""The training pipeline: padding, time spent loading, Ray beside torchrun, two workers beside one, sampled softmax.

Data: interactions of an Amazon category by ``--data DIR`` (``interactions.parquet`` with user_id, item_id, position;
``items.parquet``), or MovieLens-100K where none is given. The same worker function runs under ``torchrun`` and under
Ray Train, same data, same global batches, one thread a worker; times are of training, validation and checkpoints, and
starting up is given apart. Variants take turns; of each the quickest epoch counts. A full and a sampled softmax train
the same model on the same batches, and are compared on the test users.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import padding
from harness import RESULTS, write_results

from pipelines.common.cluster import ray_session
from pipelines.common.run_directory import Run
from pipelines.config.job import JobConfig, validate
from pipelines.data import directory
from pipelines.features import item_features, preparation
from pipelines.jobs.datasets import movielens_100k
from pipelines.training import train
from pipelines.training.worker import trainer_of
from setrec.atomic import atomic_file
from setrec.data.catalog import TEST, TRAIN
from setrec.evaluation import ranking
from setrec.evaluation.intervals import paired_difference
from setrec.scoring.model_scores import model_scorer

HEADLINES = ("padding_share_before", "padding_share_after", "loading_share", "tokens_per_second", "ray_over_torchrun")
EPOCHS, SOFTMAX_EPOCHS = 3, 6
HERE = Path(__file__).parent


def config_of(data: Path | None) -> JobConfig:
    """A small model, so that loading and launching weigh as much as they can."""
    raw: dict[str, Any] = {"data": movielens_100k().model_dump(mode="json")} if data is None else {}
    if data is not None:
        columns = {"position": "position", "text": ["title"]}
        raw["data"] = {
            "interactions": str(data / "interactions.parquet"), "items": str(data / "items.parquet"), "columns": columns
        }  # fmt: skip
    raw["training"] = {"epochs": EPOCHS, "patience": EPOCHS, "precision": "float32"}
    raw["sasrec"] = {"epochs": 5}
    raw["cluster"] = {"threads": 1}
    return validate(raw, "benchmark")


def prepare(root: Path, config: JobConfig) -> Run:
    """A run ready to train the recommender."""
    run = Run(root)
    preparation.prepare(run, config)
    item_features.train_collaborative(run, config)
    return run


def launched(run: Run, config: JobConfig, start: Callable[[Run, JobConfig], list[dict[str, Any]]]) -> dict[str, float]:
    """Seconds of the quickest epoch and seconds around training, in a copy of the run."""
    with TemporaryDirectory() as folder:
        own = Run(Path(folder) / "run")
        shutil.copytree(run.root, own.root)
        config.save(own.config)
        began = time.perf_counter()
        curve = start(own, config)
        wall = time.perf_counter() - began
    return {
        "seconds": float(np.diff([0, *(record["seconds"] for record in curve)]).min()),
        "startup_seconds": wall - curve[-1]["seconds"],
        "loading_share": max(record["loading_share"] for record in curve),
        "tokens_per_second": max(record["tokens_per_second"] for record in curve),
        "padding_share": curve[-1]["padding_share"],
        "loss": curve[-1]["loss"],
    }


def by_torchrun(run: Run, config: JobConfig) -> list[dict[str, Any]]:
    """Two workers of torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*command, str(HERE / "torchrun_worker.py"), str(run.root)], check=True, capture_output=True)
    return json.loads((run.root / "curve.json").read_text())


def by_ray(run: Run, config: JobConfig) -> list[dict[str, Any]]:
    """Workers of Ray Train, as many as the configuration says; Ray itself is started and ended."""
    with ray_session(cpus=2):
        train.train(run, config)
    lines = (run.root / "curves.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["system"] == "SETRec"]


def launchers(run: Run, config: JobConfig, repeats: int) -> dict[str, dict[str, float]]:
    """The quickest of every way to start the same training, in turn: what disturbs a machine only ever adds time."""
    one, two = (config.model_copy(update={"cluster": config.cluster.model_copy(update={"workers": w})}) for w in (1, 2))
    ways = {"torchrun, 2 workers": (two, by_torchrun), "Ray, 2 workers": (two, by_ray), "Ray, 1 worker": (one, by_ray)}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, (own, start) in ways.items():
            found[name].append(launched(run, own, start))
            print(name, found[name][-1], flush=True)
    best = {"tokens_per_second": max, "loading_share": max}
    return {
        name: {key: best.get(key, min)(one[key] for one in all_) for key in all_[0]} for name, all_ in found.items()
    }


def sampled(run: Run, config: JobConfig, draws: tuple[int, ...] = (512,)) -> dict[str, Any]:
    """Test metrics after training with the full softmax and with samples of it, and the difference user by user."""
    catalog, histories = directory.load(run.data)
    cases = ranking.Cases.of(histories, TEST)
    groups = ranking.warm_cold_groups(histories.trained(len(catalog)))[:1]
    found, results = {"items": int(histories.trained(len(catalog)).sum())}, {}
    for size in (0, *draws):
        loss = config.loss.model_copy(update={"sampled_above": 0 if size else 10**9, "samples": size or 1})
        training = config.training.model_copy(update={"epochs": SOFTMAX_EPOCHS, "patience": SOFTMAX_EPOCHS})
        began, trainer = (
            time.perf_counter(),
            trainer_of(run, config.model_copy(update={"loss": loss, "training": training})),
        )
        while not trainer.progress.exhausted(training):
            trainer.epoch()
        model = trainer.restore_best()
        results[size] = ranking.evaluate(model_scorer(model), cases, groups, ks=(10,))
        name = f"{size} draws" if size else "full"
        found[name] = {metric: results[size].mean(metric) for metric in ("ndcg@10", "recall@10")}
        found[name]["seconds"] = time.perf_counter() - began
        if size:
            ours, full = (results[s].tables["removed", "all"]["ndcg@10"] for s in (size, 0))
            found[name]["ndcg@10 minus full, with 95% interval"] = paired_difference(ours, full)
        print(name, found[name], flush=True)
    return found


def main() -> None:
    """Measure all of it, about six minutes, and write ``results/training_pipeline.json``."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, help="folder with interactions.parquet and items.parquet")
    options.add_argument("--repeats", type=int, default=2, help="of each way to launch training")
    asked = options.parse_args()
    config = config_of(asked.data)
    with TemporaryDirectory() as folder:
        run = prepare(Path(folder) / "run", config)
        _, histories = directory.load(run.data)
        rows = histories.upto(TRAIN)
        shares = padding.shares(rows, config.model.max_items, config.training.targets_per_batch)
        found, softmax = launchers(run, config, asked.repeats), sampled(run, config)
    one, two, plain = (found[name] for name in ("Ray, 1 worker", "Ray, 2 workers", "torchrun, 2 workers"))
    figures = {
        "data": str(asked.data.name if asked.data else "movielens-100k"),
        "padding": shares,
        "padding_share_before": shares["per prefix, longest of the batch"],
        "padding_share_after": shares["one row per history, packed by length"],
        "loading_share": max(way["loading_share"] for way in found.values()),
        "tokens_per_second": two["tokens_per_second"],
        "ray_over_torchrun": two["seconds"] / plain["seconds"],
        "two_workers_over_one": one["seconds"] / two["seconds"],
        "same_loss": float(np.ptp([way["loss"] for way in found.values()]) / one["loss"]),
        "ways": found,
        "sampled_softmax": softmax,
    }
    write_results("training_pipeline", figures)
    file = RESULTS / "training_pipeline.json"
    record = {**json.loads(file.read_text()), **{key: figures[key] for key in HEADLINES}}
    with atomic_file(file) as path:
        path.write_text(json.dumps(record, indent=2))
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
