"""Saving and loading a trained reader: safetensors and JSON, no pickle.

Frozen weights of a pretrained language model are not saved: the record contains the checkpoint's name and the SHA-256
of its weights, and they are loaded from there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor
from transformers import AutoTokenizer

from nodetok.language.language_model import base_sha256, build_language_model, from_config, tune
from nodetok.language.model import GraphLanguageModel
from nodetok.language.prompts import Neighbourhoods, NodeData, PromptEncoder, PromptText, Shape
from nodetok.language.settings import GraphModelSettings
from nodetok.language.training import Reader
from setrec.errors import ConfigError


def has_base(settings: GraphModelSettings) -> bool:
    """Return whether the language model's weights are those of a checkpoint, so that they need not be saved."""
    return settings.backbone.pretrained is not None and settings.tuning != "full"


def own_weights(model: GraphLanguageModel) -> dict[str, Tensor]:
    """Return the weights to save: all, or those not in the checkpoint."""
    state = model.state_dict()
    if not has_base(model.settings):
        return state
    return {name: value for name, value in state.items() if not name.startswith("lm.") or "lora_" in name}


def save_reader(reader: Reader, folder: Path) -> dict[str, Any]:
    """Write weights, tokenizer and node data to the new ``folder``, and return the record for :func:`load_reader`."""
    folder.mkdir()
    model, encoder = reader.model, reader.encoder
    base = None
    if has_base(model.settings):
        base = {"name": model.settings.backbone.pretrained, "sha256": base_sha256(model.lm)}
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in own_weights(model).items()}, folder / "model.safetensors"
        )
    else:
        save_model(model, str(folder / "model.safetensors"))
        (folder / "config.json").write_text(model.lm.config.to_json_string(use_diff=False))
    reader.tokenizer.save_pretrained(folder / "words")
    tensors = {"table": reader.data.table}
    optional = {"features": reader.data.features, "near": reader.data.near, "classes": reader.data.classes}
    tensors |= {name: value for name, value in optional.items() if value is not None}
    if encoder.neighbourhoods is not None:
        tensors["neighbours"] = torch.from_numpy(encoder.neighbourhoods.rows)
        tensors["relations"] = torch.from_numpy(encoder.neighbourhoods.relations)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "data.safetensors")
    return {
        "settings": model.settings.model_dump(mode="json"),
        "shape": asdict(model.shape),
        "base": base,
        "raw": reader.data.raw,
        "plain": encoder.plain,
        "prefix": encoder.text.prefix,
        "template": list(encoder.text.template),
        "node_words": encoder.text.node_budget if encoder.text.nodes is not None else 0,
        "edge_words": encoder.text.edge_budget,
        "precision": reader.precision,
    }


def load_reader(
    folder: Path, record: dict[str, Any], node_texts: Sequence[str] | None, candidates: Sequence[str]
) -> Reader:
    """Load what :func:`save_reader` wrote; ``node_texts``: the texts of the nodes, in row order; ``candidates``: the
    answers to choose from.

    Raises:
        ConfigError: the checkpoint that the reader was trained on is not available, or has changed.
    """
    settings, shape = GraphModelSettings.model_validate(record["settings"]), Shape(**record["shape"])
    if record["base"] is None:
        lm = from_config(json.loads((folder / "config.json").read_text()))
        model = GraphLanguageModel(settings, shape, tune(lm, settings.backbone, settings.tuning))
        load_model(model, str(folder / "model.safetensors"))
    else:
        lm = build_language_model(settings.backbone, settings.tuning, shape.words, settings.frozen_layers)
        if base_sha256(lm) != record["base"]["sha256"]:
            raise ConfigError(f"'{record['base']['name']}' has other weights than those that this model was trained on")
        model = GraphLanguageModel(settings, shape, lm)
        given = load_file(folder / "model.safetensors")
        if given.keys() != own_weights(model).keys():
            raise ConfigError(f"{folder}: the weights do not fit the settings")
        model.load_state_dict(given, strict=False)
    tokenizer = AutoTokenizer.from_pretrained(folder / "words", local_files_only=True)
    tensors = load_file(folder / "data.safetensors")
    neighbourhoods = None
    if "neighbours" in tensors:
        neighbourhoods = Neighbourhoods(tensors["neighbours"].numpy(), tensors["relations"].numpy())
    before, after = record["template"]
    budget = int(record["node_words"])
    text = PromptText(
        node_texts if budget else None, budget, str(record["prefix"]), (before, after), int(record["edge_words"])
    )  # fmt: skip
    encoder = PromptEncoder(
        tokenizer,
        settings.position_tokens,
        shape.feature_tokens,
        neighbourhoods,
        plain=bool(record["plain"]),
        text=text,
    )
    features, near, classes = (tensors.get(name) for name in ("features", "near", "classes"))
    data = NodeData(tensors["table"], features, bool(record["raw"]), near, classes)
    return Reader(model.eval(), encoder, data, tokenizer, candidates, record.get("precision", "auto"))
