"""What it costs to start, and what the installation weighs.

    python benchmarks/bench_startup.py [--before DIR]

CPU seconds (user and system) and wall seconds of short commands, each a process of its own, in turn: ``--help``; a
wrong configuration, of a run and of a graph; ``recommend`` for one history on a bundle of the demonstration's size;
the endpoint on uvicorn for that bundle, until it is ready.
``DIR`` is a checkout of another version, which takes turns with this one. Wall seconds mean little beside other work.
Megabytes are the files of each installed package; core, serving and all are the sums over what ``pip install setrec``
brings, without an extra or with one.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from bench_serving import cpu_seconds, server
from harness import measure, median, print_table, write_results
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from serving_bundle import make_bundle

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 5
LARGEST = 16


def seconds(arguments: list[str], code: int, tree: Path, walls: list[float]) -> float:
    """CPU seconds of one command of the version in ``tree``; its wall seconds are appended to ``walls``."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli.app", *arguments],
        env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}, capture_output=True, check=False,
        cwd=tree,  # of which -m imports first
    )  # fmt: skip
    walls.append(time.perf_counter() - began)
    if done.returncode != code:
        raise RuntimeError(f"{arguments}: exit code {done.returncode}: {done.stderr.decode()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commands(folder: Path) -> dict[str, tuple[list[str], int]]:
    """Arguments and exit code of each command, with its files in ``folder``."""
    make_bundle(folder)
    wrong = folder / "wrong.yaml"
    wrong.write_text("data: {interactions: x.csv}\nmodel: {wide: 3}\n")
    run, graph = str(folder / "run"), ["--task", "structure", "--data", str(folder)]
    return {
        "--help": (["--help"], 0),
        "wrong configuration": (["prepare", "--config", str(wrong), "--run", run], 2),
        "wrong graph configuration": (["graph", "train", *graph, "--run", run, "--config", str(wrong)], 2),
        "recommend": (["recommend", "--bundle", str(folder / "bundle"), "--history", "50,181,172"], 0),
    }


def ready(tree: Path, bundle: Path, walls: list[float]) -> float:
    """CPU seconds of the endpoint until it is ready."""
    began = time.perf_counter()
    with server(bundle, tree=tree) as (_, process):
        walls.append(time.perf_counter() - began)
        return cpu_seconds(process)


def timed(trees: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Medians of CPU and wall seconds of every command in every version."""
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        runs: dict[str, Callable[[Path, list[float]], float]] = {
            command: partial(seconds, arguments, code) for command, (arguments, code) in commands(Path(name)).items()
        }
        runs["endpoint"] = lambda tree, walls: ready(tree, Path(name) / "bundle", walls)
        for command, run in runs.items():
            walls: dict[str, list[float]] = {version: [] for version in trees}
            found = measure({v: partial(run, tree, walls[v]) for v, tree in trees.items()}, REPEATS)
            print_table(f"setrec {command}", "CPU s", found, "now")
            for version, values in found.items():
                wall = median(walls[version][1:])
                figures[f"{command}, {version}"] = {"cpu": round(median(values), 2), "wall": round(wall, 2)}
    return figures


def closure(wanted: list[str], extras: dict[str, list[str]]) -> set[str]:
    """Names of all packages that the requirements bring, by the metadata of the installed ones."""
    seen: set[tuple[str, str]] = set()
    queue = [(requirement, "") for requirement in map(Requirement, wanted)]
    while queue:
        requirement, extra = queue.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for also in requirement.extras | {""}:
            if (name, also) in seen:
                continue
            seen.add((name, also))
            try:
                needs = extras.get(also, []) if name == "setrec" else distribution(name).requires or []
            except PackageNotFoundError:
                continue  # for another platform
            queue += [(requirement, also) for requirement in map(Requirement, needs)]
    return {name for name, _ in seen} - {"setrec"}


def megabytes(name: str) -> float:
    """Size of an installed package's files; 0 if it is not installed."""
    try:
        package = distribution(name)
    except PackageNotFoundError:
        return 0.0
    files = [Path(str(package.locate_file(file))) for file in package.files or []]
    return sum(file.stat().st_size for file in files if file.is_file()) / 2**20


def weights() -> dict[str, dict[str, float]]:
    """Megabytes of each kind of installation, and of the largest packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core, extras = project["dependencies"], project["optional-dependencies"]
    kinds = {"core": core, "serving": [*core, "setrec[serving]"], "all": [*core, "setrec[all]"]}
    sizes = {kind: {name: megabytes(name) for name in closure(wanted, extras)} for kind, wanted in kinds.items()}
    largest = sorted(sizes["all"].items(), key=lambda entry: -entry[1])[:LARGEST]
    return {
        "installations": {kind: round(sum(found.values())) for kind, found in sizes.items()},
        "largest": {f"{name}{'' if name in sizes['core'] else ' (extra)'}": round(size) for name, size in largest},
    }


def main() -> None:
    """Measure and write ``results/startup.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, metavar="DIR")
    before = parser.parse_args().before
    trees = {"now": ROOT} | ({} if before is None else {"before": before.resolve()})
    figures = {"megabytes": weights(), "seconds": timed(trees)}
    print(figures["megabytes"])
    write_results("startup", figures)


if __name__ == "__main__":
    main()
