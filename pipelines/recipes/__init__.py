"""Recipes: overrides of the configuration's defaults, as YAML files in this folder.

A recipe contains only the sections and keys that it changes; ``setrec train --run RUN --config RECIPE.yaml`` trains it
on the data of a run. The defaults are the recipe called "ours" in the comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import yaml

from pipelines.common.yaml_file import merged
from pipelines.config.job import JobConfig, validate

__all__ = ["ablations", "applied", "load", "merged"]


def load(name: str) -> dict[str, Any]:
    """Return the overrides of the recipe ``name``, e.g. ``published-t5`` or ``ablation/without-text``."""
    return yaml.safe_load(files(__package__).joinpath(f"{name}.yaml").read_text()) or {}


def ablations() -> list[str]:
    """Return the names of the ablation's recipes, in order."""
    found = (path.name for path in files(__package__).joinpath("ablation").iterdir())
    return [f"ablation/{name.removesuffix('.yaml')}" for name in sorted(found) if name.endswith(".yaml")]


def applied(config: JobConfig, overrides: Mapping[str, Any], *changes: str, source: str = "recipe") -> JobConfig:
    """Return a configuration with overrides, then ``section.key=value`` ``changes``; ``source`` names them in an error.

    Raises:
        ConfigError: a key or value is not allowed.
    """
    agree = bool({"evaluation", "gate"} & {*overrides})  # errors of the run are not those of the overrides
    return validate(merged(config.model_dump(mode="json"), overrides), source, list(changes), agree=agree)
