"""The training loop, independent of clusters; ``pipelines.training.train`` runs it under Ray Train.

A step is a pure function of the seed, the position (epoch, step) and the weights: its targets (see
``setrec.training.stream``), sampled items and dropout. An interrupted run therefore resumes with the same results, with
any number of workers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from setrec.data.offsets import Offsets
from setrec.data.source import HistorySource, MemorySource, item_counts
from setrec.epochs import cosine, scale_learning_rates
from setrec.errors import ConfigError
from setrec.models.setrec_model import SetRecModel
from setrec.optimizer import adamw, backbone_share
from setrec.precision import autocast
from setrec.prefetch import Prefetched
from setrec.ragged import Ragged
from setrec.training import checkpoints, distributed, losses
from setrec.training.batches import Batch
from setrec.training.progress import Progress
from setrec.training.sampled_softmax import Candidates, LogUniformSampler
from setrec.training.settings import ObjectiveSettings, TrainingSettings
from setrec.training.stream import Step, Stream

READY_STEPS = 4
"""Number of steps prepared in advance; each is a few small integer arrays."""
BEHIND = 0.05
"""Minimum excess of the share of time used over the share of epochs done for the learning rate to follow the time: a
run that ends by its epochs then does not depend on its time limit."""
CLOCK_STEPS = 10
"""Steps between two checks of the clock, on which workers have to agree."""


class Trainer:
    """Model, optimiser and schedule of one worker, advanced an epoch at a time.

    Args:
        model: the recommender; ``wrap`` puts DDP around it, or shards it, where there are several workers.
        histories: training histories, the same on every worker; each step's rows are dealt out by rank.
        evaluate: validation NDCG@10 of the model, which may be followed by that of each leg; called on every worker
            after every epoch, worker 0's values are used. Each leg keeps its best epoch. Without it the last epoch is
            the best, of each leg that of ``stops``, if given.
        stops: number of epochs to train each leg for, without ``evaluate``; the schedule is that of the settings.
        counts: training interactions of each item (I,); by default computed if a sampled softmax needs them.
        offsets: fixed parts of the logits at the positions of the histories, for a model with an ``offset_scale``.
        words: shares of the items' key words, float32 (I, V), for a model that predicts them.
        spent: returns the used share of a time limit: the learning rate falls with it, and an epoch may end after any
            step. For a single worker only, as the clocks of several would differ.
    """

    def __init__(
        self,
        model: SetRecModel,
        histories: Ragged | HistorySource,
        evaluate: Callable[[SetRecModel], Sequence[float]] | None,
        training: TrainingSettings,
        loss: ObjectiveSettings,
        *,
        rank: int = 0,
        world: int = 1,
        wrap: Callable[[SetRecModel], nn.Module] = lambda module: module,
        counts: np.ndarray | None = None,
        offsets: Offsets | None = None,
        words: sp.csr_matrix | None = None,
        stops: Sequence[int] | None = None,
        spent: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.model, self.evaluate, self.stops, self.spent = model, evaluate, stops, spent
        self.settings, self.loss, self.rank, self.world, self.words = training, loss, rank, world, words
        source = MemorySource(histories) if isinstance(histories, Ragged) else histories
        if training.recompute:
            model.backbone.recompute()
        self.wrapped = wrap(model)
        self.parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.of_legs: list[list[nn.Parameter]] = [[] for _ in model.legs]
        for name, p in self.parameters:
            self.of_legs[model.leg_of(name)].append(p)
        share = training.backbone_share
        if share is None:
            share = backbone_share(pretrained=model.config.word_scale is not None, lora=bool(model.config.lora))
        self.optimizer = adamw(
            (
                (p, share if name.startswith("backbone.") else 1.0, _weight_decay(model, name, training))
                for name, p in self.parameters
            ),
            training.learning_rate,
        )
        self.stream = Stream(
            source, model.max_items, training.targets_per_batch, training.seed, training.samples,
            training.shuffle_shards, training.accumulate, rank, world, offsets,
        )  # fmt: skip
        self.sampler = self._sampler(source, counts)
        self.progress = Progress()
        self.best_weights: dict[str, Tensor] = {}
        self._saved_at = time.perf_counter()

    def _sampler(self, source: HistorySource, counts: np.ndarray | None) -> LogUniformSampler | None:
        items, trained = self.model.config.items, self.model.trained.cpu().numpy()
        eligible = trained if self.loss.negatives == "trained" else np.ones(items, dtype=bool)
        if eligible.sum() <= self.loss.sampled_above:
            return None
        counts = item_counts(source, items) if counts is None else counts
        return LogUniformSampler(counts, eligible, self.loss.samples)

    def epoch(
        self,
        on_step: Callable[[float], None] | None = None,
        on_checkpoint: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """Train the epoch, or the rest of it, and validate.

        ``on_step`` is called after every step with the fractional number of epochs done. ``on_checkpoint`` is called,
        on every worker, when the settings require a checkpoint within the epoch. Returns epoch, loss per target,
        validation NDCG@10 (with ``evaluate``), seconds since training began, targets; tokens per second over all
        workers, the share of them that are padding, and the share of time spent waiting for data.
        """
        progress = self.progress
        progress.start_clock()
        self.wrapped.train()
        with Prefetched(self.stream.steps(progress.epoch, progress.position), READY_STEPS) as steps:
            for step, waited in steps:
                self._note(step, self._step(step), waited)
                if on_step is not None:
                    on_step(progress.epoch + step.after)
                if on_checkpoint is not None and self._due():
                    on_checkpoint()
                if self.spent() >= 1:
                    break
        record = progress.record(progress.over_workers(self.world, self.model.device))
        judged = [] if self.evaluate is None else self._validate(self.evaluate)
        better = progress.judge(judged, len(self.of_legs))
        if self.stops is not None:
            better = [progress.epoch < stop for stop in self.stops]
        if any(better):
            weights = checkpoints.learned(self.model, keep=self.rank == 0)
            self.best_weights |= {name: w for name, w in weights.items() if better[self.model.leg_of(name)]}
        progress.tick()
        record |= {"ndcg@10": judged[0]} if judged else {}
        record |= {"epochs": self.settings.epochs, "seconds": round(progress.seconds, 3)}
        progress.finish(record)
        return record

    def _step(self, step: Step) -> float:
        """Run one optimiser step; return this worker's share of the loss per target (the mean over workers is the
        loss)."""
        s, device, parts = self.settings, self.model.device, len(step.parts) * self.world
        place = (s.seed, self.progress.epoch, step.then.step)
        common = torch.Generator().manual_seed(_seed(*place))
        share = math.ceil(s.reconstructed_items / parts)
        rows = torch.randint(self.model.config.items, (parts, share), generator=common)
        candidates = None if self.sampler is None else Candidates(*(x.to(device) for x in self.sampler.draw(common)))
        scale_learning_rates(self.optimizer, self._schedule(step))
        loss = torch.zeros((), device=device)
        for index, batch in enumerate(step.parts):
            part = self.rank + self.world * index
            torch.manual_seed(_seed(*place, part + 1))
            with distributed.gradient_sync(self.wrapped, index == len(step.parts) - 1):
                loss += self._backward(batch, rows[part], candidates, step.weight / parts) / len(step.parts)
        for parameters in self.of_legs:
            torch.nn.utils.clip_grad_norm_(parameters, s.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss)

    def _backward(self, batch: Batch, rows: Tensor, candidates: Candidates | None, weight: float) -> Tensor:
        """Compute the gradients of one part of a step. Parts are averaged while terms are sums over all targets of the
        step, so each term is divided by the average ``weight`` of a part's targets."""
        device = self.model.device
        items, visible, targets = batch.tensors(device)
        words = None if self.words is None else torch.from_numpy(self.words[rows.numpy()].toarray()).to(device)
        rows = rows.to(device)
        with autocast(device, self.settings.precision, self.model.backbone.width):
            terms = losses.batch_terms(
                self.model, items, visible, targets, self.loss, rows, candidates, wrapped=self.wrapped,
                weights=batch.target_weights(device), offset=batch.offset_tensors(device), words=words,
            )  # fmt: skip
            value = losses.total(terms, self.loss, weight)
        (value / self.settings.accumulate).backward()
        return value.detach()

    def _schedule(self, step: Step) -> float:
        """Return the factor of the learning rate: linear warm-up, then half a cosine to zero at the last epoch, by the
        share of users seen, or at the time limit."""
        s, begun, spent = self.settings, self.progress.epoch, self.spent()
        before, after = ((begun + seen) / s.epochs for seen in (step.before, step.after))
        if spent > before + BEHIND:
            before, after = spent, max(spent, after)
        if before < s.warmup:
            return min(1.0, after / s.warmup)
        return cosine((before - s.warmup) / max(1e-9, 1 - s.warmup))

    def _note(self, step: Step, loss: float, waited: float) -> None:
        m, n = self.model.tokens_per_item, self.model.tokens_per_target
        tokens = [batch.tokens(m, n) for batch in step.parts]
        computed, useful = (sum(of) for of in zip(*tokens, strict=True))
        self.progress.add(loss=loss * step.count, targets=step.count, computed=computed, useful=useful, waited=waited)
        self.progress.add(busy=self.progress.tick())
        self.progress.position = step.then

    def _due(self) -> bool:
        s, done = self.settings, self.progress.position.step
        if s.checkpoint_steps and done % s.checkpoint_steps == 0:
            return True
        if not s.checkpoint_minutes or done % CLOCK_STEPS:
            return False
        late = time.perf_counter() - self._saved_at > 60 * s.checkpoint_minutes
        return bool(distributed.broadcast_from_rank0(float(late), self.world, self.model.device))

    def _validate(self, evaluate: Callable[[SetRecModel], Sequence[float]]) -> list[float]:
        self.model.eval()
        with distributed.unsharded(self.model):
            values = evaluate(self.model)
        return [distributed.broadcast_from_rank0(value, self.world, self.model.device) for value in values]

    def save(self, folder: Path) -> None:
        """Write weights, best weights, optimiser and progress; called on every worker, worker 0 writes ``folder``."""
        progress = self.progress.saved(self.world, self.model.device)
        into = folder if self.rank == 0 else None
        checkpoints.save(into, self.model, self.optimizer, self.best_weights, progress)
        self._saved_at = time.perf_counter()

    def load(self, folder: Path) -> None:
        """Load what :meth:`save` wrote, with any number of workers.

        Raises:
            ConfigError: the checkpoint is incomplete or belongs to a model of another shape.
        """
        self.best_weights, record = checkpoints.load(folder, self.model, self.optimizer)
        try:
            self.progress = Progress.of(record, self.rank, self.world)
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"checkpoint '{folder}' cannot be resumed: its progress is from another version"
            ) from error

    @property
    def finished(self) -> bool:
        """Return whether all epochs are done, or validation has not improved for ``patience`` epochs."""
        epochs = self.settings.epochs if self.stops is None else min(self.settings.epochs, max(self.stops))
        return self.progress.exhausted(epochs, self.settings.patience)

    def restore_best(self) -> SetRecModel:
        """Load the weights of the best epoch, and return the model."""
        if self.best_weights:
            checkpoints.set_weights(self.model, self.best_weights, every=False)
        model: SetRecModel = self.model.eval()
        if self.evaluate is not None:
            model.config.leg_epochs = self.progress.leg_epochs
        return model


def _weight_decay(model: SetRecModel, name: str, training: TrainingSettings) -> float:
    return training.leg_weight_decay if model.leg_of(name) else training.weight_decay


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
