"""``setrec check``: checks of a configuration and its data before longer jobs. Does not import torch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pipelines.config.job import JobConfig, load_config
from pipelines.config.problems import SettingsError
from pipelines.ingest import ingest
from setrec.errors import ConfigError, DataError


def check(path: Path, overrides: list[str]) -> dict[str, Any]:
    """Check a configuration and, if its settings are valid, ingest its data into a folder that is then removed.

    Returns ``errors``, a list of ``key`` and ``message``, with everything that this or a later job will refuse; and, if
    the data can be read: ``rows`` of interactions, ``users`` and ``items`` left, ``rejected`` rows of all tables with
    ``rejected_reasons``, ``splits``, and further counts and shares of ``data.json``.
    """
    errors: list[dict[str, str]] = []
    try:
        config = load_config(path, overrides, agree=True)
    except SettingsError as error:
        return {"errors": [{"key": p.key, "message": p.message} for p in error.problems]}
    except ConfigError as error:
        return {"errors": [{"key": "", "message": str(error)}]}
    found: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="setrec-check-") as folder:
            found = _profile(ingest.ingest(config.data, Path(folder) / "data"), config)
    except (DataError, ConfigError) as error:
        errors.append({"key": "data", "message": str(error)})
    errors += _refused_later(found, config)
    return {"errors": errors, **found}


def _profile(summary: dict[str, Any], config: JobConfig) -> dict[str, Any]:
    rows, dropped = summary["rows"]["interactions"], summary["dropped"]
    return {
        "rows": rows,
        "users": summary["users"],
        "items": summary["items"],
        "interactions": summary["interactions"],
        "rejected": sum(summary["rejected"].values()),
        "rejected_share": round(summary["rejected"]["interactions"] / rows, 4),
        "rejected_reasons": summary["rejected_reasons"],
        "dropped": {reason: count for reason, count in dropped.items() if count},
        "duplicates": dropped["repeated"],
        "equal_times_share": summary["tied_share"],
        "splits": summary["splits"],
        "cold_item_share": summary["cold_item_share"],
        "text": summary["text"],
        "attributes": summary["attributes"],
        "items_without_text": summary["items_without_text"],
    }


def _refused_later(found: dict[str, Any], config: JobConfig) -> list[dict[str, str]]:
    """Return what `train` and `evaluate` will refuse in data that `prepare` accepts."""
    splits, later = found.get("splits", {}), []
    why = {
        "leave_one_out": "no user has enough interactions",
        "global_time": "no user has interactions on both sides of the bound",
        "column": f"the column '{config.data.columns.split}' holds no such row",
    }[config.data.split.kind]
    for name, use in (("valid", "validation: `setrec train` refuses it"), ("test", "test: `setrec evaluate` does")):
        if splits.get(name) == 0:
            later.append({"key": "data.split", "message": f"leaves no interaction for {use} ({why})"})
    return later
