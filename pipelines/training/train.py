"""Fine-tune the recommender with Ray Train: the loop of ``setrec.training.trainer`` on one or more workers, resumable.

Checkpoints are written after every epoch and, if configured, within one (see ``pipelines.training.checkpoint_store``).
If a worker or node is lost, Ray restarts the workers, and they continue from the last checkpoint; so does a killed run,
including the driver, with ``resume``. Batches, dropout and the schedule depend on seed and position only, so the result
equals that of an uninterrupted run.

Training is followed by a refit: the model of the best epoch is stored for choices on validation, and then trained anew,
or further, on training and validation events. The refit has its own checkpoints.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from pipelines.common.board import TrainingBoard
from pipelines.common.cluster import ray_session
from pipelines.common.failures import readable_error
from pipelines.common.progress import Bar, bar
from pipelines.common.run_directory import VALIDATED, Run
from pipelines.common.trackers import Trackers, tracking
from pipelines.config.job import JobConfig, validate
from pipelines.training.checkpoint_store import CheckpointStore
from pipelines.training.cross_fitting import training_offset
from pipelines.training.worker import refit_trainer, store_of, trainer_of, work
from setrec.atomic import atomic_directory
from setrec.data.catalog import TRAIN, VALID
from setrec.errors import ConfigError, DataError
from setrec.models.setrec_model import SetRecModel
from setrec.training.progress import Progress
from setrec.training.trainer import Trainer

EXPERIMENT = "train"


def require_validation(run: Run) -> None:
    """Require validation items for early stopping, before a training begins.

    Raises:
        ConfigError: the split leaves no validation items.
    """
    if not (run.read_json("data/data.json") or {}).get("splits", {}).get("valid", 1):
        raise ConfigError(f"{run.data}: the split leaves no validation items; early stopping needs some")


def cluster(config: JobConfig) -> AbstractContextManager[None]:
    """Return the Ray session of a training."""
    return ray_session(config.cluster.address, max(os.cpu_count() or 1, config.cluster.workers))


def has_checkpoint(run: Run, config: JobConfig) -> bool:
    """Return whether there is a checkpoint to resume from."""
    return bool(store_of(run, config).names())


def train(run: Run, config: JobConfig, *, resume: bool = False) -> dict[str, Any]:
    """Train and refit on ``config.cluster.workers`` workers; write ``run.model``, which contains ``run.validated``, and
    the curve.

    Returns the final progress: epoch, best validation NDCG@10 and its epoch, seconds.

    Raises:
        ConfigError: ``resume`` without a checkpoint, or training failed; the message has the reason.
    """
    if resume and not has_checkpoint(run, config):
        raise ConfigError(f"{run.checkpoints} holds no checkpoint to resume from")
    run.claim("checkpoints", "model", "curves.jsonl")
    own, of_refit = (store_of(run, config, refit=refit) for refit in (False, True))
    # Training that continues, for example with more epochs, ends with another model than the refit started from.
    for store, keep in ((own, resume), (of_refit, resume and _finished(own, config))):
        store.create()
        if not keep:
            store.clear()
    if config.training.offset.enabled:  # before the workers, so that only one process makes it
        with bar("Score training positions") as progress:
            for upto in (TRAIN, VALID) if config.training.refit_length else (TRAIN,):
                training_offset(run, config, upto, progress.update)
    with bar("Train SETRec") as progress, tracking(run, config) as follow, cluster(config):
        _fit(run, config, progress, follow, refit=False)
        done = _keep_trained(run, config)
        if config.training.refit_length:
            _fit(run, config, progress, follow, refit=True)
            _keep_refit(run, config)
        shutil.rmtree(run.offset, ignore_errors=True)
        progress.update(1, 1, f"best NDCG@10 {done['ndcg@10']:.4f} at epoch {done['best_epoch']} of {done['epoch']}")
    return done


def _keep_trained(run: Run, config: JobConfig) -> dict[str, Any]:
    """Write the model of the best epoch and the curve; return the final progress."""
    trainer = trainer_of(run, config)
    _load(trainer, store_of(run, config))
    _keep(run, trainer.restore_best(), validated=None)
    run.write_curve("SETRec", trainer.progress.curve)
    done = trainer.progress
    return {"epoch": done.epoch, "best_epoch": done.best_epoch, "ndcg@10": done.best, "seconds": done.seconds}


def _keep_refit(run: Run, config: JobConfig) -> None:
    """Write the model after its refit, and with it the one before."""
    trainer = refit_trainer(SetRecModel.from_pretrained(run.model), run, config)
    _load(trainer, store_of(run, config, refit=True))
    _keep(run, trainer.restore_best(), validated=run.model)


def _finished(store: CheckpointStore, config: JobConfig) -> bool:
    """Return whether nothing is left to train after the newest checkpoint."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkpoint"
        if store.latest(folder) is None:
            return False
        progress = Progress.of(json.loads((folder / "progress.json").read_text()), 0, 1)
    return progress.exhausted(config.training.epochs, config.training.patience)


