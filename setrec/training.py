"""The training loop: a library function that knows nothing of clusters; ``pipelines.train`` runs it under Ray Train."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from setrec import batches, objective
from setrec.errors import ConfigError
from setrec.model import SetRecModel
from setrec.objective import ObjectiveSettings
from setrec.precision import Precision, autocast
from setrec.ragged import Ragged
from setrec.settings import Settings


class TrainingSettings(Settings):
    """How the recommender is trained.

    ``targets_per_batch``: next-item targets per optimiser step over all workers (memory grows with it times the
    catalogue). ``patience``: epochs without a better validation NDCG@10 before training stops. ``warmup``: share of all
    steps. ``samples``: ``one_pass`` trains all targets of a window at once, ``per_prefix`` one row per target (the
    same loss, several times slower; kept as the reference).
    """

    epochs: int = 20
    patience: int = 5
    targets_per_batch: int = 2048
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip: float = 1.0
    samples: Literal["one_pass", "per_prefix"] = "one_pass"
    reconstructed_items: int = 1024
    precision: Precision = "auto"
    seed: int = 42


@dataclass
class Progress:
    """Where a run stands after an epoch; all that a resumed run needs beside weights and optimiser."""

    epoch: int = 0
    step: int = 0
    best: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)

    def exhausted(self, settings: TrainingSettings) -> bool:
        """Whether training is over."""
        return self.epoch >= settings.epochs or self.epoch - self.best_epoch >= settings.patience


class Trainer:
    """Model, optimiser and schedule of one worker, advanced an epoch at a time.

    Args:
        model: the recommender; ``wrap`` puts DDP around it where there are several workers.
        histories: training histories, the same on every worker; each step's rows are dealt out by rank.
        evaluate: validation NDCG@10 of the model, called on rank 0 after every epoch.
    """

    def __init__(
        self,
        model: SetRecModel,
        histories: Ragged,
        evaluate: Callable[[SetRecModel], float],
        training: TrainingSettings,
        loss: ObjectiveSettings,
        *,
        rank: int = 0,
        world: int = 1,
        wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    ) -> None:
        self.model, self.histories, self.evaluate = model, histories, evaluate
        self.settings, self.loss, self.rank, self.world = training, loss, rank, world
        self.wrapped = wrap(model)
        self.parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        decay = [p for _, p in self.parameters if p.ndim > 1]
        plain = [p for _, p in self.parameters if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": training.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=training.learning_rate,
        )
        self.steps_per_epoch = len(self._batches(0))
        self.progress = Progress()
        self.best_weights: dict[str, Tensor] = {}

    def _batches(self, epoch: int) -> list[batches.Batch]:
        rng = np.random.default_rng([self.settings.seed, epoch])
        make = batches.one_pass if self.settings.samples == "one_pass" else batches.per_prefix
        return list(make(self.histories, self.model.config.max_items, self.settings.targets_per_batch, rng))

    def _rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to zero at the last epoch."""
        total = self.steps_per_epoch * self.settings.epochs
        warm = max(1, int(self.settings.warmup * total))
        share = min(1.0, max(0.0, (step - warm) / max(1, total - warm)))
        return self.settings.learning_rate * (
            min(1.0, (step + 1) / warm) if step < warm else 0.5 + 0.5 * math.cos(math.pi * share)
        )

    def epoch(self, on_step: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        """Train one epoch and validate; returns epoch, loss per target, validation NDCG@10 and seconds."""
        began, number = time.perf_counter(), self.progress.epoch
        # Seeded by epoch, so that a resumed run draws the same dropout and the same items as an unbroken one.
        torch.manual_seed(self.settings.seed * 100_003 + number)
        self.wrapped.train()
        todo = self._batches(number)
        summed, count = 0.0, 0
        for index, batch in enumerate(todo):
            summed += self._step(batch) * batch.count
            count += batch.count
            if on_step is not None:
                on_step(index + 1, len(todo))
        ndcg = self._validate()
        self.progress.epoch = number + 1
        self.progress.seconds += time.perf_counter() - began
        if ndcg > self.progress.best:
            self.progress.best, self.progress.best_epoch = ndcg, number + 1
            self.best_weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        record = {
            "epoch": number + 1,
            "epochs": self.settings.epochs,
            "loss": self._mean_over_workers(summed / max(1, count)),
            "ndcg@10": ndcg,
            "seconds": round(self.progress.seconds, 3),
            "targets": count,
        }
        self.progress.curve.append(record)
        return record

    def _step(self, batch: batches.Batch) -> float:
        device = self.model.device
        mine = batch.shard(self.rank, self.world)
        items, visible, targets = (torch.from_numpy(x).to(device) for x in (mine.items, mine.visible, mine.targets))
        rows = torch.randint(self.model.config.items, (self.settings.reconstructed_items,)).to(device)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(self.progress.step)
        with autocast(device, self.settings.precision):
            terms = self.wrapped(items, visible, targets, self.loss, rows)
            # DDP averages gradients over workers while the terms are sums over all targets of the step.
            value = objective.total(terms, self.loss, batch.count / self.world)
        value.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in self.parameters], self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        return float(value.detach())

    def _validate(self) -> float:
        self.model.eval()
        value = torch.tensor([self.evaluate(self.model) if self.rank == 0 else 0.0], dtype=torch.float64)
        if self.world > 1:
            value = value.to(self.model.device)
            dist.broadcast(value, src=0)
        return float(value)

    def _mean_over_workers(self, value: float) -> float:
        """Each worker sees its own rows' loss only, scaled so that the mean over workers is the loss of all rows."""
        if self.world == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64, device=self.model.device)
        dist.all_reduce(total)
        return float(total) / self.world

    def save(self, folder: Path) -> None:
        """Write weights, best weights, optimiser and progress into ``folder`` (safetensors and JSON)."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().clone() for k, v in self.model.state_dict().items()}, folder / "weights.safetensors")
        save_file(dict(self.best_weights), folder / "best.safetensors")
        moments = {
            f"{key}/{name}": torch.as_tensor(value).contiguous()
            for name, p in self.parameters
            for key, value in self.optimizer.state.get(p, {}).items()
        }
        save_file(moments, folder / "optimizer.safetensors")
        (folder / "progress.json").write_text(json.dumps(asdict(self.progress)))
        for path in folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())

    def load(self, folder: Path) -> None:
        """Continue from what :meth:`save` wrote.

        Raises:
            ConfigError: the checkpoint is incomplete or belongs to a model of another shape.
        """
        try:
            self.model.load_state_dict(load_file(folder / "weights.safetensors"))
            self.best_weights = load_file(folder / "best.safetensors")
            moments = load_file(folder / "optimizer.safetensors")
            self.progress = Progress(**json.loads((folder / "progress.json").read_text()))
        except (OSError, RuntimeError, ValueError, TypeError, SafetensorError) as error:
            raise ConfigError(f"checkpoint '{folder}' cannot be resumed: {str(error).splitlines()[0]}") from error
        for name, p in self.parameters:
            state = {
                key: moments[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}/{name}" in moments
            }
            if state:
                self.optimizer.state[p] = {k: v if k == "step" else v.to(p.device) for k, v in state.items()}

    def restore_best(self) -> SetRecModel:
        """The model with the weights of its best epoch."""
        if self.best_weights:
            self.model.load_state_dict(self.best_weights)
        return self.model.eval()
