"""TIGER (Rajput et al. 2023, arXiv 2305.05065): generation of the codes of the next item.

Codes come from the items' texts (:mod:`residual_codes`), a small T5 reads those of a user's last items and generates
those of the next (:mod:`code_t5`), and beam search finds the most likely items, separately for items with and without
training interactions (:mod:`code_beam`), so that both groups have a ranking. The paper's token of the user is left out,
as it has no meaning for a new user.

To use minutes on a CPU well, by default an item in the encoder attends only to earlier items, so that one pass over a
history trains all its targets, which the paper takes one by one (``sight="both"`` does as the paper does, on a random
``part`` of all prefixes each epoch; in 150 seconds on Amazon Scientific that reached NDCG@10 .037, one pass .053). Rows
of similar length share a batch; bf16 is used if the CPU supports it; the learning rate falls to zero by the end of the
epochs or of the time, whichever is earlier.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pipelines.benchmark.base.problem import Problem
from pipelines.benchmark.base.system import Clock, Fitted, device
from pipelines.benchmark.opponents.code_beam import Forest, beam_search, catalogue_scores
from pipelines.benchmark.opponents.code_t5 import CodeT5, CodeT5Settings
from pipelines.benchmark.opponents.code_writer import CachedWriter
from pipelines.benchmark.opponents.residual_codes import residual_codes
from setrec.epochs import Epochs, cosine, scale_learning_rates
from setrec.errors import ConfigError
from setrec.evaluation import ranking
from setrec.precision import autocast
from setrec.ragged import Ragged
from setrec.settings import Precision
from setrec.training import batches

USERS_AT_ONCE = 64
"""Users in one beam search: enough for matrix products, few enough for the CPU's cache."""


class TigerSettings(CodeT5Settings):
    """Codes, network, training and search. ``part``: share of an epoch's batches that is used; ``patience``: epochs
    without a better validation NDCG@10; ``valid_beams``: width of the search on validation, whose first ten count."""

    levels: int = 3
    codes: int = 256
    epochs: int = 60
    patience: int = 8
    part: float = 1.0
    learning_rate: float = 4e-3
    weight_decay: float = 0.01
    warmup_steps: int = 200
    targets_per_batch: int = 512
    valid_users: int = 1000
    valid_beams: int = 20
    beams: int = 50
    precision: Precision = "auto"


class Tiger:
    """The system (:class:`pipelines.benchmark.base.system.System`)."""

    name = "TIGER"
    random = True
    grid: Sequence[Mapping[str, Any]] = (
        {},
        {"learning_rate": 1.5e-3},
        {"dropout": 0.3},
        {"width": 192, "heads": 6, "hidden": 768, "layers": 3, "learning_rate": 2e-3},
        {"levels": 2},
        {"sight": "both", "part": 0.25},
    )

    def fit(self, problem: Problem, settings: Mapping[str, Any], seed: int, clock: Clock) -> Fitted:
        """Train on the training histories, and keep the best epoch on a sample of the validation users.

        Raises:
            ConfigError: the items have no texts, from which codes are made.
        """
        if problem.text is None:
            raise ConfigError(f"{self.name} makes its codes from texts, and the items of '{problem.name}' have none")
        s = TigerSettings.model_validate(dict(settings))
        clock.report("codes")
        codes = residual_codes(problem.text, s.levels, s.codes)
        torch.manual_seed(seed)
        training = _Training(CodeT5(codes, s).to(device()), s, problem, seed, clock)
        run = training.run
        for epoch in run:
            training.validate(epoch, training.train())
        run.restore()
        chosen = {"epoch": run.best_epoch, "codes": (codes.max(axis=0) + 1).tolist()}
        return Fitted(_scorer(training.model, training.forest, s.max_items, s.beams), chosen, training.curve)


class _Training:
    """A model, its optimizer, and its loop over epochs."""

    def __init__(self, model: CodeT5, s: TigerSettings, problem: Problem, seed: int, clock: Clock) -> None:
        self.model, self.s, self.seed, self.clock = model, s, seed, clock
        self.rows, self.cases = problem.train, problem.valid.sample(s.valid_users, seed)
        self.forest = Forest.of(model.codes.cpu().numpy(), problem.trained, model.codes.device.type)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=s.learning_rate, weight_decay=s.weight_decay)
        self.curve: list[dict[str, Any]] = []
        self.run, self.steps = Epochs(model, s.epochs, s.patience, 60 * clock.minutes - clock.seconds), 0

    def train(self) -> float:
        """Train for an epoch or until the time is used up, but at least one step; return the mean loss."""
        plan, total, count = self._plan(self.run.done + 1), 0.0, 0
        self.model.train()
        for at, batch in enumerate(plan):
            warm_up = min(1.0, (self.steps + 1) / max(1, self.s.warmup_steps))
            scale_learning_rates(self.optimizer, warm_up * cosine(self.run.share(at / len(plan))))
            with autocast(self.model.codes.device, self.s.precision):
                loss = self.model.loss(batch)
            (loss / batch.count).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            total, count, self.steps = total + float(loss.detach()), count + batch.count, self.steps + 1
            if self.run.out_of_time:
                break
        return total / max(1, count)

    def _plan(self, epoch: int) -> batches.Plan:
        """Return a share ``part`` of the batches of an epoch, in random order."""
        s, rng = self.s, np.random.default_rng([self.seed, epoch])
        if s.sight == "causal":
            plan = batches.one_pass(self.rows, s.max_items, s.targets_per_batch, rng)
        else:
            plan = batches.per_prefix(self.rows, s.max_items, s.targets_per_batch, rng, by_length=True)
        return batches.Plan(plan.histories, plan.windows, plan.steps[: math.ceil(s.part * len(plan))])

    def validate(self, epoch: int, loss: float) -> None:
        """End an epoch by its validation NDCG@10, or by its loss without validation users."""
        began = self.run.seconds
        score = _scorer(self.model, self.forest, self.s.max_items, self.s.valid_beams)
        value = ranking.mean_metric(score, self.cases) if len(self.cases) else math.nan
        self.run.reserve = self.run.seconds - began  # for the next validation
        self.run.finish(value if len(self.cases) else -loss)
        self.curve.append({"epoch": epoch, "seconds": round(self.clock.seconds, 3), "loss": loss, "ndcg@10": value})
        self.clock.report(f"epoch {epoch}, ndcg@10 {value:.4f}")


def _scorer(model: CodeT5, forest: Forest, max_items: int, beams: int) -> ranking.Scorer:
    """Return a scorer: log probabilities (b, I) of the items in the beams, minus infinity for all others."""

    @torch.inference_mode()
    def score(history: Ragged) -> np.ndarray:
        model.eval()
        scores = np.empty((len(history), len(forest.items)), dtype=np.float32)
        # Rows of similar length share a search, which saves padding.
        order = np.argsort(np.minimum(history.lengths, max_items), kind="stable")
        for start in range(0, len(order), USERS_AT_ONCE):
            rows = order[start : start + USERS_AT_ONCE]
            read = history.take(rows).pad(max_items)
            items, lengths = (torch.from_numpy(x).long().to(model.codes.device) for x in read)
            best = beam_search(CachedWriter(model, items, lengths), forest, beams)
            scores[rows] = catalogue_scores(*best, len(forest.items)).cpu().numpy()
        return scores

    return score
