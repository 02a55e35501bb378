"""One typed configuration for every job: read from YAML, overridden from the command line, saved with the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from pipelines.ingest import DataSettings
from serving.retriever import RetrieverSettings
from serving.settings import ServingSettings
from setrec.atomic import atomic_file
from setrec.errors import ConfigError
from setrec.model import ModelSettings
from setrec.objective import ObjectiveSettings
from setrec.sasrec import SasRecSettings
from setrec.settings import Settings
from setrec.training import TrainingSettings


class EncoderSettings(Settings):
    """The sentence encoder: ``path`` is a local directory or a hub id; ``null`` leaves the semantic slots out."""

    path: str | None = None
    batch_size: int = Field(64, ge=1)
    max_length: int = Field(256, ge=8)


class ClusterSettings(Settings):
    """Where training runs. ``address``: a running Ray cluster, or ``null`` for this machine alone.

    ``threads`` per worker; ``null`` shares the machine's cores among the workers.
    """

    address: str | None = None
    workers: int = Field(1, ge=1)
    gpu: bool = False
    threads: int | None = Field(None, ge=1)


class EvaluationSettings(Settings):
    """Cut-offs, bootstrap and the slot-weight grid of the ranking evaluation; ``knn``: whether to tune ItemKNN."""

    ks: tuple[int, ...] = (5, 10, 20)
    resamples: int = Field(1000, ge=10)
    weight_step: float = Field(0.1, gt=0, le=1)
    seed: int = 0
    examples: int = Field(5, ge=0)


class JobConfig(Settings):
    """All settings of a run, one section per part. Every key is optional but ``data.interactions``."""

    name: str = "run"
    data: DataSettings
    encoder: EncoderSettings = EncoderSettings()
    sasrec: SasRecSettings = SasRecSettings()
    model: ModelSettings = ModelSettings()
    loss: ObjectiveSettings = ObjectiveSettings()
    training: TrainingSettings = TrainingSettings()
    cluster: ClusterSettings = ClusterSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    retriever: RetrieverSettings = RetrieverSettings()
    serving: ServingSettings = ServingSettings()

    def save(self, path: Path) -> None:
        """Write the resolved configuration as YAML, atomically."""
        with atomic_file(path) as temporary:
            temporary.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def load_config(path: Path, overrides: list[str] | None = None) -> JobConfig:
    """Read a YAML configuration and apply ``section.key=value`` overrides (values are YAML).

    Raises:
        ConfigError: the file cannot be read, or a key or value is not allowed; the message names it.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a mapping of sections is expected")
    return validate(raw, str(path), overrides)


def validate(raw: dict[str, Any], source: str, overrides: list[str] | None = None) -> JobConfig:
    """The configuration from plain values and overrides; ``source`` names them in an error.

    Raises:
        ConfigError: a key or value is not allowed.
    """
    apply_overrides(raw, overrides)
    try:
        return JobConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{source}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def apply_overrides(raw: dict[str, Any], overrides: list[str] | None) -> None:
    """Apply ``section.key=value`` overrides to plain values, in place; values are YAML.

    Raises:
        ConfigError: an override that is not of that form.
    """
    for override in overrides or []:
        _override(raw, override)


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {override}: expected section.key=value")
    *sections, leaf = key.strip().split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"--set {override}: '{section}' is not a section")
    try:
        raw[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: not YAML: {' '.join(str(error).split())}") from error
