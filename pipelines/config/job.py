"""One typed configuration for every job: read from YAML, overridden from the command line, saved with the run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, ValidationError

from pipelines.common.trackers import TrackingSettings
from pipelines.common.yaml_file import parse_yaml, read_yaml
from pipelines.config.problems import SettingsError, conflicts, problems_of, unknown_keys
from pipelines.config.search_space import TuneSettings
from pipelines.config.sections import (
    ClusterSettings,
    EvaluationSettings,
    GateSettings,
    ItemEncoderSettings,
    ReleaseSettings,
    StructuralSettings,
)
from pipelines.data.settings import DataSettings
from serving.retrieval.policy import RetrieverSettings
from serving.runtime.settings import ServingSettings
from setrec.atomic import atomic_file
from setrec.errors import ConfigError
from setrec.models.settings import ModelSettings, SasRecSettings
from setrec.settings import LocalPath, Settings
from setrec.training.settings import ObjectiveSettings, TrainingSettings


def _file_name(name: str) -> str:
    """Require a name that is valid as a folder name, since checkpoints of a run are in a folder of its name."""
    if not name.strip() or name.startswith(".") or any(letter in "/\\\0" for letter in name):
        raise ValueError("must be a name that a folder can have, not empty and with neither / nor a dot in front")
    return name


class JobConfig(Settings):
    """All settings of a run, one section per part. Every key is optional but ``data.interactions``.

    ``warm_start``: a run or bundle whose weights training starts from; items are matched by their ids, and the models
    must have the same shape. ``null``: random weights, or the backbone's pretrained ones.
    """

    name: Annotated[str, AfterValidator(_file_name)] = "run"
    warm_start: Annotated[LocalPath, AfterValidator(Path.absolute)] | None = None  # other working directory
    data: DataSettings
    encoder: ItemEncoderSettings = ItemEncoderSettings()
    structural: StructuralSettings = StructuralSettings()
    sasrec: SasRecSettings = SasRecSettings()
    model: ModelSettings = ModelSettings()
    loss: ObjectiveSettings = ObjectiveSettings()
    training: TrainingSettings = TrainingSettings()
    cluster: ClusterSettings = ClusterSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    tune: TuneSettings = TuneSettings()
    tracking: TrackingSettings = TrackingSettings()
    retriever: RetrieverSettings = RetrieverSettings()
    serving: ServingSettings = ServingSettings()
    gate: GateSettings = GateSettings()
    release: ReleaseSettings = ReleaseSettings()

    @property
    def timed(self) -> bool:
        """Whether the split is one of global time, so that interactions of other users in it are unknown before its
        end; a split by column counts as one."""
        return self.data.split.kind != "leave_one_out"

    def save(self, path: Path, without: Collection[str] = ()) -> None:
        """Write the resolved configuration as YAML, atomically; sections named in ``without`` are left out."""
        values = self.model_dump(mode="json", exclude=set(without))
        with atomic_file(path) as temporary:
            temporary.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def load_config(path: Path, overrides: list[str] | None = None, *, agree: bool = False) -> JobConfig:
    """Read a YAML configuration and apply ``section.key=value`` overrides (values are YAML).

    ``agree``: also check the consistency between sections, which is not required for an existing run.

    Raises:
        ConfigError: the file cannot be read, or a key or value is not allowed; the message names it.
    """
    return validate(read_yaml(path), str(path), overrides, agree=agree)


def validate(raw: dict[str, Any], source: str, overrides: list[str] | None = None, *, agree: bool = False) -> JobConfig:
    """Return the configuration from plain values and overrides; ``source`` names them in an error; ``agree``: see
    :func:`load_config`.

    Raises:
        SettingsError: keys or values are not allowed; it lists all of them.
    """
    apply_overrides(raw, overrides)
    found, cause, config = list(conflicts(raw)) if agree else [], None, None
    try:
        config = JobConfig.model_validate(raw)
    except ValidationError as error:
        found, cause = [*problems_of(error, JobConfig, raw), *found], error
    else:
        found += unknown_keys(JobConfig, config.tune.space) if agree else ()
    if config is None or found:
        raise SettingsError(source, found) from cause
    return config


def apply_overrides(raw: dict[str, Any], overrides: list[str] | None) -> None:
    """Apply ``section.key=value`` overrides to plain values, in place; values are YAML.

    Raises:
        ConfigError: an override does not have that form.
    """
    for override in overrides or []:
        _override(raw, override)


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {override}: expected section.key=value")
    *sections, leaf = key.strip().split(".")
    for section in sections:
        if raw.get(section) is None:  # a section that is null by default, such as model.backbone.lora
            raw[section] = {}
        raw = raw[section]
        if not isinstance(raw, dict):
            raise ConfigError(f"--set {override}: '{section}' is not a section")
    try:
        raw[leaf] = parse_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: not YAML: {' '.join(str(error).split())}") from error
