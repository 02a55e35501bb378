"""The library needs no extra; the extras bring what the other packages import."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from pipelines.common.failures import OF_EXTRAS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OURS = {"setrec", "nodetok", "serving", "pipelines"}
MODULES = {"faiss_cpu": "faiss", "pyyaml": "yaml", "scikit_learn": "sklearn"}


def modules_of(requirements: list[str]) -> set[str]:
    names = (re.match(r"[\w-]+", line)[0].replace("-", "_") for line in requirements)
    return {MODULES.get(name, name) for name in names} - OURS


CORE = modules_of(PROJECT["dependencies"])


def imported(package: str) -> set[str]:
    """Libraries that a package imports anywhere; those that it is ready to miss are left out."""
    found = set()
    for file in (ROOT / package).rglob("*.py"):
        tree = ast.parse(file.read_text())
        ready = {id(node) for part in ast.walk(tree) if isinstance(part, ast.Try) for node in ast.walk(part)}
        for node in ast.walk(tree):
            if id(node) not in ready and isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif id(node) not in ready and isinstance(node, ast.ImportFrom):
                found.add(node.module.partition(".")[0])
    return found - OURS - sys.stdlib_module_names


def test_the_library_imports_only_what_is_installed_without_extras():
    assert imported("setrec") | imported("nodetok") <= CORE


def test_each_extra_brings_what_its_package_imports():
    serving = CORE | modules_of(EXTRAS["serving"])
    ours = {"grpc", "pydantic_core"}  # parts of Ray and of pydantic
    assert imported("serving") <= serving | ours
    assert imported("pipelines") <= serving | modules_of(EXTRAS["pipelines"]) | ours
    assert modules_of(EXTRAS["serving"] + EXTRAS["pipelines"]) == OF_EXTRAS


def test_all_and_dev_bring_every_extra():
    assert EXTRAS["all"] == ["setrec[pipelines]"]
    assert "setrec[serving]" in EXTRAS["pipelines"]
    assert "setrec[all]" in EXTRAS["dev"]


def test_a_command_without_its_extra_says_in_one_line_what_to_install(tmp_path):
    (tmp_path / "config.yaml").write_text("data: {interactions: x.csv}\n")
    token = ["token", "shop", "--file", "tokens.json", "--scope", "read"]
    asked = (("pipelines", "duckdb", ["check", "config.yaml"]), ("serving", "fastapi", token))
    for extra, missing, command in asked:
        code = f"import sys; sys.modules[{missing!r}] = None; sys.argv = {['setrec', *command]!r}; "
        code += "from pipelines.cli.app import main; main()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
        advice = f"needs {missing}, which is not installed: pip install 'setrec[{extra}]'"
        assert (done.returncode, done.stderr) == (2, f"setrec: `setrec {command[0]}` {advice}\n")