def _load(trainer: Trainer, store: CheckpointStore) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkpoint"
        if store.latest(folder) is None:
            raise ConfigError(f"{store.where} holds no checkpoint that is undamaged: run `setrec train` again")
        trainer.load(folder)


def _keep(run: Run, model: SetRecModel, validated: Path | None) -> None:
    """Write ``run.model``, and into it the model at ``validated``."""
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        with atomic_directory(run.model) as target:
            shutil.copytree(scratch, target, dirs_exist_ok=True)
            if validated is not None:
                shutil.copytree(validated, target / VALIDATED)


def _fit(run: Run, config: JobConfig, progress: Bar, follow: Trackers, *, refit: bool) -> None:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    class Trained(TorchTrainer):
        """Leaves Ctrl-C to the process, because Ray's own handler exits with 1 and stays after training."""

        def _register_sigint_handler(self, controller: Any) -> None:
            pass

    # On the driver's node, so that progress is not lost with another node.
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    board: Any = ray.remote(num_cpus=0, label_selector=here)(TrainingBoard).remote()
    threads = config.cluster.threads or max(1, (os.cpu_count() or 1) // config.cluster.workers)
    stop, system = threading.Event(), "SETRec, refit" if refit else "SETRec"
    watcher = threading.Thread(target=_watch, args=(board, run, system, progress, follow, stop), daemon=True)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trained(
            _worker,
            train_loop_config={
                "run": str(run.root.resolve()),
                "config": config.model_dump(mode="json"),
                "threads": threads,
                "board": board,
                "refit": refit,
            },
            scaling_config=ScalingConfig(num_workers=config.cluster.workers, use_gpu=config.cluster.gpu),
            # Ray stores nothing here that is needed later.
            run_config=RunConfig(
                name=EXPERIMENT,
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=config.cluster.max_failures),
            ),
        )
        watcher.start()
        try:
            trainer.fit()
        except Exception as error:
            failures = getattr(error, "worker_failures", None)
            raise readable_error(next(iter(failures.values())) if failures else error, "training") from error
        finally:
            stop.set()
            watcher.join(timeout=5)
        if refused := ray.get(board.refused.remote()):
            raise ConfigError(refused)


def _watch(board: Any, run: Run, system: str, progress: Bar, follow: Trackers, stop: threading.Event) -> None:
    import ray

    seen, last = 0, False
    while not last:
        last = stop.wait(0.5)
        try:
            state, records = ray.get(board.read.remote(seen), timeout=5)
        except Exception:  # the board may end before the watcher; a progress bar must not fail a run
            continue
        progress.update(*state)
        for record in records:
            run.log("epoch", system=system, **record)
            follow.epoch(system, record)
        seen += len(records)


def _worker(settings: dict[str, Any]) -> None:
    import ray
    import ray.train
    from ray.train.torch import get_device

    torch.set_num_threads(settings["threads"])
    context, board = ray.train.get_context(), settings["board"]
    rank, world = context.get_world_rank(), context.get_world_size()
    config = validate(settings["config"], "configuration")

    refit, epochs = settings["refit"], config.training.epochs

    def on_step(trainer: Trainer, done: float) -> None:
        if rank == 0:
            at = trainer.progress
            note = f"epoch {at.epoch + 1}, best NDCG@10 {max(at.best, 0):.4f}"
            note = f"refit, epoch {at.epoch + 1}" if refit else note
            board.write.remote(done + refit * epochs, epochs + config.training.refit_length, note)

    def on_epoch(record: dict[str, Any]) -> None:
        if rank == 0:
            board.finish.remote(record)

    # Other errors are retried, because they may be temporary, such as an unreachable file; invalid input stays invalid.
    if ray.get(board.refused.remote()):
        return
    try:
        run = Run(Path(settings["run"]))
        work(run, config, rank, world, get_device(), refit=refit, on_step=on_step, on_epoch=on_epoch)
    except (DataError, ConfigError) as error:
        of_the_moment = isinstance(error.__cause__, OSError)
        if not of_the_moment:
            ray.get(board.refuse.remote(str(error)))
        if of_the_moment or world > 1:  # the other workers wait for this one; an error ends them
            raise
