"""Storage of fits: the settings, record and per-user metrics of each fit in its own folder.

A fit whose folder exists is not repeated, so an interrupted benchmark can be continued.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from pipelines.benchmark.analysis import analysis
from pipelines.benchmark.base import problem
from pipelines.benchmark.base.problem import Problem
from pipelines.benchmark.base.system import Clock, Fitted, System
from pipelines.common.fingerprints import of_value
from pipelines.common.run_directory import environment
from setrec.atomic import atomic_directory
from setrec.errors import DataError
from setrec.evaluation import ranking

KS = (5, 10, 20)
PER_USER = "per_user.parquet"


@dataclass(frozen=True)
class FitTask:
    """A fit: a system under the setting ``number`` of its grid, with a seed and a budget in CPU minutes; either a try,
    for validation only, or ``final``. ``key``: a hash of everything that the result depends on (:func:`task`)."""

    system: str
    number: int
    seed: int
    minutes: float
    key: str
    final: bool = True

    def folder(self, root: Path) -> Path:
        """Return the folder of the fit."""
        kind = "fits" if self.final else "tries"
        return root / kind / _slug(self.system) / f"seed-{self.seed}-{self.key[:16]}"


def task(
    system: System, number: int, seed: int, minutes: float, data: str, code: str, *, final: bool = True
) -> FitTask:
    """Return the fit of a system under a setting of its grid, identified by settings, the hash of the ``data`` and the
    version of the ``code``."""
    key = of_value([system.name, system.grid[number], seed, minutes, final, data, code])
    return FitTask(system.name, number, seed, minutes, key, final)


@dataclass(frozen=True)
class Record:
    """The record of a fit, stored with its per-user metrics. ``valid``: NDCG@10 on validation, in the history protocol
    of the published figures; ``seconds`` of fitting, and ``scoring`` of ranking all test users, variants included."""

    system: str
    number: int
    seed: int
    minutes: float
    settings: dict[str, Any]
    valid: float
    seconds: float
    scoring: float
    chosen: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)
    variants: list[str] = field(default_factory=list)
    analysis: dict[str, Any] = field(default_factory=dict)
    data: str = ""
    environment: dict[str, Any] = field(default_factory=dict)


def fit(root: Path, system: System, task: FitTask, on_progress: Callable[[float, str], None]) -> Record:
    """Fit and evaluate a system, and store the result. Test users are ranked once, for final fits only; choices are
    made inside ``system.fit`` and by the records' ``valid``."""
    given = problem.load(root / "problem")
    clock = Clock(task.minutes, on_progress)
    fitted = system.fit(given, system.grid[task.number], task.seed, clock)
    seconds = clock.seconds
    on_progress(0.99, "ranks")
    record = Record(
        task.system, task.number, task.seed, task.minutes, dict(system.grid[task.number]), _valid(given, fitted),
        seconds, 0.0, fitted.chosen, fitted.curve, list(fitted.variants), {}, given.hash, environment(),
    )  # fmt: skip
    with atomic_directory(task.folder(root)) as new:
        if task.final:
            record = _tested(given, fitted, record, new)
        (new / "record.json").write_text(json.dumps(asdict(record), indent=2))
    return record


def _tested(given: Problem, fitted: Fitted, record: Record, folder: Path) -> Record:
    """Rank the test users, store their metrics in ``folder``, and return the record with its analyses."""
    began = time.perf_counter()
    # The parts first, because the whole uses their cached results.
    each = ranking.evaluate_each({**fitted.variants, "": fitted.scorer}, given.test, groups(given), ks=KS, lists=True)
    scoring = time.perf_counter() - began
    for variant, results in each.items():
        table(results).to_parquet(folder / _file(variant), index=False)
    return replace(record, scoring=scoring, analysis=analysis.analyse(fitted, given, each[""], record.system))


def _file(variant: str) -> str:
    return PER_USER if not variant else f"per_user-{_slug(variant)}.parquet"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def groups(given: Problem) -> list[ranking.Group]:
    """Return the groups: all, warm and cold items, and thirds by popularity."""
    return [*ranking.warm_cold_groups(given.trained), *ranking.popularity_groups(given.counts)]


def _valid(given: Problem, fitted: Fitted) -> float:
    if fitted.valid is not None:
        return fitted.valid
    return ranking.mean_metric(fitted.scorer, given.valid, history=given.goal)


def done(root: Path, task: FitTask) -> Record | None:
    """Return the record of a fit, or ``None``.

    Raises:
        DataError: the record cannot be read.
    """
    path = task.folder(root) / "record.json"
    if not path.is_file():
        return None
    try:
        return Record(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise DataError("is not a record of a fit; remove its folder to fit again", file=path) from error


def table(results: ranking.PerUser) -> pd.DataFrame:
    """Return a table with one row per user, history protocol and group."""
    return pd.concat(
        [
            pd.DataFrame({"user": results.users, "history": history, "group": group, **metrics})
            for (history, group), metrics in results.tables.items()
        ],
        ignore_index=True,
    )


def per_user(root: Path, task: FitTask, variant: str = "") -> ranking.PerUser:
    """Load the per-user metrics of a fit, or of a variant of it."""
    rows = pd.read_parquet(task.folder(root) / _file(variant))
    metrics = [name for name in rows.columns if "@" in name]
    places = rows.groupby(["history", "group"], sort=False).indices
    tables, users = {}, rows["user"].to_numpy()
    for key, at in cast(dict[tuple[str, str], np.ndarray], places).items():
        tables[key] = {name: rows[name].to_numpy()[at] for name in metrics}
        users = rows["user"].to_numpy()[at]
    return ranking.PerUser(users, tables)
