"""Training of SASRec."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from setrec.data.catalog import TRAIN, VALID, Histories
from setrec.epochs import Epochs, cosine, scale_learning_rates
from setrec.evaluation import ranking
from setrec.models.sasrec import ItemText, SasRec, scorer
from setrec.models.settings import SasRecSettings
from setrec.precision import autocast
from setrec.ragged import Ragged
from setrec.training import batches
from setrec.training.sampled_softmax import Candidates, LogUniformSampler, sampled_cross_entropy
from setrec.training.softmax import catalogue_cross_entropy


def _epoch(
    model: SasRec,
    rows: Ragged,
    sampler: LogUniformSampler | None,
    optimizer: torch.optim.Optimizer,
    run: Epochs,
    seed: int,
) -> float:
    """Train for an epoch over all targets, or as many as the time allows; return the mean cross-entropy."""
    s, rng = model.settings, np.random.default_rng([seed, run.done + 1])
    plan = batches.one_pass(rows, s.max_items, s.targets_per_batch, rng)
    draws = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    total, count = 0.0, 0
    model.train()
    for index, batch in enumerate(plan):
        done = run.done + index / len(plan)
        warm_up = min(1.0, (done + 1 / len(plan)) / max(s.warmup_epochs, 1e-9))
        scale_learning_rates(optimizer, warm_up * cosine(done / run.epochs))
        loss = batch_loss(model, batch, None if sampler is None else sampler.draw(draws))
        (loss / batch.count).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total, count = total + float(loss.detach()), count + batch.count
        if run.out_of_time:
            break
    return total / max(1, count)


def batch_loss(model: SasRec, batch: batches.Batch, candidates: Candidates | None) -> Tensor:
    """Return the summed cross-entropy of a batch's targets among the ``candidates``, or among all trained items."""
    s, device = model.settings, model.items.weight.device
    items, visible, targets = batch.tensors(device)
    real = targets >= 0
    with autocast(device, s.precision):
        at = (visible - 1).clamp(min=0)[..., None].expand(-1, -1, s.width)
        vectors, targets = torch.gather(model(items), 1, at)[real], targets[real]
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
    """Train on the training parts of the histories with early stopping on validation NDCG@10, and return the model of
    the best epoch, on the CPU.

    Args:
        report: Called after every epoch with epoch, epochs, loss, ndcg@10 and seconds.
        begin: May replace the random initial weights.
        features: Text vectors of the items, float32 (I, w); see :class:`SasRec`.
        seconds: CPU seconds, validation of the last epoch excluded. Once the duration of an epoch is known, as many
            epochs are planned as there is time for, so that the learning rate still falls to zero.
        validate: Replaces NDCG@10 of all validation users, history removed. Without validation items the epoch with the
            lowest training loss is used.
        device: Device of the training.
    """
    torch.manual_seed(seed)
    model = SasRec(items, settings, None if features is None else ItemText.standard(features))
    counts = histories.train_counts(items)
    model.trained.copy_(torch.from_numpy(counts > 0))
    if begin is not None:
        begin(model)
    model.to(device)
    sampler = LogUniformSampler(counts, counts > 0, settings.negatives) if settings.negatives else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    measure = validate or partial(_validation, ranking.Cases.of(histories, VALID))
    run, rows = Epochs(model, settings.epochs, settings.patience, seconds), histories.upto(TRAIN)
    for epoch in run:
        loss = _epoch(model, rows, sampler, optimizer, run, seed)
        value = measure(scorer(model))
        run.finish(-loss if math.isnan(value) else value)
        if seconds < math.inf:
            left = int(max(0.0, seconds - run.seconds) / (run.seconds / epoch))
            run.epochs = min(settings.epochs, epoch + left)
        if report is not None:
            record = {"epoch": epoch, "epochs": run.epochs, "loss": loss, "ndcg@10": value}
            report({**record, "seconds": round(run.seconds, 3)})
    run.restore()
    return model.cpu()


def _validation(cases: ranking.Cases, score: ranking.Scorer) -> float:
    return ranking.mean_metric(score, cases) if len(cases) else math.nan
