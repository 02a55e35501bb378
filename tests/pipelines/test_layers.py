import subprocess
import sys

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
