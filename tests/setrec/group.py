"""Trains as one of several processes.

A tiny model on users who walk a ring; a checkpoint in FOLDER is gone on from. Leaves ``curve.json``, ``weights`` and
the checkpoint there.
"""

import json
import os
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from small_models import ITEMS, small_model
from torch.nn.parallel import DistributedDataParallel

from setrec.data.offsets import Offsets
from setrec.models.item_tokens import ItemFeatures
from setrec.ragged import Ragged
from setrec.training import distributed
from setrec.training.settings import ObjectiveSettings, TrainingSettings
from setrec.training.trainer import Trainer


def features() -> ItemFeatures:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(ITEMS, 16)).astype(np.float32)
    return ItemFeatures(np.ones(ITEMS, dtype=bool), table, rng.normal(size=(ITEMS, 12)).astype(np.float32))


def histories() -> Ragged:
    rng = np.random.default_rng(0)
    return Ragged.of([(s + np.arange(int(rng.integers(3, 12)))) % ITEMS for s in rng.integers(0, ITEMS, 40)])


def offsets(rows: Ragged) -> Offsets:
    """An offset for the target and the item after it at two of three positions, so that some workers have none."""
    position = np.arange(len(rows.values))
    bounds = np.stack([2 * position, 2 * position + 2 * (position % 3 > 0)], axis=1)
    items = np.stack([rows.values, (rows.values + 1) % ITEMS], axis=1).astype(np.int32)
    values = np.tile(np.float16([1.0, 2.0]), len(position))
    return Offsets(bounds, items.ravel(), values, rows.offsets[[0, -1]])


def score(model) -> list[float]:
    """Something that depends on the model and on all workers taking part: the mean answer to a fixed history."""
    return [float(model.answers(Ragged.of([[1, 2, 3], [4, 5]])).abs().mean())]


def trainer(rank: int, world: int, shard: str, family: str = "qwen3", **options) -> Trainer:
    def wrap(model):
        if shard == "fsdp":
            return distributed.shard(model, "cpu")
        return DistributedDataParallel(model) if world > 1 else model

    settings = {"epochs": 3, "patience": 3, "targets_per_batch": 64, "precision": "float32", **options}
    model = small_model(features(), family, "fused", max_items=8, dropout=0.0, offset=True)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    return Trainer(
        model,
        histories(),
        score,
        TrainingSettings(**settings),
        ObjectiveSettings(alpha=0.5, slots=0.2),
        rank=rank,
        world=world,
        wrap=wrap,
        offsets=offsets(histories()),
    )


def train(rank: int, world: int, shard: str, folder: Path, epochs: int, family: str, **options) -> Trainer:
    worker = trainer(rank, world, shard, family, **options)
    if (folder / "progress.json").exists():
        worker.load(folder)
    while worker.progress.epoch < epochs:
        worker.epoch(on_checkpoint=lambda: worker.save(folder))
    worker.save(folder)
    return worker


def member(
    rank: int, world: int, meeting: Path, shard: str, folder: Path, until: int = 3, family: str = "qwen3", **options
) -> None:
    """One process of ``world`` that meet at the file ``meeting``; ends it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    worker = train(rank, world, shard, folder, until, family, **options)
    if rank == 0:
        (folder / "curve.json").write_text(json.dumps(worker.progress.curve))
    dist.barrier()  # nobody goes while another still sends
    dist.destroy_process_group()
    # FSDP's mesh keeps the group alive, and gloo's threads may ask for the interpreter while it is torn down, which
    # ends the process with SIGABRT; there is nothing left to tear down here.
    os._exit(0)
