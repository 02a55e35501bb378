"""The folder a run leaves: one place for every name in it, and the record of where and how the run was made."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from setrec.atomic import atomic_file
from setrec.errors import ConfigError

LIBRARIES = (
    "torch",
    "transformers",
    "ray",
    "faiss-cpu",
    "peft",
    "safetensors",
    "numpy",
    "pandas",
    "pyarrow",
    "fastapi",
)


@dataclass(frozen=True)
class Run:
    """Paths of a run's parts under ``root``."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    @property
    def data(self) -> Path:
        """Catalogue and histories."""
        return self.root / "data"

    @property
    def features(self) -> Path:
        """Text vectors and collaborative vectors of the items."""
        return self.root / "features"

    @property
    def sasrec(self) -> Path:
        """The collaborative model."""
        return self.root / "sasrec"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of the recommender's training."""
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        """The trained recommender, best epoch."""
        return self.root / "model"

    @property
    def bundle(self) -> Path:
        """What is handed to serving."""
        return self.root / "bundle"

    def require(self, path: Path, verb: str) -> Path:
        """``path`` if it exists.

        Raises:
            ConfigError: it does not; the message names the command that makes it.
        """
        if not path.exists():
            raise ConfigError(f"{path} is missing: run `setrec {verb} --run {self.root}` first")
        return path

    def write_json(self, name: str, value: Any) -> Path:
        """Write ``value`` as the JSON file ``name``, atomically."""
        path = self.root / name
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        return path

    def read_json(self, name: str) -> Any:
        """The JSON file ``name``, or ``None`` where it is absent."""
        path = self.root / name
        return json.loads(path.read_text()) if path.exists() else None

    def write_curve(self, system: str, records: list[dict[str, Any]]) -> None:
        """Replace the training curve of ``system`` in curves.jsonl, leaving other systems' as they are."""
        path = self.root / "curves.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if json.loads(line)["system"] != system]
        with atomic_file(path) as temporary:
            temporary.write_text(
                "".join(f"{line}\n" for line in [*kept, *(json.dumps({"system": system, **r}) for r in records)])
            )

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Keep the seconds of a step in environment.json, its start and end in the log."""
        began = time.perf_counter()
        self.log("started", step=step)
        try:
            yield
        except BaseException as error:
            self.log("failed", step=step, error=type(error).__name__, reason=str(error))
            raise
        seconds = time.perf_counter() - began
        self.note_seconds(step, seconds)
        self.log("finished", step=step, seconds=round(seconds, 2))

    def note_seconds(self, step: str, seconds: float) -> None:
        """Keep how long a step took, with the environment it ran in, in environment.json."""
        known = (self.read_json("environment.json") or {}).get("seconds", {})
        self.note(seconds={**known, step: round(seconds, 2)})

    def note(self, **fields: Any) -> None:
        """Keep fields in environment.json, beside the environment itself."""
        self.write_json("environment.json", {**(self.read_json("environment.json") or environment()), **fields})

    def log(self, event: str, **fields: Any) -> None:
        """Append one structured line to logs/run.jsonl: time, event and whatever belongs to it."""
        path = self.root / "logs" / "run.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        with path.open("a") as file:
            file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")

    def clear(self, keep: Collection[str] = ()) -> None:
        """Remove what an earlier run left here, but for the names in ``keep``, and nothing else."""
        for name in set(OWNED) - set(keep):
            path = self.root / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


OWNED = (
    *(
        "data",
        "features",
        "sasrec",
        "checkpoints",
        "model",
        "bundle",
        "logs",
        "config.yaml",
        "data.json",
        "curves.jsonl",
    ),
    *(
        "metrics.json",
        "ablation.json",
        "tuning",
        "ablation",
        "trials.json",
        "best.yaml",
        "scorer.json",
        "popularity_groups.json",
        "comparisons.json",
        "per_user.parquet",
        "examples.json",
    ),
    *("environment.json", "report.html", "gate.json", "audit.json"),
)
"""Every name a run may leave in its folder."""


def environment() -> dict[str, Any]:
    """Python, machine, libraries and commit: what a reader needs to judge a figure or repeat it."""
    libraries = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            libraries[name] = version(name)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["setrec", *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "gpu": _gpu_name(),
        "libraries": libraries,
        "commit": _commit(),
    }


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpu_name() -> str | None:
    """Of the GPU that this process may use; torch is not loaded for it."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None


def _commit() -> str | None:
    here = Path(__file__).resolve().parent
    with suppress(OSError, subprocess.SubprocessError):
        out = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5, check=True
        )
        return out.stdout.strip()
    return None
