"""Full ranking by compiled counting against comparing tables of scores in torch: seconds, and how many times as fast.

As many users, truths and items as the test part of Amazon Beauty has under the split by time (6,424, 17,579 and
12,024), a third of the items cold, random scores that are there already. Evaluation is of ``all``, ``warm`` and
``cold``, history kept and removed, to metrics of every user; the choice is among 11 weightings of two kinds of slots,
and 66 of three. Torch chooses for 512 of the users, and its seconds are scaled up to all. Both ways return the same:
that is checked first, and warms up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from unittest import mock

import numpy as np
import torch_ranking
from harness import measure, median, print_table, write_results

from setrec.evaluation import ranking
from setrec.ragged import Ragged

USERS, TRUTHS, ITEMS, BATCH = 6_424, 17_579, 12_024, 256
KINDS = ("collaborative", "semantic", "structural")


def problem(seed: int = 0) -> tuple[ranking.Cases, list[ranking.Group]]:
    """Histories of 2 to 16 items and ``TRUTHS`` truths in all."""
    rng = np.random.default_rng(seed)
    lengths = 1 + rng.multinomial(TRUTHS - USERS, np.full(USERS, 1 / USERS))
    truth = Ragged.of([rng.choice(ITEMS, n, replace=False) for n in lengths])
    history = Ragged.of([rng.integers(0, ITEMS, n) for n in rng.integers(2, 17, USERS)])
    return ranking.Cases(np.arange(USERS), history, truth), ranking.warm_cold_groups(rng.random(ITEMS) > 1 / 3)


def tables(kinds: Sequence[str], seed: int = 0) -> dict[str, np.ndarray]:
    """Scores (BATCH, ITEMS) by kind; all batches are given the same, so that none is made on the clock."""
    rng = np.random.default_rng(seed)
    return {kind: rng.standard_normal((BATCH, ITEMS), dtype=np.float32) for kind in kinds}


def seconds(run: Callable[[], object]) -> Callable[[], float]:
    """A variant that returns how long ``run`` takes."""

    def timed() -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    return timed


def by_torch(run: Callable[[], object]) -> Callable[[], object]:
    """``run`` with ranks counted in torch."""

    def opponent() -> object:
        ways = {name: getattr(torch_ranking, name) for name in ("batch_ranks", "weighted_ranks")}
        with mock.patch.multiple(ranking, **ways):
            return run()

    return opponent


def evaluation(cases: ranking.Cases, groups: list[ranking.Group]) -> Callable[[], ranking.PerUser]:
    """All of the evaluation but the scores."""
    scores = tables(KINDS[:1])[KINDS[0]]
    return lambda: ranking.evaluate(lambda history: scores[: len(history)], cases, groups, batch=BATCH)


def choice(cases: ranking.Cases, grid: Sequence[Mapping[str, float]]) -> Callable[[], object]:
    """All of the choice among the weightings of ``grid`` but the scores by kind."""
    scores = tables(list(grid[0]))
    return lambda: ranking.choose_weights(
        lambda history: {kind: table[: len(history)] for kind, table in scores.items()}, cases, grid, batch=BATCH
    )


def main() -> None:
    """Print a table each for the evaluation and the choices, and write seconds and ratios."""
    cases, groups = problem()
    few = cases.sample(2 * BATCH, seed=0)
    tenths = np.arange(11) / 10
    grids = {
        "11": [{KINDS[0]: a, KINDS[1]: 1 - a} for a in tenths],
        "66": [{KINDS[0]: a, KINDS[1]: b, KINDS[2]: 1 - a - b} for a in tenths for b in tenths if a + b < 1.05],
    }
    jobs: dict[str, tuple[Callable[[], object], Callable[[], object], float]] = {
        "evaluate": (evaluation(cases, groups), by_torch(evaluation(cases, groups)), 1.0),
        "weightings_11": (choice(cases, grids["11"]), by_torch(choice(few, grids["11"])), USERS / len(few)),
        "weightings_66": (choice(cases, grids["66"]), by_torch(choice(few, grids["66"])), USERS / len(few)),
    }
    assert choice(few, grids["11"])() == by_torch(choice(few, grids["11"]))()
    figures: dict[str, float] = {"users": USERS, "truths": TRUTHS, "items": ITEMS}
    for name, (ours, theirs, scale) in jobs.items():
        timed = seconds(theirs)
        found = measure({"torch": lambda t=timed, s=scale: s * t(), "compiled": seconds(ours)})  # type: ignore[misc]
        print_table(f"Full ranking, {name}", "seconds", found, "torch")
        figures[f"{name}_seconds"] = median(found["compiled"])
        figures[f"{name}_torch_seconds"] = median(found["torch"])
        figures[f"{name}_times_as_fast"] = median(found["torch"]) / median(found["compiled"])
    write_results("ranking", figures)


if __name__ == "__main__":
    main()
