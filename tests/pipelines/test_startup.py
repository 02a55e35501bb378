"""Short commands import little: importing is most of what they cost."""

import subprocess
import sys

import pytest

HEAVY = {
    "duckdb", "faiss", "fastapi", "matplotlib", "nodetok.graph", "numba", "numpy", "pandas", "pyarrow", "pydantic",
    "ray", "scipy", "scipy.stats", "sentence_transformers", "sklearn", "starlette", "torch", "transformers", "uvicorn",
}  # fmt: skip
LIGHT = {"numpy", "pyarrow", "pydantic"}
"""What a configuration is read with."""
MODEL = LIGHT | {"faiss", "numba", "scipy", "torch"}
"""What a bundle is read with whose last item answers behind a causal backbone; others also need transformers."""


def started(*arguments: object) -> tuple[int, set[str], int]:
    """Exit code of a command, which of HEAVY it has imported, and how often all objects were searched for garbage."""
    code = f"""
import atexit, gc, sys
sys.argv = {["setrec", *map(str, arguments)]!r}
from pipelines.cli.app import main
atexit.register(lambda: print("\\n", *{HEAVY!r} & sys.modules.keys(), gc.get_stats()[2]["collections"]))
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    *modules, collections = done.stdout.splitlines()[-1].split()
    return done.returncode, set(modules), int(collections)


def test_help_imports_none_of_the_heavy_libraries():
    assert started("--help")[:2] == (0, set())


@pytest.mark.parametrize(
    "command",
    [
        ("prepare", "--config", "wrong.yaml", "--run", "run"),
        ("tune", "--config", "wrong.yaml", "--run", "run"),
        ("pipeline", "run", "wrong.yaml", "--root", "nightly"),
        ("serve", "--config", "wrong.yaml"),
        ("graph", "train", "--data", ".", "--task", "structure", "--run", "run", "--config", "wrong.yaml"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_wrong_configuration_is_refused_before_anything_heavy_is_imported(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text("data: {interactions: x.csv}\nmodel: {wide: 3}\n")
    code, modules, _ = started(*command)
    assert code == 2
    assert modules <= LIGHT


def test_recommend_imports_what_a_bundle_needs_and_is_not_held_up_by_the_garbage_collector(qwen3_run):
    code, modules, collections = started("recommend", "--bundle", qwen3_run.bundle, "--history", "i1,i2")
    assert code == 0
    assert modules <= MODEL
    assert collections <= 2
