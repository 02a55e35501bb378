"""A trained model for serving, from its files, without transformers and without the tables of its items.

Transformers' model classes take longer to import than all else that a process does until it answers requests. The pass
of :mod:`setrec.models.inference.history_pass` needs weights and configuration only; a bundle has the codes of items.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from setrec.models.inference.history_pass import FAMILIES, CausalRecommender, InferencePass, can_read
from setrec.models.recommender import item_tokens
from setrec.ragged import Ragged

_WEIGHTS = "model.safetensors"
_TABLES = (".table", ".known", ".features")
"""Tensors with a row for each item."""


class StoredModel(CausalRecommender):
    """A model that :class:`InferencePass` can read histories with; built by :func:`load`."""

    def __init__(self, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
        self.config = SimpleNamespace(**config)
        self.backbone = _backbone(tensors, "backbone.model.", config["backbone"])
        with torch.device("meta"):
            self.tokens = item_tokens(self.config, self.backbone.width)
        own = {name.removeprefix("tokens."): tensors[name] for name in tensors if name.startswith("tokens.")}
        self.tokens.load_state_dict(own, strict=False, assign=True)
        self.instruction, self.queries, self.leg = tensors["instruction"], tensors["queries"], None
        if leg := config.get("collaborative_leg"):
            self.leg = _tree(tensors, "leg.")
            self.leg.backbone = _backbone(tensors, "leg.backbone.model.", leg["backbone"])
        self.maps, self.log_scale = tensors["maps"], tensors["log_scale"]
        self.log_skip, self.repeat_logit = tensors.get("log_skip"), tensors.get("repeat_logit")
        self._reader: tuple[dict[str, float], InferencePass] | None = None

    def user_codes(self, histories: Ragged, weights: Mapping[str, float], codes: Tensor) -> Tensor:
        """Return folded user codes, float32 (B, D), of the latest ``max_items`` items of each history."""
        if self._reader is None or self._reader[0] != weights:
            self._reader = dict(weights), InferencePass(self, weights)
        latest = Ragged.of([rows[-self.max_items :] for rows in histories], np.int64)
        return torch.from_numpy(self._reader[1].user_codes(latest, codes.numpy())[0])


def load(folder: Path) -> StoredModel | None:
    """Return the model that ``save_pretrained`` has written to ``folder``; ``None`` if it has to be read by
    :class:`setrec.models.setrec_model.SetRecModel`: another backbone, adapters, weights in several files or not in
    float32."""
    config, weights = json.loads((folder / "config.json").read_text()), folder / _WEIGHTS
    whole = not config.get("lora") and config.get("query_mode") == "item"
    if not whole or (config.get("backbone") or {}).get("model_type") not in FAMILIES or not weights.exists():
        return None
    with safe_open(weights, "pt") as file:
        names = [name for name in file.keys() if not name.startswith("tokens.") or not name.endswith(_TABLES)]  # noqa: SIM118
        tensors = {name: file.get_tensor(name) for name in names}
    if any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        return None
    model = StoredModel(config, tensors)
    return model if can_read(model) else None


def _backbone(tensors: Mapping[str, Tensor], prefix: str, config: Mapping[str, Any]) -> SimpleNamespace:
    stack = _tree(tensors, prefix)
    stack.config = SimpleNamespace(**config)
    stack.layers = [getattr(stack.layers, str(number)) for number in range(stack.config.num_hidden_layers)]
    return SimpleNamespace(model=stack, width=stack.config.hidden_size)


def _tree(tensors: Mapping[str, Tensor], prefix: str) -> Any:
    """Return the tensors whose names start with ``prefix`` as attributes of attributes, by the parts of their names."""
    root = SimpleNamespace()
    for name in tensors:
        if name.startswith(prefix):
            *path, leaf = name.removeprefix(prefix).split(".")
            node = root
            for part in path:
                if not hasattr(node, part):
                    setattr(node, part, SimpleNamespace())
                node = getattr(node, part)
            setattr(node, leaf, tensors[name])
    return root
