"""The tables of docs/comparison.md from runs of ``setrec benchmark``: ``comparison_tables.py RUN...``, Markdown out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

COLUMNS = {
    "setrec": [("kept", "all"), ("kept", "cold"), ("removed", "all")],
    "leave-one-out": [("removed", "all"), ("kept", "all")],
}
METRICS = {"recall@10": "R@10", "ndcg@10": "N@10"}


def main() -> None:
    """Print a table for every run, and the differences of ours."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("runs", nargs="+", type=Path)
    for run in options.parse_args().runs:
        told = json.loads((run / "benchmark.json").read_text())
        rows = json.loads((run / "metrics.json").read_text())
        systems = {one["system"]: one for one in json.loads((run / "systems.json").read_text())}
        print(f"\n**{told['data']}, {told['protocol']}**\n")
        print(table(rows, COLUMNS[told["protocol"]], {name: len(one["seeds"]) for name, one in systems.items()}))
        print(differences(json.loads((run / "comparisons.json").read_text()), COLUMNS[told["protocol"]]))


def table(rows: list[dict[str, Any]], columns: list[tuple[str, str]], seeds: dict[str, int]) -> str:
    """Systems by falling NDCG@10 of the first column; the number of seeds in brackets behind the name."""
    value = {(r["system"], r["history"], r["group"], r["metric"]): r for r in rows}
    names = sorted({r["system"] for r in rows}, key=lambda name: -value[(name, *columns[0], "ndcg@10")]["value"])
    heads = [
        f"{short}, {history}" + (", cold" if group == "cold" else "")
        for history, group in columns
        for short in METRICS.values()
    ]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for name in names:
        cells = [_cell(value.get((name, history, group, metric))) for history, group in columns for metric in METRICS]
        lines.append(f"| {name} ({seeds.get(name, max(seeds.values()))}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(rows: list[dict[str, Any]], columns: list[tuple[str, str]]) -> str:
    """Ours minus each other system over the same users, NDCG@10, mean over seeds."""
    lines = []
    for history, group in columns:
        told = [
            f"{r['against']} {r['difference']:+.4f} [{r['low']:+.4f}, {r['high']:+.4f}]"
            for r in rows
            if (r["history"], r["group"], r["metric"]) == (history, group, "ndcg@10") and r["seed"] == "mean"
        ]
        lines.append(f"\nOurs minus, NDCG@10, history {history}, {group} items: {'; '.join(told)}.")
    return "".join(lines).replace("0.", ".")


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    return f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]".replace("0.", ".")


if __name__ == "__main__":
    main()
