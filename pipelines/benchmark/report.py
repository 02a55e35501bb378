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
SHOWN = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")

Results = Mapping[str, Any]
"""What :func:`pipelines.benchmark.tabulate.write` returns."""


def write(run: Run, results: Results) -> Path:
    """Write ``report.html``."""
    html = (
        templates()
        .get_template("benchmark_report.html.j2")
        .render(
            results=results,
            ours=ours(results),
            verdict=_verdict(results),
            dots=[_dots(results, group) for group in _groups(results)],
            tables=[_table(results, history, group) for history in _histories(results) for group in _groups(results)],
            comparisons=_main_differences(results),
            curves=_curves(results),
            analyses=parts(results),
        )
    )
    return write_page(run.root / "report.html", html)


def terminal_tables(results: Results) -> list[Table]:
    """Return the ranking table, and the differences in NDCG@10 between our system and the others."""
    rows = [row for row in results["rows"] if row["group"] in terminal.GROUPS]
    differences = [row for row in _main_differences(results) if row["metric"] == "ndcg@10"]
    ranked = terminal.ranking_table(rows)
    return [ranked, terminal.difference_table(differences)] if differences else [ranked]


def ours(results: Results) -> str | None:
    """Return our system among those of the benchmark."""
    return registry.ours({row["system"] for row in results["rows"]})


def _histories(results: Results) -> list[str]:
    """Return the history protocols, that of the published results first."""
    return sorted(ranking.HISTORIES, key=lambda history: history != results["history"])


def _groups(results: Results) -> list[str]:
    present = {row["group"] for row in results["rows"]}
    groups = [group for group in terminal.GROUPS if group in present]
    return groups if results["protocol"] == "setrec" else groups[:1]


def _rows(results: Results, **where: str) -> list[Mapping[str, Any]]:
    return [row for row in results["rows"] if all(row[key] == value for key, value in where.items())]


def _dots(results: Results, group: str) -> dict[str, Any]:
    title = f"{group.capitalize()} items, history {results['history']}"
    rows = [row for row in _rows(results, history=results["history"], group=group) if row["metric"] in METRICS]
    return {"title": title, "chart": charts.intervals(title, rows, ours=ours(results))}


def _table(results: Results, history: str, group: str) -> dict[str, Any]:
    rows = _rows(results, history=history, group=group)
    by = {(row["system"], row["metric"]): row for row in rows}
    systems = list(dict.fromkeys(row["system"] for row in rows))
    published = [p for p in results["published"] if (p["history"], p["group"]) == (history, group)]
    return {
        "history": history, "group": group, "users": rows[0]["users"] if rows else 0, "metrics": SHOWN,
        "rows": [(system, [by.get((system, metric)) for metric in SHOWN]) for system in systems],
        "best": {m: max((r["value"] for r in rows if r["metric"] == m), default=0.0) for m in SHOWN},
        "published": published,
    }  # fmt: skip


def _main_differences(results: Results) -> list[Mapping[str, Any]]:
    """Return the main differences: those in the history protocol of the published results."""
    groups = _groups(results)
    wanted = {"seed": MEAN, "history": results["history"]}
    rows = [c for c in results["comparisons"] if all(c[key] == value for key, value in wanted.items())]
    return [c for c in rows if c["group"] in groups and c["metric"] in METRICS]


def _verdict(results: Results) -> list[str]:
    sentences = []
    for c in _main_differences(results):
        if (c["group"], c["metric"]) != ("all", "ndcg@10"):
            continue
        span = f"{c['difference']:+.4f} ({c['low']:+.4f} to {c['high']:+.4f})"
        where = "above" if c["low"] > 0 else "below" if c["high"] < 0 else "not distinguishable from"
        sentences.append(f"{where} {c['against']} by {span}")
    return sentences


def _curves(results: Results) -> Any:
    series = [
        charts.Series(s["system"], [r["seconds"] for r in s["curve"]], [r["ndcg@10"] for r in s["curve"]])
        for s in results["systems"]
    ]
    return charts.lines("Validation NDCG@10 by seconds", series, "seconds")
