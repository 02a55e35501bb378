"""Fine-tune the recommender with Ray Train: the loop of ``setrec.training`` on one or more workers, resumable.

Every epoch ends in a checkpoint that Ray registers only once it is complete. A run that was killed, driver and all,
goes on from the last one: batches, dropout and the schedule depend on seed and epoch alone, so it ends where the
unbroken run would have ended.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch

from pipelines import ingest
from pipelines.cluster import ray_session
from pipelines.config import JobConfig, validate
from pipelines.features import load_features
from pipelines.progress import Bar, bar
from pipelines.runs import Run
from setrec import ranking
from setrec.atomic import atomic_directory
from setrec.catalog import VALID, Histories
from setrec.errors import ConfigError
from setrec.model import SetRecModel
from setrec.scoring import scorer
from setrec.training import Trainer

EXPERIMENT = "train"


def train(run: Run, config: JobConfig, *, resume: bool = False) -> dict[str, Any]:
    """Train on ``config.cluster.workers`` workers; writes the best epoch's model to ``run.model`` and the curve.

    Returns the final progress: epoch, best validation NDCG@10 and its epoch.

    Raises:
        ConfigError: ``resume`` without a checkpoint, or training failed; the message carries the reason.
    """
    run.require(run.features / "collaborative.safetensors", "train")
    if resume and not (run.checkpoints / EXPERIMENT).exists():
        raise ConfigError(f"{run.checkpoints} holds no checkpoint to resume from")
    if not resume:
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    cores = os.cpu_count() or 1
    with (
        bar("Train SETRec") as progress,
        ray_session(config.cluster.address, max(cores, config.cluster.workers)),
    ):
        result = _fit(run, config, progress)
    with tempfile.TemporaryDirectory() as folder, result.checkpoint.as_directory() as checkpoint:
        trainer = trainer_of(run, config, rank=0, world=1)
        trainer.load(Path(checkpoint))
        model = trainer.restore_best()
        model.save_pretrained(folder)
        with atomic_directory(run.model) as target:
            shutil.copytree(folder, target, dirs_exist_ok=True)
    run.write_curve("SETRec", trainer.progress.curve)
    done = trainer.progress
    return {"epoch": done.epoch, "best_epoch": done.best_epoch, "ndcg@10": done.best, "seconds": done.seconds}


def _fit(run: Run, config: JobConfig, progress: Bar) -> Any:
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    board = ray.remote(num_cpus=0)(_Board).remote()
    threads = config.cluster.threads or max(1, (os.cpu_count() or 1) // config.cluster.workers)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "run": str(run.root.resolve()),
            "config": config.model_dump(mode="json"),
            "threads": threads,
            "board": board,
        },
        scaling_config=ScalingConfig(num_workers=config.cluster.workers, use_gpu=config.cluster.gpu),
        run_config=RunConfig(
            name=EXPERIMENT,
            storage_path=str(run.checkpoints.resolve()),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=1),
        ),
    )
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(board, progress, stop), daemon=True)
    watcher.start()
    try:
        return trainer.fit()
    except Exception as error:
        cause = str(getattr(error, "worker_failures", None) or error).strip().splitlines()
        raise ConfigError(f"training failed: {cause[-1] if cause else type(error).__name__}") from error
    finally:
        stop.set()
        watcher.join(timeout=5)


class _Board:
    """Where rank 0 writes how far it is, and the driver, wherever it runs, reads it."""

    def __init__(self) -> None:
        self.state: tuple[float, float, str] = (0.0, 1.0, "starting workers")

    def write(self, done: float, total: float, note: str) -> None:
        """Replace the state."""
        self.state = (done, total, note)

    def read(self) -> tuple[float, float, str]:
        """Steps done, steps in all, a note."""
        return self.state


def _watch(board: Any, progress: Bar, stop: threading.Event) -> None:
    import ray

    while not stop.wait(0.5):
        try:
            progress.update(*ray.get(board.read.remote(), timeout=5))
        except Exception:  # the board may go before the watcher does; a bar is never worth a failed run
            continue


def trainer_of(
    run: Run, config: JobConfig, rank: int = 0, world: int = 1, wrap: Any = lambda module: module
) -> Trainer:
    """The trainer of one worker, at its beginning: data, features, a new model and its validation."""
    catalog, histories = ingest.load(run.data)
    trained = histories.trained(len(catalog))
    torch.manual_seed(config.training.seed)
    model = SetRecModel.build(config.model, load_features(run, config, trained))
    return Trainer(
        model,
        histories.upto(0),
        Validation(histories),
        config.training,
        config.loss,
        rank=rank,
        world=world,
        wrap=wrap,
    )


class Validation:
    """NDCG@10 on the validation items, full ranking, history removed, all slots weighted equally."""

    def __init__(self, histories: Histories) -> None:
        self.cases = ranking.Cases.of(histories, VALID)
        if not len(self.cases):
            raise ConfigError("the split leaves no validation items; early stopping needs some")

    def __call__(self, model: SetRecModel) -> float:
        """The metric of ``model``."""
        weights = dict.fromkeys(model.kinds, 1.0)
        return ranking.mean_metric(scorer(model, weights), self.cases)


def _worker(settings: dict[str, Any]) -> None:
    import ray.train
    from ray.train.torch import get_device, prepare_model

    torch.set_num_threads(settings["threads"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    config = validate(settings["config"], "configuration")

    def wrap(module: torch.nn.Module) -> torch.nn.Module:
        return prepare_model(module.to(get_device()))

    trainer = trainer_of(Run(Path(settings["run"])), config, rank, world, wrap)
    last = ray.train.get_checkpoint()
    if last is not None:
        with last.as_directory() as folder:
            trainer.load(Path(folder))
    board = settings["board"]
    total = trainer.steps_per_epoch * config.training.epochs
    while not trainer.progress.exhausted(config.training):
        best = trainer.progress.best
        note = f"epoch {trainer.progress.epoch + 1}, best NDCG@10 {max(best, 0):.4f}"

        def on_step(done: int, _: int, note: str = note) -> None:
            if rank == 0:
                board.write.remote(trainer.progress.epoch * trainer.steps_per_epoch + done, total, note)

        record = trainer.epoch(on_step)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if rank == 0:
                trainer.save(Path(folder))
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(record, checkpoint=checkpoint)
