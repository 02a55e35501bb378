"""The results of finished fits: metrics with intervals, differences to opponents, and per-user files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from pipelines.benchmark import fits, registry
from pipelines.benchmark.analysis import published
from pipelines.benchmark.analysis.significance import significance
from pipelines.benchmark.base import problem
from pipelines.benchmark.base.problem import Problem
from pipelines.benchmark.fits import FitTask, Record
from pipelines.common.run_directory import Run, environment
from pipelines.reports import terminal
from setrec.atomic import atomic_file
from setrec.evaluation import ranking

Finals = Mapping[str, Sequence[FitTask]]
"""By system the fits of seeds 0, 1, ... in the table."""

Runs = Mapping[str, Sequence[ranking.PerUser]]
"""Metrics of every user by row of the table and seed."""


def write(run: Run, finals: Finals, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write metrics.json, comparisons.json, systems.json, benchmark.json and per_user.parquet.

    Returns ``rows`` as in metrics.json, ``comparisons``, ``systems`` (settings, times and choices), ``published``.
    """
    given = problem.load(run.root / "problem")
    records = {name: _records(run, tasks) for name, tasks in finals.items()}
    runs = {
        f"{name}, {variant}" if variant else name: [fits.per_user(run.root, task, variant) for task in tasks]
        for name, tasks in finals.items()
        for variant in ("", *records[name][0].variants)
    }
    results = {
        "data": given.name, "protocol": given.protocol, "hash": given.hash, "history": given.goal,
        "settings": dict(settings), "environment": environment(), "ties": published.TIES.get(given.name),
        "rows": [row for name, seeds in runs.items() for row in ranking.averaged(seeds).rows(name)],
        "published": published.rows(given.name, given.protocol),
        "systems": [_system(given, name, own, settings) for name, own in records.items()],
        "comparisons": comparisons(runs),
    }  # fmt: skip
    for name in ("rows", "comparisons", "systems"):
        run.write_json({"rows": "metrics.json"}.get(name, f"{name}.json"), results[name])
    summary = {key: value for key, value in results.items() if key not in ("rows", "comparisons", "systems")}
    run.write_json("benchmark.json", summary)
    with atomic_file(run.root / "per_user.parquet") as path:
        _per_user(given, runs).to_parquet(path, index=False)
    return results


def comparisons(runs: Runs) -> list[dict[str, Any]]:
    """Return comparisons of our system with every other over the same users, by seed and on the mean over seeds; none
    without our system."""
    ours = registry.ours(runs)
    if ours is None:
        return []
    whole = {name: [_whole(one) for one in seeds] for name, seeds in runs.items()}
    return significance(ours, whole.pop(ours), whole)


def _whole(results: ranking.PerUser) -> ranking.PerUser:
    """Keep the groups of all, warm and cold items."""
    return replace(results, tables={key: own for key, own in results.tables.items() if key[1] in terminal.GROUPS})


def _records(run: Run, tasks: Sequence[FitTask]) -> list[Record]:
    records = [fits.done(run.root, task) for task in tasks]
    return [record for record in records if record is not None]


def _system(given: Problem, name: str, records: Sequence[Record], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings, times and choices of a system, and the command that reproduces its row."""
    first = records[0]
    given_as = f"--data {given.name} --protocol {given.protocol}"
    sizes = f"--minutes {settings['minutes']:g} --tries {settings['tries']} --seeds {len(records)}"
    if settings["gpu"]:
        sizes += f" --gpu {settings['gpu']:g}"
    return {
        "system": name, "settings": first.settings, "setting": first.number, "seeds": [r.seed for r in records],
        "valid": float(np.mean([r.valid for r in records])), "minutes": first.minutes,
        "seconds": [round(r.seconds, 1) for r in records], "scoring_seconds": round(first.scoring, 2),
        "chosen": [r.chosen for r in records], "curve": first.curve, "analysis": first.analysis,
        "commit": first.environment.get("commit"), "data": first.data, "gpu": first.environment.get("gpu"),
        "command": f"setrec benchmark {given_as} {sizes} --only '{name}'",
    }  # fmt: skip


def _per_user(given: Problem, runs: Runs) -> pd.DataFrame:
    """Return every user's metrics by system and seed, with the user's id."""
    ids, frames = np.asarray(given.histories.user_ids, dtype=object), []
    for name, seeds in runs.items():
        for seed, results in enumerate(seeds):
            frame = fits.table(results)
            frame.insert(0, "user_id", ids[frame.pop("user").to_numpy()])
            frame.insert(0, "seed", seed)
            frame.insert(0, "system", name)
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)
