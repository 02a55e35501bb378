"""Results of a run as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from pipelines.reports.charts import metric_name

GROUPS = ("all", "warm", "cold")


def ranking_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the table of systems by history protocol and group with 95% intervals, the best in bold, from the rows of
    metrics.json."""
    table = Table(title="Full ranking of the catalogue, test items (95% bootstrap intervals over users)")
    table.add_column("History")
    table.add_column("Items (users)")
    table.add_column("System")
    cutoffs = {int(row["metric"].rpartition("@")[2]) for row in rows}
    k = 10 if 10 in cutoffs else max(cutoffs, default=10)
    metrics = (f"ndcg@{k}", f"recall@{k}")
    for metric in metrics:
        table.add_column(metric_name(metric), justify="right", no_wrap=True)
    for history in ("removed", "kept"):
        for group in GROUPS:
            same = [r for r in rows if (r["history"], r["group"]) == (history, group)]
            for number, system in enumerate(dict.fromkeys(r["system"] for r in same)):
                place = ("", "") if number else (history, f"{group} ({same[0]['users']})")
                table.add_row(*place, system, *(_cell(same, system, metric) for metric in metrics))
            table.add_section()
    return table


def difference_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of paired differences, ``system`` minus ``against``, with 95% intervals; those that exclude zero
    are bold."""
    table = Table(title="Differences over the same users (95% bootstrap intervals)")
    for name in ("Items (users)", "System", "minus", "Metric", "Difference"):
        table.add_column(name, justify="right" if name == "Difference" else "left")
    for row in rows:
        text = f"{row['difference']:+.4f} [dim]{row['low']:+.4f} to {row['high']:+.4f}[/dim]"
        shown = f"[bold]{text}[/bold]" if row["low"] > 0 or row["high"] < 0 else text
        place = f"{row['group']} ({row['users']})"
        table.add_row(place, row["system"], row["against"], metric_name(row["metric"]), shown)
    return table


def _cell(same: Sequence[dict[str, Any]], system: str, metric: str) -> str:
    row = next((r for r in same if (r["system"], r["metric"]) == (system, metric)), None)
    if row is None:
        return "-"
    text = f"{row['value']:.4f} [dim]{row['low']:.3f}–{row['high']:.3f}[/dim]"
    return f"[bold]{text}[/bold]" if row["value"] == max(r["value"] for r in same if r["metric"] == metric) else text


def example_table(example: dict[str, Any]) -> Table:
    """Return the table of a user's history and recommendations, with hits on held-out items marked."""
    table = Table(title=f"User {example['user_id']}: the latest of the history, and what comes next")
    for name in ("#", "History, latest last", "Recommended", "Score"):
        table.add_column(name, justify="right" if name in ("#", "Score") else "left")
    history, recommended = example["history"], example["recommendations"]
    for i in range(max(len(history), len(recommended))):
        left = _describe(history[i]) if i < len(history) else ""
        if i >= len(recommended):
            table.add_row(str(i + 1), left, "", "")
            continue
        right = ("[bold green]✓[/bold green] " if recommended[i].get("hit") else "") + _describe(recommended[i])
        table.add_row(str(i + 1), left, right, f"{recommended[i]['score']:.2f}")
    if held_out := example.get("held_out"):
        table.caption = "Held out: " + "; ".join(_describe(item) for item in held_out)
    return table


def answer_table(answer: dict[str, Any], title: str | None = None) -> Table:
    """Return the table of an endpoint's answer, with the contribution of each slot kind and component to the score."""
    items = answer["items"]
    kinds = list(dict.fromkeys(kind for item in items for kind in item["shares"]))
    table = Table(title=title or "Recommended", caption=f"model {answer['model_version']}")
    for name in ("#", "Item", "Title", "Score", *kinds):
        table.add_column(name, justify="left" if name in ("Item", "Title") else "right")
    for i, item in enumerate(items):
        shares = [f"{item['shares'][kind]:+.2f}" if kind in item["shares"] else "" for kind in kinds]
        table.add_row(str(i + 1), item["item_id"], _describe(item), f"{item['score']:.2f}", *shares)
    return table


def _describe(item: dict[str, Any]) -> str:
    values = ", ".join(" ".join(values) for values in item.get("attributes", {}).values() if values)
    return f"{escaped(item['title'])} [dim]{escaped(values)}[/dim]" if values else escaped(item["title"])


def escaped(text: str) -> str:
    """Escape brackets, which rich would read as markup."""
    return text.replace("[", r"\[")
