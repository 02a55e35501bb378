"""Training all positions of a user in one pass against one sample per prefix: next-item targets per second.

Same model (Qwen3 backbone of size ``small``, five slots, a token per slot), same loss, same targets, same number of
targets per optimiser step. Histories have lengths like those of Amazon Beauty (mean 7) and of Steam (mean 35). Two
opponents: prefixes shuffled and padded to the longest of their batch, as published code trains, and prefixes sorted by
length first, which nobody publishes but which is the best that one sample per prefix can do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from harness import measure, median, print_table, write_results

from setrec.models.item_tokens import ItemFeatures
from setrec.models.setrec_model import SetRecModel
from setrec.models.settings import BackboneSettings, ModelSettings
from setrec.ragged import Ragged
from setrec.training import batches
from setrec.training.batches import Batch
from setrec.training.settings import ObjectiveSettings, TrainingSettings
from setrec.training.stream import Position, Step
from setrec.training.trainer import Trainer

ITEMS, MAX_ITEMS = 2_000, 100


def histories(mean: float, median: float, users: int, seed: int = 0) -> Ragged:
    """Log-normal lengths with the given mean and median, at least 3 items, at most ``MAX_ITEMS`` + 1."""
    rng = np.random.default_rng(seed)
    sigma = np.sqrt(2 * np.log(mean / median))
    lengths = np.clip(rng.lognormal(np.log(median), sigma, users).round().astype(int), 3, MAX_ITEMS + 1)
    return Ragged.of([rng.integers(0, ITEMS, n) for n in lengths])


def trainer(rows: Ragged, targets: int) -> Trainer:
    """The same freshly initialised model and optimiser at every call."""
    rng = np.random.default_rng(0)
    features = ItemFeatures(
        trained=np.ones(ITEMS, dtype=bool),
        collaborative=rng.normal(size=(ITEMS, 64)).astype(np.float32),
        text=rng.normal(size=(ITEMS, 384)).astype(np.float32),
    )
    torch.manual_seed(0)
    settings = ModelSettings(
        backbone=BackboneSettings(size="small"), history="set", max_items=MAX_ITEMS, instruction=15
    )
    model = SetRecModel.build(settings, features)
    training = TrainingSettings(targets_per_batch=targets, precision="float32")
    return Trainer(model, rows, lambda _: [0.0], training, ObjectiveSettings.paper())


def spread(epoch: Sequence[Batch], count: int) -> list[Batch]:
    """``count`` batches evenly spaced over an epoch ordered by padded size, so that a few stand for all."""
    ordered = sorted(epoch, key=lambda b: b.items.size)
    return [ordered[i] for i in np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)]


def variants(rows: Ragged, targets: int, steps: int) -> dict[str, Callable[[], float]]:
    """Each variant trains a few steps and returns targets per second."""
    plan = {
        "one pass": batches.one_pass(rows, MAX_ITEMS, targets, np.random.default_rng(0)),
        "per prefix, shuffled": batches.per_prefix(rows, MAX_ITEMS, targets, np.random.default_rng(0)),
        "per prefix, by length": batches.per_prefix(rows, MAX_ITEMS, targets, np.random.default_rng(0), by_length=True),
    }

    def timed(epoch: Sequence[Batch]) -> Callable[[], float]:
        worker, chosen = trainer(rows, targets), spread(epoch, steps)

        def run() -> float:
            worker.wrapped.train()
            began = time.perf_counter()
            for batch in chosen:
                worker._step(Step([batch], batch.count, float(batch.count), 0.0, 0.0, Position()))
            return sum(b.count for b in chosen) / (time.perf_counter() - began)

        return run

    return {name: timed(epoch) for name, epoch in plan.items()}


def main() -> None:
    """Print a table for short and for long histories, and write the ratios."""
    figures: dict[str, float] = {}
    # A step of one sample per prefix over long histories takes a minute and 17 GB at 128 targets: fewer of both.
    cases = (("short", 7.0, 5.5, 3000, 128, 4, 3), ("long", 35.0, 25.0, 600, 64, 2, 1))
    for name, mean, middle, users, targets, steps, repeats in cases:
        rows = histories(mean, middle, users)
        found = measure(variants(rows, targets, steps), repeats)
        average = rows.lengths.mean()
        print_table(f"Training, histories of mean length {average:.1f}", "targets/s", found, "per prefix, shuffled")
        ours = median(found["one pass"])
        figures[f"one_pass_over_per_prefix_{name}"] = ours / median(found["per prefix, shuffled"])
        figures[f"one_pass_over_sorted_prefixes_{name}"] = ours / median(found["per prefix, by length"])
        figures[f"one_pass_targets_per_second_{name}"] = ours
        figures[f"mean_length_{name}"] = float(average)
    write_results("one_pass", figures)


if __name__ == "__main__":
    main()
