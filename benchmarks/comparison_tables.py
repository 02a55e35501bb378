"""The tables of docs/comparison.md from runs of ``setrec benchmark``: ``comparison_tables.py RUN...``, Markdown out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipelines.benchmark.analysis.significance import MEAN
from pipelines.common.run_directory import Run

COLUMNS = {
    "setrec": [("kept", "all"), ("kept", "cold"), ("removed", "all")],
    "leave-one-out": [("removed", "all"), ("kept", "all")],
}
METRICS = {"recall@10": "R@10", "ndcg@10": "N@10"}


def main() -> None:
    """Print a table for every run, and the differences of ours."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("runs", nargs="+", type=Path)
    for run in map(Run, options.parse_args().runs):
        about = run.read_json("benchmark.json")
        columns = COLUMNS[about["protocol"]]
        seeds = {one["system"]: len(one["seeds"]) for one in run.read_json("systems.json")}
        print(f"\n**{about['data']}, {about['protocol']}**\n")
        print(table(run.read_json("metrics.json"), columns, seeds))
        print(differences(run.read_json("comparisons.json"), columns))


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
        each = [
            f"{r['against']} {_interval(r, 'difference', '+')}"
            for r in rows
            if (r["history"], r["group"], r["metric"], r["seed"]) == (history, group, "ndcg@10", MEAN)
        ]
        lines.append(f"\nOurs minus, NDCG@10, history {history}, {group} items: {'; '.join(each)}.")
    return "".join(lines)


def _cell(row: dict[str, Any] | None) -> str:
    return "–" if row is None else _interval(row, "value")


def _interval(row: dict[str, Any], name: str, sign: str = "") -> str:
    value, low, high = (f"{row[key]:{sign}.4f}".replace("0.", ".", 1) for key in (name, "low", "high"))
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    main()
