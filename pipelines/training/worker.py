"""The work of one training worker, under Ray Train or any other launcher that created the process group."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import scipy.sparse as sp
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.common import storage
from pipelines.common.run_directory import Run
from pipelines.common.scratch import scratch
from pipelines.config.job import JobConfig
from pipelines.data import directory
from pipelines.features import warm
from pipelines.features.item_features import key_words, load_features
from pipelines.training.checkpoint_store import CheckpointStore
from pipelines.training.checkpoint_writer import CheckpointWriter
from pipelines.training.cross_fitting import training_offset
from pipelines.training.shard_source import ShardSource, validation_cases
from setrec.data.catalog import VALID
from setrec.data.source import item_counts
from setrec.errors import ConfigError
from setrec.evaluation import ranking
from setrec.evaluation.ranking import Cases
from setrec.models.setrec_model import SetRecModel
from setrec.scoring.hybrid import HybridScorer
from setrec.scoring.model_scores import ModelOnly, ModelScores
from setrec.training import distributed
from setrec.training.trainer import Trainer

Wrap = Callable[[SetRecModel], nn.Module]
OnStep = Callable[[Trainer, float], None]
OnEpoch = Callable[[dict[str, Any]], None]
NAME_BYTES = 128
REFIT_RATE = 0.5
"""Learning rate of a refit as a share of that of training."""
SCRATCH = "setrec-checkpoint"
"""Prefix of the names of folders with checkpoints that wait to be stored."""


def trainer_of(
    run: Run,
    config: JobConfig,
    rank: int = 0,
    world: int = 1,
    wrap: Wrap = lambda model: model,
    spent: Callable[[], float] = lambda: 0.0,
) -> Trainer:
    """Return the initial trainer of one worker: data, features, a new model and its validation.

    Histories are read a few shards at a time, once for the counts of items and once for the validation cases.
    ``spent``: see :class:`setrec.training.trainer.Trainer`.
    """
    source = ShardSource(directory.history_shards(run.data), directory.catalog_size(run.data))
    counts = item_counts(source, source.items)
    offsets, components = training_offset(run, config)
    words = key_words(run, config)
    model = _initial(run, config, counts > 0, words)
    cases = validation_cases(source, config.training.validation_users, config.training.seed)
    return Trainer(
        model, source, Validation(cases, rank, world, components), config.training, config.loss,
        rank=rank, world=world, wrap=wrap, counts=counts, offsets=offsets, words=words, spent=spent,
    )  # fmt: skip


def refit_trainer(
    model: SetRecModel,
    run: Run,
    config: JobConfig,
    rank: int = 0,
    world: int = 1,
    wrap: Wrap = lambda model: model,
    spent: Callable[[], float] = lambda: 0.0,
) -> Trainer:
    """Return the trainer of one worker on training and validation events: of a new model, each of whose legs is trained
    for as many epochs as were best for that of a validated ``model``, or of ``model`` itself, changed in place, for
    ``refit_epochs``.

    Items that are new in validation events are trained from here on.
    """
    source = ShardSource(directory.history_shards(run.data), directory.catalog_size(run.data), upto=VALID)
    counts = item_counts(source, source.items)
    s, (offsets, _) = config.training, training_offset(run, config, upto=VALID)
    words, stops = key_words(run, config), None
    if s.refit_epochs is None:
        stops = model.config.leg_epochs or [s.epochs] * len(model.legs)
        model = _initial(run, config, counts > 0, words)
    else:
        model.mark_trained(counts > 0)
        s = s.model_copy(update={"epochs": s.refit_epochs, "learning_rate": REFIT_RATE * s.learning_rate})
    return Trainer(
        model, source, None, s, config.loss,
        rank=rank, world=world, wrap=wrap, counts=counts, offsets=offsets, words=words, stops=stops, spent=spent,
    )  # fmt: skip


def _initial(run: Run, config: JobConfig, trained: np.ndarray, words: sp.csr_matrix | None) -> SetRecModel:
    """Return the model at the beginning of training, in which the items ``trained``, bool (I,), take part, with a
    prediction of the key ``words`` (I, V)."""
    features = load_features(run, config, trained)
    torch.manual_seed(config.training.seed)
    model = SetRecModel.build(
        config.model, features, offset=config.training.offset.enabled, words=0 if words is None else words.shape[1]
    )
    warm.begin(model, config.warm_start, _item_ids(run.data) if config.warm_start else [], features.text)
    return model


def _item_ids(data: Path) -> list[str]:
    ids: list[str] = pq.read_table(data / "items.parquet", columns=["item_id"])["item_id"].to_pylist()
    return ids


class Validation:
    """NDCG@10 on the validation items, full ranking, history removed, all slots weighted equally; with an offset of the
    logits in training, of the model and the ``components`` in the ratio of the training loss.

    Each worker ranks its share of the cases. All process the same number of batches, since a sharded model requires
    calls of every worker; a worker with one case less repeats one and counts it once.
    """

    def __init__(self, cases: Cases, rank: int = 0, world: int = 1, components: HybridScorer | None = None) -> None:
        if not len(cases):
            raise ConfigError("the split leaves no validation items; early stopping needs some")
        rows = np.arange(rank, -(-len(cases) // world) * world, world)
        self.own, self.counted = cases.take(rows % len(cases)), rows < len(cases)
        self.world, self.components = world, components

    def __call__(self, model: SetRecModel) -> list[float]:
        """Return the metric of ``model`` and, if it has two legs, of each, over the cases of all workers."""
        every = np.ones(model.config.items, dtype=bool)
        groups = [ranking.Group("all", every, every)]
        found = ranking.evaluate_each(self._scorers(model), self.own, groups, ks=(10,))
        values = [each.tables["removed", "all"]["ndcg@10"][self.counted] for each in found.values()]
        sums = [float(value.sum()) for value in values]
        count, *totals = distributed.all_reduce_sum([float(self.counted.sum()), *sums], self.world, model.device)
        return [total / count for total in totals]

    def _scorers(self, model: SetRecModel) -> dict[str, ranking.Scorer]:
        each, components = 1.0, None
        if self.components is not None and model.offset_scale is not None:
            # Ranks do not change if the model is divided by the scale, and not the components multiplied.
            each, components = 1 / (len(model.tokens.read) * float(model.offset_scale.detach())), self.components
        term = ModelScores(model, dict.fromkeys(model.kinds, each))
        whole = ModelOnly(term) if components is None else replace(components, model=term)
        scorers: dict[str, ranking.Scorer] = {"whole": whole}
        if len(model.legs) > 1:
            scorers |= {"+".join(kinds): partial(term.of_kinds, kinds=kinds) for kinds in model.legs}
        return scorers


def wrapper(config: JobConfig, world: int, device: torch.device) -> Wrap:
    """Return a function that moves a model to the device and, with several workers, wraps it in DDP or shards it."""

    def wrap(model: SetRecModel) -> nn.Module:
        if config.cluster.sharding == "fsdp" and dist.is_initialized():
            return distributed.shard(model, device.type)
        moved = cast(nn.Module, model).to(device)
        if world == 1:
            return moved
        # Without a reconstruction term the autoencoder's decoder has no gradient, for which DDP would wait by default.
        idle = not config.loss.alpha
        ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(moved, device_ids=ids, find_unused_parameters=idle)

    return wrap


def work(
    run: Run,
    config: JobConfig,
    rank: int,
    world: int,
    device: torch.device,
    *,
    refit: bool = False,
    on_step: OnStep = lambda trainer, done: None,
    on_epoch: OnEpoch = lambda record: None,
) -> Trainer:
    """Train to the end, from the newest checkpoint if there is one; the process group exists if ``world`` > 1.
    ``refit``: train on validation events too, after ``run.model`` (:func:`refit_trainer`).

    Raises:
        DataError, ConfigError: data, features or checkpoint cannot be used.
        CheckpointStoreError: checkpoints could not be stored or fetched for longer than allowed.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    on_device = wrapper(config, world, device)
    if refit:
        trainer = refit_trainer(SetRecModel.from_pretrained(run.model), run, config, rank, world, on_device)
    else:
        trainer = trainer_of(run, config, rank, world, on_device)
    store = store_of(run, config, refit=refit)
    _resume(trainer, store)
    with scratch(SCRATCH) as place, CheckpointWriter(store) if rank == 0 else nullcontext() as writer:

        def checkpoint() -> None:
            folder = Path(tempfile.mkdtemp(dir=place))
            trainer.save(folder)
            if writer is None:
                folder.rmdir()
            else:
                writer.hand_over(folder, checkpoint_name(trainer))

        while not trainer.finished:
            record = trainer.epoch(partial(on_step, trainer), checkpoint)
            checkpoint()
            on_epoch(record)
    return trainer


