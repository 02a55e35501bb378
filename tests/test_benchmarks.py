"""Benchmarks use names that exist, also in imports that only run deep inside them."""

import ast
import importlib
from pathlib import Path

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
