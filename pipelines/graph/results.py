"""Stored results of an evaluation: one file per system and seed, named by a hash of everything it depends on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.common import fingerprints
from pipelines.graph.config import GraphConfig
from setrec.atomic import atomic_file

PACKAGES = ("setrec", "nodetok")
TABLES = (".parquet", ".csv", ".jsonl")


@dataclass(eq=False)
class Result:
    """Metrics of every test example (B,), CPU seconds of training, and the learning curve, if any."""

    metrics: dict[str, np.ndarray]
    seconds: float
    curve: list[dict[str, Any]]


class ResultStore:
    """Stores results in ``folder`` by a hash of settings, data, code, system, seed and, for baselines, budget."""

    def __init__(self, folder: Path, data: Path, config: GraphConfig) -> None:
        self.folder = folder
        tables = [path for path in sorted(data.iterdir()) if path.suffix in TABLES]
        settings = config.model_dump(mode="json")
        settings.pop("evaluation")
        transfer = config.evaluation.transfer
        if transfer is not None:
            tables += [path for path in sorted(transfer.iterdir()) if path.suffix in TABLES]
        self._base = {
            "settings": settings,
            "data": [[path.name, fingerprints.of_file(path)] for path in tables],
            "code": fingerprints.of_statements(PACKAGES),
        }

    def _path(self, system: str, seed: int, budget: float | None) -> Path:
        given = {**self._base, "system": system, "seed": seed, "budget": budget}
        return self.folder / f"{fingerprints.of_value(given)[:24]}.npz"

    def get(self, system: str, seed: int, budget: float | None = None) -> Result | None:
        """Return a stored result; ``None`` if it is missing or unreadable."""
        try:
            with np.load(self._path(system, seed, budget), allow_pickle=False) as stored:
                record = json.loads(str(stored["record"]))
                metrics = {name: stored[f"metric {name}"] for name in record["metrics"]}
        except (OSError, ValueError, KeyError):
            return None
        return Result(metrics, record["seconds"], record["curve"])

    def put(self, result: Result, system: str, seed: int, budget: float | None = None) -> None:
        """Store a result atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {"metrics": list(result.metrics), "seconds": result.seconds, "curve": result.curve}
        arrays = {f"metric {name}": values for name, values in result.metrics.items()}
        with atomic_file(self._path(system, seed, budget)) as path, path.open("wb") as out:
            np.savez(out, allow_pickle=False, record=np.array(json.dumps(record)), **arrays)
