"""The configuration of a graph run, with defaults that depend on the task, from YAML and ``--set``."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from nodetok.language.settings import ABLATIONS, TOKENS, GraphModelSettings, GraphTrainingSettings
from nodetok.settings import GraphDataSettings, TokenizerSettings
from pipelines.common.yaml_file import merged, read_yaml
from pipelines.config.job import apply_overrides
from pipelines.config.sections import EncoderSettings
from setrec.atomic import atomic_file
from setrec.errors import ConfigError
from setrec.settings import LocalPath, Settings


class GraphEvaluationSettings(Settings):
    """Settings of an evaluation: ``seeds`` runs of each of ``ablations`` and of the baselines with ``opponents``;
    intervals by ``resamples`` bootstrap resamples. ``transfer``: the folder of another graph, whose test questions the
    trained models answer as well (``structure``, and ``classification`` of nodes with texts)."""

    seeds: int = Field(5, ge=1)
    ablations: tuple[str, ...] = ABLATIONS
    opponents: bool = True
    resamples: int = Field(1000, ge=10)
    transfer: LocalPath | None = None


class GraphConfig(Settings):
    """All settings of a graph run. ``name`` is the task; ``directed``: whether the edges of a graph are."""

    name: str
    directed: bool = False
    data: GraphDataSettings = GraphDataSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    encoder: EncoderSettings = EncoderSettings()
    model: GraphModelSettings = GraphModelSettings()
    learning: GraphTrainingSettings = GraphTrainingSettings()
    evaluation: GraphEvaluationSettings = GraphEvaluationSettings()

    def save(self, path: Path) -> None:
        """Write the resolved configuration as YAML, atomically."""
        with atomic_file(path) as temporary:
            temporary.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


_SMALL_GRAPHS: dict[str, Any] = {
    "tokenizer": {"anchors": {"count": 40}},
    "model": {"position_tokens": 1, "neighbours": 4, "dropout": 0.1, "backbone": {"dropout": 0.1}},
    "learning": {"epochs": 20, "patience": 8, "batch": 64, "learning_rate": 1e-3},
}

DEFAULTS: dict[str, dict[str, Any]] = {
    # Exact distances need many anchors, and hubs, which lie on most shortest paths.
    "structure": {
        "tokenizer": {"anchors": {"strategy": "degree", "count": 256}},
        "model": {
            "profile": "sorted", "position_tokens": 1, "neighbours": 0, "pair_neighbours": 16, "dropout": 0.0,
            "backbone": {"dropout": 0.0},
        },
        "learning": {"epochs": 6, "patience": 3, "batch": 128, "learning_rate": 2e-3},
    },
    "classification": {
        "model": {
            "position_tokens": 1, "neighbours": 0, "feature_restart": 0.1, "feature_dropout": 0.7,
            "position_dropout": 0.7, "dropout": 0.5, "soft_prompt": 0, "backbone": {"dropout": 0.3},
        },
        "learning": {
            "epochs": 28, "patience": 12, "batch": 140, "learning_rate": 1e-3, "weight_decay": 0.05,
            "consistency": {"weight": 1.0, "nodes": 128, "ramp": 60},
        },
    },
    "edge_classification": {
        "model": {
            "position_tokens": 1, "neighbours": 8, "feature_dropout": 0.3, "dropout": 0.2, "backbone": {"dropout": 0.1},
        },
        "learning": {"epochs": 12, "patience": 4, "batch": 128, "learning_rate": 1e-3},
    },
    "links": {
        "tokenizer": {"anchors": {"strategy": "degree", "count": 128}},
        "model": {
            "profile": "sorted", "position_tokens": 1, "neighbours": 8, "feature_dropout": 0.3, "identity": 64,
            "backbone": {"dropout": 0.0},
        },
        "learning": {"epochs": 12, "patience": 4, "batch": 128, "learning_rate": 1e-3},
    },
    "completion": {
        "encoder": {"max_length": 64},
        "model": {"position_tokens": 1, "neighbours": 12, "identity": 128},
        "learning": {"epochs": 8, "batch": 512, "learning_rate": 2e-3, "minutes": 14, "sampled": 8192},
        "evaluation": {"seeds": 1},
    },
    "connectivity": _SMALL_GRAPHS,
    "cycle": _SMALL_GRAPHS,
    "shortest_path": _SMALL_GRAPHS,
    "stance": {
        "tokenizer": {"anchors": {"count": 16}},
        "model": {
            "position_tokens": 1, "neighbours": 4, "feature_dropout": 0.5, "dropout": 0.3, "backbone": {"dropout": 0.2},
        },
        "learning": {"epochs": 20, "patience": 8, "batch": 64, "learning_rate": 1e-3, "weight_decay": 0.05},
    },
}  # fmt: skip
"""What differs from the sections' own defaults, by task."""


