"""Training of SASRec, epoch by epoch: the losses, the learning rate, and the time that it may take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from setrec.data.catalog import TRAIN, VALID, Histories
from setrec.evaluation import ranking
from setrec.models.sasrec import ItemText, SasRec, scorer
from setrec.models.settings import SasRecSettings
from setrec.precision import autocast
from setrec.training import batches
from setrec.training.sampled_softmax import Candidates, LogUniformSampler, sampled_cross_entropy
from setrec.training.softmax import catalogue_cross_entropy


class SasRecTrainer:
    """One training: what was ``done``, and how many ``epochs`` are planned."""

    def __init__(self, model: SasRec, histories: Histories, seed: int, limit: float) -> None:
        s = model.settings
        self.model, self.rows, self.seed, self.limit = model, histories.upto(TRAIN), seed, limit
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=s.learning_rate, weight_decay=s.weight_decay)
        counts = histories.train_counts(len(model.trained))
        self.sampler = LogUniformSampler(counts, counts > 0, s.negatives) if s.negatives else None
        self.done, self.epochs, self.began = 0, s.epochs, time.process_time()

    @property
    def seconds(self) -> float:
        """CPU seconds of this process since the start, so that a limit means the same beside other work."""
        return time.process_time() - self.began

    @property
    def goes_on(self) -> bool:
        """Whether another epoch is planned and begins in time; the first always is."""
        return self.done < self.epochs and (self.done == 0 or self.seconds < self.limit)

    def plan(self) -> None:
        """No more epochs than the time is enough for, at the pace so far."""
        if self.limit < math.inf:
            left = int(max(0.0, self.limit - self.seconds) / (self.seconds / self.done))
            self.epochs = min(self.model.settings.epochs, self.done + left)

    def epoch(self) -> float:
        """One epoch over all targets, or over as many as the time is enough for; returns the mean cross-entropy."""
        s, rng = self.model.settings, np.random.default_rng([self.seed, self.done + 1])
        plan = batches.one_pass(self.rows, s.max_items, s.targets_per_batch, rng)
        draws = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        summed, count = 0.0, 0
        self.model.train()
        for index, batch in enumerate(plan):
            for group in self.optimizer.param_groups:
                group["lr"] = s.learning_rate * self._rate(self.done + index / len(plan), len(plan))
            loss = batch_loss(self.model, batch, None if self.sampler is None else self.sampler.draw(draws))
            (loss / batch.count).backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            summed, count = summed + float(loss.detach()), count + batch.count
            if self.seconds >= self.limit:
                break
        self.done += 1
        return summed / max(1, count)

    def _rate(self, done: float, steps: int) -> float:
        """Linear warm-up, then the cosine's way to zero at the last planned epoch."""
        up = min(1.0, (done + 1 / steps) / max(self.model.settings.warmup_epochs, 1e-9))
        return up * (0.5 + 0.5 * math.cos(math.pi * min(1.0, done / self.epochs)))


def batch_loss(model: SasRec, batch: batches.Batch, candidates: Candidates | None) -> Tensor:
    """Summed cross-entropy of a batch's targets among the ``candidates``, or all trained items."""
    s, device = model.settings, model.items.weight.device
    items, visible, targets = batch.tensors(device)
    asked = targets >= 0
    with autocast(device, s.precision):
        at = (visible - 1).clamp(min=0)[..., None].expand(-1, -1, s.width)
        vectors, targets = torch.gather(model(items), 1, at)[asked], targets[asked]
        if candidates is None:
            rows = model.trained.nonzero()[:, 0]
            return catalogue_cross_entropy(vectors, model.vectors(rows), torch.searchsorted(rows, targets))
        drawn_rows, log_counts = candidates.rows.to(device), candidates.log_counts.to(device)
        rows = torch.unique(torch.cat([drawn_rows, targets]))
        drawn = Candidates(torch.searchsorted(rows, drawn_rows), log_counts)
        return sampled_cross_entropy(vectors, model.vectors(rows), torch.searchsorted(rows, targets), drawn)


def train_sasrec(
    histories: Histories,
    items: int,
    settings: SasRecSettings,
    *,
    report: Callable[[dict[str, Any]], None] | None = None,
    seed: int = 42,
    begin: Callable[[SasRec], object] | None = None,
    features: np.ndarray | None = None,
    seconds: float = math.inf,
    validate: Callable[[ranking.Scorer], float] | None = None,
    device: str = "cpu",
) -> SasRec:
    """Train on the training parts of the histories, stop early on validation NDCG@10, return the best epoch.

    ``report`` is told epoch, epochs, loss, ndcg@10 and seconds after every epoch. Without validation items (NDCG@10
    is then NaN) the epoch of the lowest training loss is taken. ``begin`` may give the new model other weights than
    random ones. ``features``, float32 (I, w), are texts of the items (see :class:`SasRec`).

    ``seconds`` end training wherever it is, with a last look at validation; once an epoch's time is known, as many
    epochs are planned as it allows, so that the learning rate still comes down to zero. ``validate`` replaces
    validation on all users, history removed. ``device`` is where it trains; the model that is returned is
    on the processor.
    """
    torch.manual_seed(seed)
    model = SasRec(items, settings, None if features is None else ItemText.standard(features))
    model.trained.copy_(torch.from_numpy(histories.trained(items)))
    if begin is not None:
        begin(model)
    model.to(device)
    measure = validate or partial(_validation, ranking.Cases.of(histories, VALID))
    run = SasRecTrainer(model, histories, seed, seconds)
    best, best_epoch, kept = -math.inf, 0, {}
    while run.goes_on and run.done - best_epoch < settings.patience:
        loss = run.epoch()
        value = measure(scorer(model))
        if (goal := -loss if math.isnan(value) else value) > best:
            best, best_epoch, kept = goal, run.done, {k: v.detach().clone() for k, v in model.state_dict().items()}
        run.plan()
        if report is not None:
            told = {"epoch": run.done, "epochs": run.epochs, "loss": loss, "ndcg@10": value}
            report({**told, "seconds": round(run.seconds, 3)})
    model.load_state_dict(kept)
    return model.cpu().eval()


def _validation(cases: ranking.Cases, score: ranking.Scorer) -> float:
    return ranking.mean_metric(score, cases) if len(cases) else math.nan