def store_of(run: Run, config: JobConfig, *, refit: bool = False) -> CheckpointStore:
    """Return the store of the run's checkpoints, of its training or of its refit."""
    where = config.cluster.storage
    where = str(run.checkpoints) if where is None else storage.join(where, run.root.resolve().name)
    where = storage.join(where, "refit") if refit else where
    return CheckpointStore(where, patience=config.cluster.storage_patience, keep=config.cluster.checkpoints)


def checkpoint_name(trainer: Trainer) -> str:
    """Return a name that sorts in the order of training."""
    return f"{trainer.progress.epoch:06d}-{trainer.progress.position.step:09d}"


def _resume(trainer: Trainer, store: CheckpointStore) -> None:
    """Load the newest undamaged checkpoint on every worker; worker 0 chooses it."""
    with scratch(SCRATCH) as place:
        folder = place / "checkpoint"
        name = store.latest(folder) if trainer.rank == 0 else None
        if trainer.world > 1:
            chosen = _agreed(name or "", trainer.model.device)
            if chosen and trainer.rank:
                store.fetch(chosen, folder)
            name = chosen or None
        if name is not None:
            trainer.load(folder)


def _agreed(name: str, device: torch.device) -> str:
    """Return the name that worker 0 chose, on every worker."""
    said = torch.zeros(NAME_BYTES, dtype=torch.uint8)
    said[: len(name)] = torch.tensor(list(name.encode()), dtype=torch.uint8)
    said = said.to(device)
    dist.broadcast(said, src=0)
    return bytes(said.cpu().tolist()).rstrip(b"\0").decode()
