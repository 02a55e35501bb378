"""Fine-tuning of a sentence encoder's upper layers on the next items of training histories."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from setrec.data.catalog import TRAIN, VALID, Histories
from setrec.epochs import Epochs, cosine, scale_learning_rates
from setrec.evaluation import ranking
from setrec.precision import autocast
from setrec.ragged import Ragged
from setrec.rows import top_k
from setrec.training.encoder.two_towers import TowerStep, TwoTowers, latest
from setrec.training.settings import EncoderTuningSettings

NEIGHBOURS = 20
"""Number of nearest texts of which a target's hard negative is one."""
_RATE = 1e-2
"""Learning rate of the recency weights and the temperature."""
_WARM_UP = 0.1
"""Share of training in which learning rates rise."""
_VALIDATION_USERS = 5000


def fine_tune(
    towers: TwoTowers,
    histories: Histories,
    settings: EncoderTuningSettings,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train on the training parts of the histories, with early stopping on validation recall@10; ``towers`` then have
    the weights of the best epoch, or those from before if no epoch is better.

    Events count alike. Without validation items the epoch with the lowest loss is used. Returns recall@10 and NDCG@10
    ``before`` and ``after``, ``best_epoch``, and the records of ``epochs`` that ``report`` got.
    """
    torch.manual_seed(settings.seed)
    steps = _TowerSteps(towers, histories, settings)
    learned = [*(p for p in towers.items.parameters() if p.requires_grad), towers.residual.weight]
    few = {"params": [towers.recency, towers.sharpness], "lr": _RATE, "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([{"params": learned, "lr": settings.learning_rate}, few], weight_decay=0.01)
    cases = ranking.Cases.of(histories, VALID, _VALIDATION_USERS, settings.seed)
    run, loss = Epochs(towers, settings.epochs + 1, settings.patience), math.inf
    records: list[dict[str, Any]] = []
    for epoch in run:
        if epoch > 1:  # the first one changes nothing
            loss = _epoch(towers, steps, optimizer, run, settings)
        found = measure(towers, cases)
        run.finish(found["recall@10"] if len(cases) else -min(loss, 1e9))  # a value of -inf is no best one
        records.append({"epoch": epoch - 1, "epochs": settings.epochs, "loss": loss, **found})
        if report is not None and epoch > 1:
            report(records[-1])
    run.restore()
    before, after = ({name: records[at][name] for name in found} for at in (0, run.best_epoch - 1))
    return {"before": before, "after": after, "best_epoch": run.best_epoch - 1, "epochs": records[1:]}


def measure(towers: TwoTowers, cases: ranking.Cases) -> dict[str, float]:
    """Return recall@10 and NDCG@10 of ``cases`` over all items, history removed; 0 without cases."""
    metrics, every = ("recall@10", "ndcg@10"), np.ones(len(towers.items.text_of), dtype=bool)
    if not len(cases):
        return dict.fromkeys(metrics, 0.0)
    found = ranking.evaluate(towers.scorer(), cases, [ranking.Group("all", every, every)], ks=(10,))
    return {metric: found.mean(metric) for metric in metrics}


def _epoch(
    towers: TwoTowers, steps: _TowerSteps, optimizer: torch.optim.Optimizer, run: Epochs, s: EncoderTuningSettings
) -> float:
    """Train for an epoch; return the mean loss."""
    losses, device = list[float](), towers.recency.device
    towers.eval()  # no dropout: early stopping suffices for so few steps
    for index, step in enumerate(steps.epoch(np.random.default_rng([s.seed, run.done]))):
        done = (run.done - 1 + index / len(steps)) / s.epochs
        scale_learning_rates(optimizer, min(1.0, (done + 1 / (len(steps) * s.epochs)) / _WARM_UP) * cosine(done))
        texts = np.unique(np.concatenate([step.read[step.read >= 0], step.targets, step.negatives]))
        with autocast(device, "auto"):
            vectors = towers.items(texts)
        loss = towers.loss(step, vectors, texts)
        drift = 1 - (vectors * torch.from_numpy(towers.items.original[texts]).to(device)).sum(dim=1).mean()
        (loss + s.drift_penalty * drift).backward()
        torch.nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    return float(np.mean(losses)) if losses else math.nan


class _TowerSteps:
    """The steps of an epoch: ``users`` histories each, with up to ``positions`` targets of each."""

    def __init__(self, towers: TwoTowers, histories: Histories, settings: EncoderTuningSettings) -> None:
        rows, items = histories.upto(TRAIN), towers.items
        self.settings, self.rows = settings, Ragged(items.text_of[rows.values], rows.offsets)
        self.users = np.flatnonzero(self.rows.lengths > 1)
        counts = np.bincount(self.rows.values, minlength=len(items.original))
        trained = np.flatnonzero(counts)
        near = min(NEIGHBOURS, len(trained) - 1) if settings.hard_negatives else 0
        self.nearest = np.zeros((len(counts), max(1, near)), dtype=np.int64)
        self.share = counts / max(1, counts.sum())
        """Expected number of times that a target draws each text: as itself, or as its hard negative."""
        if near > 0:
            self.nearest[trained] = trained[_nearest(items.original[trained], near)]
            drawn = np.repeat(settings.hard_negatives / near * self.share[trained], near)
            self.share += np.bincount(self.nearest[trained].ravel(), drawn, minlength=len(counts))

    def __len__(self) -> int:
        return -(-len(self.users) // self.settings.users)

    def epoch(self, rng: np.random.Generator) -> Iterator[TowerStep]:
        """Yield the steps of one epoch that have targets."""
        order = rng.permutation(self.users)
        for start in range(0, len(order), self.settings.users):
            step = self._step(self.rows.take(order[start : start + self.settings.users]), rng)
            if len(step.targets):
                yield step

    def _step(self, own: Ragged, rng: np.random.Generator) -> TowerStep:
        user, key = own.row_of_value, rng.random(len(own.values))
        key[own.offsets[:-1]] = np.inf  # the first item is no target
        order = np.lexsort((key, user))
        few = np.arange(len(user)) - own.offsets[user] < self.settings.positions
        at = np.sort(order[few & np.isfinite(key[order])])
        read = latest(own, user[at], at, self.settings.latest)
        new = (read != own.values[at][:, None]).all(axis=1)  # items read are no targets, as histories are removed
        targets, user, read = own.values[at][new], user[at][new], read[new]
        with np.errstate(divide="ignore"):
            log_counts = np.log(-np.expm1(-len(targets) * self.share)).astype(np.float32)
        return TowerStep(own, user, read, targets, self._hard(own, targets, user, rng), log_counts)

    def _hard(self, own: Ragged, targets: np.ndarray, user: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return texts near to some of the targets that are not in the history of the target's user."""
        some = rng.permutation(len(targets))[: round(self.settings.hard_negatives * len(targets))]
        near, total = self.nearest[targets[some]], len(self.share)
        free = ~np.isin(user[some][:, None] * total + near, own.row_of_value * total + own.values)
        chosen = np.take_along_axis(near, (rng.random(near.shape) * free).argmax(axis=1)[:, None], axis=1)
        return np.unique(chosen[free.any(axis=1)])


def _nearest(vectors: np.ndarray, count: int) -> np.ndarray:
    """Return the ``count`` rows nearest to each row of ``vectors`` (n, w) other than itself, (n, count)."""
    parts = []
    for start in range(0, len(vectors), 1024):
        scores = vectors[start : start + 1024] @ vectors.T
        np.fill_diagonal(scores[:, start:], -np.inf)
        parts.append(top_k(scores, count))
    return np.concatenate(parts)
