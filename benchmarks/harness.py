"""Fair timing in one run: variants take turns, medians are compared, everything needed to repeat a figure is kept."""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pipelines.common.run_directory import environment
from setrec.atomic import atomic_file

RESULTS = Path(__file__).parent / "results"


def measure(variants: dict[str, Callable[[], float]], repeats: int = 3) -> dict[str, list[float]]:
    """Call every variant once to warm up, then ``repeats`` times in turn (A B C A B C ...), so that a machine that
    slows down slows all of them. A variant returns its own figure, e.g. items per second."""
    for run in variants.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            found[name].append(run())
    return found


def median(values: list[float]) -> float:
    """The middle of the repeats."""
    return float(statistics.median(values))


def print_table(title: str, unit: str, found: dict[str, list[float]], reference: str) -> None:
    """Medians, spread, and how many times the reference each variant is."""
    table = Table(title=title)
    for name in ("", f"median {unit}", "min", "max", f"times {reference}"):
        table.add_column(name, justify="left" if not name else "right")
    for name, values in found.items():
        ratio = median(values) / median(found[reference])
        table.add_row(name, f"{median(values):.2f}", f"{min(values):.2f}", f"{max(values):.2f}", f"{ratio:.2f}")
    Console().print(table)


def write_results(name: str, figures: dict[str, Any]) -> None:
    """Write ``results/NAME.json`` atomically; folders of this machine are left out of the command."""
    shown = [re.sub(r"(?<![^=])/(?:[^/\s:]+/)*", "", word) for word in sys.argv]
    here = {key: value for key, value in environment().items() if key != "command"}
    record = {
        "name": name,
        "figures": figures,
        "environment": {**here, "torch_threads": torch.get_num_threads()},
        "command": " ".join(["python", *shown]),
    }
    RESULTS.mkdir(exist_ok=True)
    with atomic_file(RESULTS / f"{name}.json") as path:
        path.write_text(json.dumps(record, indent=2))


def previous(name: str) -> dict[str, Any]:
    """The figures that ``results/NAME.json`` holds, none where it is not there."""
    path = RESULTS / f"{name}.json"
    return dict(json.loads(path.read_text())["figures"]) if path.exists() else {}