DIRECTED = ("structure", "classification", "edge_classification", "links")
"""Tasks on a graph whose edges may have directions (``structure``: for ``tokenize``)."""


def graph_config(task: str | None, file: Path | None = None, overrides: list[str] | None = None) -> GraphConfig:
    """Defaults of the task, then a YAML file, then ``section.key=value`` overrides. Without a task: that of the file,
    or ``structure``.

    Raises:
        ConfigError: an unknown task, or another one than that of the file; a file that cannot be read; a key or value
            that is not allowed or has no effect on the task.
    """
    given_by_file = {} if file is None else read_yaml(file)
    task = str(given_by_file.get("name", "structure")) if task is None else task
    raw: dict[str, Any] = {"name": task, "data": {"split": {}}, **copy.deepcopy(DEFAULTS.get(task, {}))}
    raw = merged(raw, given_by_file)
    apply_overrides(raw, overrides)
    for name in (task, raw["name"]):
        if name not in DEFAULTS:
            raise ConfigError(f"unknown task '{name}' (known: {', '.join(DEFAULTS)})")
    if raw["name"] != task:
        raise ConfigError(f"the task is '{task}', but 'name' is '{raw['name']}'" + (f" in {file}" if file else ""))
    try:
        config = GraphConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{file or task}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    _refuse_ignored(config)
    given = config.model.model_fields_set
    own = {name: value for name, value in _model_defaults(config).items() if name not in given}
    config = config.model_copy(update={"model": config.model.model_copy(update=own)})
    unknown = [name for name in config.evaluation.ablations if name not in ABLATIONS]
    if unknown or TOKENS not in config.evaluation.ablations:
        raise ConfigError(f"evaluation.ablations: '{TOKENS}' and any of {', '.join(ABLATIONS)} are expected")
    return config


def _refuse_ignored(config: GraphConfig) -> None:
    """Raise a ConfigError for settings that have no effect on the task."""
    if config.directed and config.name not in DIRECTED:
        raise ConfigError(f"directed=true: '{config.name}' has no directions")
    if config.tokenizer.distances.direction != "ignored" and not config.directed:
        raise ConfigError(f"tokenizer.distances.direction={config.tokenizer.distances.direction} needs directed=true")
    if config.tokenizer.distances.kind == "weighted" and config.name not in (*DIRECTED, "shortest_path"):
        raise ConfigError(f"tokenizer.distances.kind=weighted: the edges of '{config.name}' have no lengths")
    if config.name == "completion" and config.learning.minutes is not None and config.model.backbone.pretrained:
        raise ConfigError(
            "model.backbone.pretrained: completion trains a language model with learning.minutes=null only"
        )


def _model_defaults(config: GraphConfig) -> dict[str, Any]:
    """Return what differs from the model's defaults because of other settings."""
    if config.name == "classification" and config.evaluation.transfer is not None:
        # The other graph has anchors and classes of its own.
        return {"profile": "sorted", "identity": 0}
    if config.name == "stance" and config.encoder.path and not config.model.backbone.pretrained:
        # Beside an encoder's vectors, a model that has to learn its vocabulary memorises the words of so few examples.
        return {"node_words": 0}
    return {}
