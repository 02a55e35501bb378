"""From finished fits to results: a table with intervals, differences to every opponent, files for others to test on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines import tables
from pipelines.benchmark import fits, problem, published, roster
from pipelines.benchmark.fits import Record, Task
from pipelines.benchmark.problem import Problem
from pipelines.benchmark.significance import significance
from pipelines.runs import Run, environment
from setrec import ranking
from setrec.atomic import atomic_file

Finals = Mapping[str, Sequence[Task]]
"""By system the fits, one a seed, that stand in the table."""

Shown = Mapping[str, tuple[Sequence[Task], str]]
"""By row of the table its fits, and the variant of them that it shows."""


def write(run: Run, finals: Finals, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write metrics.json, comparisons.json, analysis.json, systems.json, per_user.parquet and report.html.

    Returns ``rows`` as in metrics.json, ``comparisons``, ``systems`` (what each was, took and chose), ``published``.
    """
    given = problem.load(run.root / "problem")
    shown: Shown = {
        f"{name}, {variant}" if variant else name: (tasks, variant)
        for name, tasks in finals.items()
        for variant in ("", *_records(run, tasks)[0].variants)
    }
    found = {name: fits.per_user(run.root, tasks, variant) for name, (tasks, variant) in shown.items()}
    rows = [row for name, one in found.items() for row in one.rows(name)]
    results = {
        "data": given.name, "protocol": given.protocol, "hash": given.hash, "history": given.goal,
        "settings": dict(settings), "environment": environment(), "ties": published.TIES.get(given.name),
        "rows": rows, "published": published.rows(given.name, given.protocol),
        "systems": [_system(run, given, name, tasks) for name, tasks in finals.items()],
        "comparisons": comparisons(run.root, shown),
    }  # fmt: skip
    for name in ("rows", "comparisons", "systems"):
        run.write_json({"rows": "metrics.json"}.get(name, f"{name}.json"), results[name])
    told = {key: value for key, value in results.items() if key not in ("rows", "comparisons", "systems")}
    run.write_json("benchmark.json", told)
    with atomic_file(run.root / "per_user.parquet") as path:
        _per_user(run, given, shown).to_parquet(path, index=False)
    return results


def comparisons(root: Path, shown: Shown) -> list[dict[str, Any]]:
    """Ours against every other system over the same users, by seed and on the mean over seeds; none where ours did not
    take part."""
    ours = next((name for name in (roster.OURS, roster.OURS_T5) if name in shown), None)
    if ours is None:
        return []
    runs = {
        name: [_whole(fits.per_user(root, [task], variant)) for task in tasks]
        for name, (tasks, variant) in shown.items()
    }
    return significance(ours, runs.pop(ours), runs)


def _whole(found: ranking.PerUser) -> ranking.PerUser:
    """All, warm and cold items alone."""
    return replace(found, tables={key: own for key, own in found.tables.items() if key[1] in tables.GROUPS})


def _records(run: Run, tasks: Sequence[Task]) -> list[Record]:
    records = [fits.done(run.root, task) for task in tasks]
    return [record for record in records if record is not None]


def _system(run: Run, given: Problem, name: str, tasks: Sequence[Task]) -> dict[str, Any]:
    """What a system was, took and chose, and the command that makes its row again."""
    records = _records(run, tasks)
    first = records[0]
    return {
        "system": name, "settings": first.settings, "setting": first.number, "seeds": [r.seed for r in records],
        "valid": float(np.mean([r.valid for r in records])), "minutes": first.minutes,
        "seconds": [round(r.seconds, 1) for r in records], "scoring_seconds": round(first.scoring, 2),
        "chosen": [r.chosen for r in records], "curve": first.curve, "analysis": first.analysis,
        "commit": first.environment.get("commit"), "data": first.data,
        "command": f"setrec benchmark --data {given.name} --protocol {given.protocol} --only '{name}'",
    }  # fmt: skip


def _per_user(run: Run, given: Problem, shown: Shown) -> pd.DataFrame:
    """Every user's metrics by system and seed, with the user's id."""
    ids, frames = np.asarray(given.histories.user_ids, dtype=object), []
    for name, (tasks, variant) in shown.items():
        for task in tasks:
            frame = fits.users_of(run.root, task, variant)
            frame.insert(0, "user_id", ids[frame.pop("user").to_numpy()])
            frame.insert(0, "seed", task.seed)
            frame.insert(0, "system", name)
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)
