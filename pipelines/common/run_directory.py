"""The folder of a run: the names of its entries, and the record of where and how the run was made."""

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

from pipelines.common import fingerprints
from pipelines.common.locks import exclusive
from setrec import __version__
from setrec.atomic import atomic_file, recover
from setrec.errors import ConfigError

MARKER, LOCK, FORMAT = "run.json", ".lock", 1
VALIDATED = "validated"

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
    def encoder(self) -> Path:
        """The fine-tuned sentence encoder, if any."""
        return self.root / "encoder"

    @property
    def sasrec(self) -> Path:
        """The collaborative model."""
        return self.root / "sasrec"

    @property
    def offset(self) -> Path:
        """Offsets of the positions of a training that has not ended."""
        return self.features / "offset"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of the recommender's training."""
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        """The trained recommender."""
        return self.root / "model"

    @property
    def validated(self) -> Path:
        """The recommender of the best epoch, which was not trained on validation events and is used for all choices on
        validation. Without a refit, the trained recommender itself."""
        return validated(self.model)

    @property
    def bundle(self) -> Path:
        """The bundle for serving."""
        return self.root / "bundle"

    def require(self, path: Path, verb: str) -> Path:
        """Return ``path`` if it exists.

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
        """Return the JSON file ``name``, or ``None`` if it is absent."""
        path = self.root / name
        return json.loads(path.read_text()) if path.exists() else None

    def write_curve(self, system: str, records: list[dict[str, Any]]) -> None:
        """Replace the training curve of ``system`` in curves.jsonl; those of other systems are unchanged."""
        path = self.root / "curves.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if json.loads(line)["system"] != system]
        with atomic_file(path) as temporary:
            temporary.write_text(
                "".join(f"{line}\n" for line in [*kept, *(json.dumps({"system": system, **r}) for r in records)])
            )

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Write the seconds of a step to environment.json, its start and end to the log."""
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
        """Write the duration of a step and its environment to environment.json."""
        known = (self.read_json("environment.json") or {}).get("seconds", {})
        self.note(seconds={**known, step: round(seconds, 2)})

    def note(self, **fields: Any) -> None:
        """Add fields to environment.json."""
        self.write_json("environment.json", {**(self.read_json("environment.json") or environment()), **fields})

    def log(self, event: str, **fields: Any) -> None:
        """Append one structured line to logs/run.jsonl: time, event and its fields."""
        path = self.root / "logs" / "run.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        with path.open("a") as file:
            file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")

    @property
    def _marker(self) -> dict[str, Any] | None:
        """Return the content of ``run.json``; ``None`` if the folder is not a run.

        A run of a version without markers is recognised by its configuration and its data directory.
        """
        try:
            found = self.read_json(MARKER)
            if found is None and self.config.is_file() and "settings" in (self.read_json("data/data.json") or {}):
                found = {"format": FORMAT, "wrote": [name for name in OWNED if (self.root / name).exists()], "made": {}}
            return None if found is None else {"made": {}, **found, "wrote": list(found["wrote"])}
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.root / MARKER} is damaged") from error

    def claim(self, *names: str) -> None:
        """Record that a job will write ``names``, entries of the folder; create the run if it does not exist.

        Raises:
            ConfigError: the folder is not empty and not a run, or one of the names exists and no job wrote it.
        """
        marker = self._marker
        if marker is None:
            self._require_empty()
            marker = {"format": FORMAT, "wrote": [], "made": {}}
        for name in names:
            if name not in marker["wrote"] and (self.root / name).exists():
                raise ConfigError(f"{self.root / name} was not written by a job and will not be replaced: move it away")
        marker["wrote"] = sorted({*marker["wrote"], *names})
        self.write_json(MARKER, marker)

    def _require_empty(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise ConfigError(f"{self.root} is a file, not the folder of a run")
        others = (entry.name for entry in self.root.iterdir()) if self.root.exists() else ()
        if any(not name.startswith((LOCK, f".{MARKER}.")) for name in others):
            raise ConfigError(f"{self.root} is not empty and holds no run: name another folder with --run")

    def clear(self, keep: Collection[str] = ()) -> None:
        """Remove the entries that jobs wrote, except those in ``keep``."""
        self.discard(*(name for name in (self._marker or {}).get("wrote", ()) if name not in keep))

    def discard(self, *names: str) -> None:
        """Remove entries that jobs wrote, and the records of how they were made."""
        marker = self._marker
        if marker is None or not (gone := set(names) & {*marker["wrote"], *marker["made"]}):
            return
        for path in (self.root / name for name in gone):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        made = {name: parts for name, parts in marker["made"].items() if name not in gone}
        self.write_json(MARKER, {**marker, "made": made})

    def made_from(self, name: str) -> dict[str, str]:
        """Return the hashes of what the entry ``name`` was made from, by name of the part; empty if unknown."""
        return dict((self._marker or {"made": {}})["made"].get(name, {}))

    def note_made_from(self, name: str, **parts: str) -> None:
        """Record what the entry ``name`` was made from; see :meth:`made_from`."""
        self.claim()
        marker = self._marker or {}
        self.write_json(MARKER, {**marker, "made": {**marker["made"], name: parts}})

    @property
    def unfinished(self) -> bool:
        """Return whether a training has begun and not ended, so that the model may not match the configuration."""
        return bool((self._marker or {}).get("unfinished"))

    def set_unfinished(self, unfinished: bool) -> None:
        """Record whether a training has begun and not ended."""
        self.claim()
        self.write_json(MARKER, {**(self._marker or {}), "unfinished": unfinished})

    def hash_of(self, path: Path) -> str:
        """Return the hash of a file or folder of the run; unchanged files are not read twice."""
        hashes = fingerprints.Hashes(self.root / "logs" / "hashes.json")
        found = hashes.of_path(path)
        hashes.save()
        return found

    @contextmanager
    def job(self) -> Iterator[None]:
        """Lock the run for one job, which first completes or removes unfinished files of a killed job.

        Raises:
            ConfigError: another job is under way, or the folder is not empty and not a run.
        """
        if self._marker is None and not (self.root / "problem").is_dir():  # a benchmark starts with an empty folder
            self._require_empty()
        new = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
        with exclusive(self.root / LOCK):
            self._tidy()
            try:
                yield
            finally:
                if new and {entry.name for entry in self.root.iterdir()} == {LOCK}:
                    (self.root / LOCK).unlink()
                    for folder in new:
                        folder.rmdir()

    def _tidy(self) -> None:
        """Remove temporary files. No other job writes while the lock is held, so they belong to killed jobs."""
        for name in (self._marker or {}).get("wrote", ()):
            recover(self.root / name)
            for left in self.root.glob(f".{name}.*.tmp"):
                if left.is_file():
                    left.unlink()
        for left in self.features.glob(".*.tmp"):
            left.unlink()
        for left in self.root.glob(".data.*.spill"):
            shutil.rmtree(left, ignore_errors=True)


def validated(model: Path) -> Path:
    """Return the recommender that was not trained on validation events, in the folder of a trained one."""
    own = model / VALIDATED
    return own if own.is_dir() else model


PREPARED = (
    "data", "data.json", "encoder", "encoder_tuning.json", "features", "config.yaml", "environment.json", "logs",
)  # fmt: skip
TRAINED = ("sasrec", "checkpoints", "model", "curves.jsonl")
EVALUATED = (
    "scorer.json", "metrics.json", "popularity_groups.json", "comparisons.json", "beyond_accuracy.json",
    "per_user.parquet", "examples.json",
    "report.html",
)  # fmt: skip
FOLLOWING = (*EVALUATED, "reranker.json", "bundle", "gate.json", "last_release.parquet", "audit.json")
"""Entries that are made from a trained model and removed when another one is trained."""
OWNED = (*PREPARED, *TRAINED, *FOLLOWING, "ablation", "ablation.json", "tuning", "trials.json", "best.yaml")
"""Names that jobs may have left in a run without a marker."""


def environment() -> dict[str, Any]:
    """Return Python, machine, libraries and commit, which are needed to judge or repeat a measurement."""
    libraries = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            libraries[name] = version(name)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "setrec": __version__,
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
    """Return the name of the GPU that this process may use, without loading torch."""
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
