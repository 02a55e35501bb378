"""The report of a benchmark: a self-contained HTML file, and tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from pipelines.benchmark import registry
from pipelines.benchmark.analysis.sections import parts
from pipelines.benchmark.analysis.significance import MEAN
from pipelines.common.run_directory import Run
from pipelines.reports import charts, terminal
from pipelines.reports.pages import templates, write_page
from setrec.evaluation import ranking

METRICS = ("ndcg@10", "recall@10")
TOLD = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")

Found = Mapping[str, Any]
"""What :func:`pipelines.benchmark.tabulate.write` returns."""


def write(run: Run, found: Found) -> Path:
    """Write ``report.html``."""
    html = (
        templates()
        .get_template("benchmark_report.html.j2")
        .render(
            found=found,
            ours=ours(found),
            verdict=_verdict(found),
            dots=[_dots(found, group) for group in _groups(found)],
            tables=[_table(found, history, group) for history in _histories(found) for group in _groups(found)],
            comparisons=_told(found),
            curves=_curves(found),
            analyses=parts(found),
        )
    )
    return write_page(run.root / "report.html", html)


def terminal_tables(found: Found) -> list[Table]:
    """Return the ranking table, and the differences in NDCG@10 between our system and the others."""
    rows = [row for row in found["rows"] if row["group"] in terminal.GROUPS]
    told = [row for row in _told(found) if row["metric"] == "ndcg@10"]
    ranked = terminal.ranking_table(rows)
    return [ranked, terminal.difference_table(told)] if told else [ranked]


def ours(found: Found) -> str | None:
    """Return our system among those of the benchmark."""
    return registry.ours({row["system"] for row in found["rows"]})


def _histories(found: Found) -> list[str]:
    """Return the history protocols, that of the published results first."""
    return sorted(ranking.HISTORIES, key=lambda history: history != found["history"])


def _groups(found: Found) -> list[str]:
    present = {row["group"] for row in found["rows"]}
    groups = [group for group in terminal.GROUPS if group in present]
    return groups if found["protocol"] == "setrec" else groups[:1]


def _rows(found: Found, **where: str) -> list[Mapping[str, Any]]:
    return [row for row in found["rows"] if all(row[key] == value for key, value in where.items())]


def _dots(found: Found, group: str) -> dict[str, Any]:
    title = f"{group.capitalize()} items, history {found['history']}"
    rows = [row for row in _rows(found, history=found["history"], group=group) if row["metric"] in METRICS]
    return {"title": title, "chart": charts.intervals(title, rows, ours=ours(found))}


def _table(found: Found, history: str, group: str) -> dict[str, Any]:
    rows = _rows(found, history=history, group=group)
    by = {(row["system"], row["metric"]): row for row in rows}
    systems = list(dict.fromkeys(row["system"] for row in rows))
    published = [p for p in found["published"] if (p["history"], p["group"]) == (history, group)]
    return {
        "history": history, "group": group, "users": rows[0]["users"] if rows else 0, "metrics": TOLD,
        "rows": [(system, [by.get((system, metric)) for metric in TOLD]) for system in systems],
        "best": {m: max((r["value"] for r in rows if r["metric"] == m), default=0.0) for m in TOLD},
        "published": published,
    }  # fmt: skip


def _told(found: Found) -> list[Mapping[str, Any]]:
    """Return the main differences: those in the history protocol of the published results."""
    groups = _groups(found)
    wanted = {"seed": MEAN, "history": found["history"]}
    rows = [c for c in found["comparisons"] if all(c[key] == value for key, value in wanted.items())]
    return [c for c in rows if c["group"] in groups and c["metric"] in METRICS]


def _verdict(found: Found) -> list[str]:
    said = []
    for c in _told(found):
        if (c["group"], c["metric"]) != ("all", "ndcg@10"):
            continue
        span = f"{c['difference']:+.4f} ({c['low']:+.4f} to {c['high']:+.4f})"
        where = "above" if c["low"] > 0 else "below" if c["high"] < 0 else "not told apart from"
        said.append(f"{where} {c['against']} by {span}")
    return said


def _curves(found: Found) -> Any:
    series = [
        charts.Series(s["system"], [r["seconds"] for r in s["curve"]], [r["ndcg@10"] for r in s["curve"]])
        for s in found["systems"]
    ]
    return charts.lines("Validation NDCG@10 by seconds", series, "seconds")
