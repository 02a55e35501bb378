"""Benchmarks use names that exist, also in imports that only run deep inside them; growth is fitted, and resumed."""

import ast
import importlib
import json
from pathlib import Path

import bench_scale
import harness
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
PACKAGES = ("setrec", "nodetok", "pipelines", "serving")


def imported(script: Path) -> list[tuple[str, str]]:
    """Modules and names that a script imports from the project, those it is ready to miss left out."""
    tree = ast.parse(script.read_text())
    optional = {id(node) for part in ast.walk(tree) if isinstance(part, ast.Try) for node in ast.walk(part)}
    return [
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and id(node) not in optional and node.module
        if node.module.split(".")[0] in PACKAGES
        for alias in node.names
    ]


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.py")), ids=lambda script: script.stem)
def test_every_name_that_a_benchmark_imports_exists(script):
    missing = []
    for module, name in imported(script):
        try:
            found = importlib.import_module(module)
            if not hasattr(found, name):
                importlib.import_module(f"{module}.{name}")
        except ImportError:
            missing.append(f"{module}.{name}")
    assert missing == []


def row(users: int) -> dict:
    items = min(users, bench_scale.MOST_ITEMS)
    grown = {step: (items if step in bench_scale.OF_ITEMS else users) / 1e4 for step in bench_scale.STEPS}
    figures = {"seconds": 0.9, "cpu_seconds": 1.0, "peak_gb": 0.5, "process_gb": 0.25, "held_gb": 0.0}
    steps = {step: {name: 2 * by**power for name, power in figures.items()} for step, by in grown.items()}
    return {"users": users, "items": items, "load_before": 0.0, "steps": steps}


def test_growth_is_the_slope_of_logarithms_over_what_a_step_depends_on(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    bench_scale.keep([row(users) for users in bench_scale.SIZES], plot=False)
    kept = json.loads((tmp_path / "scale.json").read_text())
    assert {"name", "figures", "environment", "command", "cores", "sizes"} < set(kept)
    assert list(kept["exponents"]) == list(bench_scale.STEPS)
    assert kept["exponents"]["distances"]["over"] == "items"
    for grown in kept["exponents"].values():
        assert grown["seconds"] == {"slope": 0.9, "last": 0.9}
        assert (grown["peak_gb"]["slope"], abs(grown["held_gb"]["last"])) == (0.5, 0)
    assert bench_scale.exponents([row(10_000)]) == {}
    assert "transitions" in bench_scale.drawn([row(users) for users in bench_scale.SIZES])


def test_an_interrupted_measurement_continues_after_its_last_step_unless_the_code_has_changed(tmp_path, monkeypatch):
    done: list[str] = []

    def apart(step, place):
        done.append(step)
        if done.count("transitions") == 1 and step == "transitions":
            raise KeyboardInterrupt
        return row(place.size)["steps"][step]

    steps, code = list(bench_scale.STEPS), ["one"]
    monkeypatch.setattr(bench_scale, "apart", apart)
    monkeypatch.setattr(bench_scale, "of_code", lambda: code[0])
    with pytest.raises(KeyboardInterrupt):
        bench_scale.measured([60], tmp_path)
    again = bench_scale.measured([60], tmp_path)
    killed = steps.index("transitions")
    assert done == steps[: killed + 1] + steps[killed:]
    assert bench_scale.measured([60], tmp_path) == again
    assert len(done) == len(steps) + 1
    code[0] = "another"
    bench_scale.measured([60], tmp_path)
    assert done[len(steps) + 1 :] == steps
