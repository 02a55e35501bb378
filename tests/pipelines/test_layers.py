import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import networkx as nx

HIDDEN = """
import importlib, pkgutil, sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ImportError(name + " is hidden")

sys.meta_path.insert(0, Hide())
for package, hidden in {packages!r}.items():
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        importlib.import_module(module.name)
"""


def import_all(packages: dict[str, set[str]]) -> subprocess.CompletedProcess:
    """Import all modules of one package after the other, each without what is hidden from it."""
    code = HIDDEN.format(packages=packages)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)


def test_setrec_imports_without_ray_faiss_or_an_http_server_and_serving_without_the_jobs():
    hidden = {"ray", "faiss", "fastapi", "starlette", "uvicorn", "pipelines", "serving", "nodetok"}
    done = import_all({"setrec": hidden, "serving": {"pipelines", "nodetok"}})
    assert done.returncode == 0, done.stderr


def test_the_test_above_would_notice():
    done = import_all({"serving": {"pydantic"}})
    assert done.returncode != 0
    assert "pydantic is hidden" in done.stderr


ROOT = Path(__file__).parents[2]
FILES = [file for package in ("setrec", "nodetok", "serving", "pipelines") for file in (ROOT / package).rglob("*.py")]


def test_no_folder_has_more_than_twelve_modules():
    modules = Counter(file.parent for file in FILES if file.name != "__init__.py")
    assert {folder for folder, count in modules.items() if count > 12} == set()


def test_a_class_name_means_one_thing_in_the_whole_project():
    names = Counter(
        node.name for file in FILES for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def imports(file: Path, modules: set[str]) -> set[str]:
    """The modules of the project that a file imports, for the type checker alone too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                found.add(inside if inside in modules else node.module)
    return found & modules


def test_no_modules_import_each_other_in_a_circle():
    names = {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in FILES}
    graph = nx.DiGraph((name, other) for name, file in names.items() for other in imports(file, set(names)))
    circles = [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]
    assert circles == []
    assert graph.has_edge("setrec.training.trainer", "setrec.models.setrec_model")
