"""The report of a run: a self-contained HTML file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.common.run_directory import Run
from pipelines.evaluation.scorer import SCORER
from pipelines.evaluation.system_names import OURS
from pipelines.reports import charts
from pipelines.reports.pages import templates, write_page

HISTORY_NOTE = {
    "removed": "the user's own history taken out of the ranking",
    "kept": "the user's own history left in the ranking",
}


def write_report(root: Path) -> Path:
    """Write ``report.html`` from the files of the run in ``root``; parts whose files are absent are left out."""
    run = Run(root)
    rows = run.read_json("metrics.json") or []
    html = (
        templates()
        .get_template("report.html.j2")
        .render(
            data=run.read_json("data.json") or {},
            systems=list(dict.fromkeys(r["system"] for r in rows)),
            tables=_tables(rows),
            dots=_dots(rows) if rows else None,
            comparisons=[c for c in run.read_json("comparisons.json") or [] if c["history"] == "removed"],
            curves=_curves(run),
            beyond=_beyond(run.read_json("beyond_accuracy.json") or []),
            popularity=_popularity(run.read_json("popularity_groups.json") or []),
            scorer=run.read_json(SCORER),
            examples=run.read_json("examples.json") or [],
            environment=run.read_json("environment.json") or {},
            config=run.config.read_text() if run.config.exists() else "",
            headline=_headline(rows),
            verdict=_verdict(run.read_json("comparisons.json") or []),
        )
    )
    return write_page(root / "report.html", html)


def _value(rows: list[dict[str, Any]], **where: str) -> dict[str, Any] | None:
    return next((r for r in rows if all(r[key] == value for key, value in where.items())), None)


def _headline(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    return _value(rows, system=OURS, history="removed", group="all", metric="ndcg@10")


def _verdict(comparisons: list[dict[str, Any]]) -> list[str]:
    """Return sentences on whether ours is better than each opponent in NDCG@10, by the paired interval."""
    said = []
    for c in comparisons:
        if (c["history"], c["metric"]) != ("removed", "ndcg@10"):
            continue
        span = f"{c['difference']:+.4f} (95% interval {c['low']:+.4f} to {c['high']:+.4f})"
        if c["low"] > 0:
            said.append(f"above {c['against']} by {span}")
        elif c["high"] < 0:
            said.append(f"below {c['against']} by {span}")
        else:
            said.append(f"not distinguishable from {c['against']} on these users: {span}")
    return said


def _tables(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one table per history protocol and group: systems by metric."""
    metrics = list(dict.fromkeys(r["metric"] for r in rows))
    tables = []
    for history in ("removed", "kept"):
        for group in ("all", "warm", "cold"):
            mine = [r for r in rows if (r["history"], r["group"]) == (history, group)]
            if not mine:
                continue
            best = {m: max(r["value"] for r in mine if r["metric"] == m) for m in metrics}
            lines = [
                (system, [_value(mine, system=system, metric=m) for m in metrics])
                for system in dict.fromkeys(r["system"] for r in mine)
            ]
            tables.append(
                {"history": history, "note": HISTORY_NOTE[history], "group": group, "users": mine[0]["users"],
                 "metrics": metrics, "rows": lines, "best": best}
            )  # fmt: skip
    return tables


def _beyond(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return a table of systems by beyond-accuracy metric."""
    if not rows:
        return None
    metrics = list(dict.fromkeys(r["metric"] for r in rows))
    systems = dict.fromkeys(r["system"] for r in rows)
    return {"metrics": metrics, "rows": [(s, [_value(rows, system=s, metric=m) for m in metrics]) for s in systems]}


def _dots(rows: list[dict[str, Any]]) -> Any:
    metrics = ("ndcg@10", "recall@10")
    mine = [r for r in rows if (r["history"], r["group"]) == ("removed", "all") and r["metric"] in metrics]
    return charts.intervals("NDCG@10 and Recall@10, all items, history removed", mine, ours=OURS)


def _curves(run: Run) -> list[dict[str, Any]]:
    path = run.root / "curves.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    found = []
    for key, title in (("ndcg@10", "Validation NDCG@10 by epoch"), ("loss", "Training loss by epoch")):
        series = []
        for system in dict.fromkeys(r["system"] for r in records):
            mine = [r for r in records if r["system"] == system and r.get(key) is not None]
            series.append(charts.Series(system, [r["epoch"] for r in mine], [r[key] for r in mine]))
        if series:
            found.append({"title": title, "chart": charts.lines(title, series, "epoch")})
    return found


def _popularity(rows: list[dict[str, Any]]) -> Any:
    mine = [r for r in rows if (r["history"], r["metric"]) == ("removed", "recall@10")]
    names = {r["group"]: f"{r['group'].removeprefix('popularity:')} ({r['users']} users)" for r in mine}
    return charts.grouped("Recall@10 by popularity of the item", mine, names) if mine else None
