import subprocess
import sys

HIDDEN = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {hidden!r}:
            raise ImportError(name + " is hidden")

sys.meta_path.insert(0, Hide())
import importlib, pkgutil
import {package}
for module in pkgutil.walk_packages({package}.__path__, {package!r} + "."):
    importlib.import_module(module.name)
"""


def import_all(package: str, hidden: set[str]) -> subprocess.CompletedProcess:
    code = HIDDEN.format(package=package, hidden=hidden)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_setrec_imports_without_ray_faiss_or_an_http_server():
    hidden = {"ray", "faiss", "fastapi", "starlette", "uvicorn", "pipelines", "serving", "nodetok"}
    done = import_all("setrec", hidden)
    assert done.returncode == 0, done.stderr


def test_serving_imports_without_the_jobs():
    done = import_all("serving", {"pipelines", "nodetok"})
    assert done.returncode == 0, done.stderr


def test_the_test_above_would_notice():
    done = import_all("serving", {"faiss"})
    assert done.returncode != 0
    assert "faiss is hidden" in done.stderr
