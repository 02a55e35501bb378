"""Warm start: initialise a model with the weights of an older one, matching items of a changed catalogue by id.

Learned weights are copied: backbone, instruction, queries, tokenizers, and the learned vector of every item in both
catalogues. Data is not: text vectors and positions are those of the new catalogue, and a new item keeps its
initialisation by :meth:`setrec.models.setrec_model.SetRecModel.build`. Text vectors are standardised like the old
model's, because its autoencoder was trained at that scale.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor

from setrec.errors import ConfigError
from setrec.models.item_tokens import COLLABORATIVE, SEMANTIC, SemanticTokenizer, TextTokenizer
from setrec.models.sasrec import SasRec
from setrec.models.setrec_model import SetRecModel

WORDS = f"tokens.parts.{SEMANTIC}.words."
"""Tensors that predict key words, which are others in another catalogue; training alone uses them."""
NEW = -1
"""Row number of an item that is not in the old catalogue."""


def old_rows(old_ids: list[str], new_ids: list[str]) -> np.ndarray:
    """Return for each item of the new catalogue its row in the old one, int64 (I,), or :data:`NEW`."""
    row_of = {item: row for row, item in enumerate(old_ids)}
    return np.fromiter((row_of.get(item, NEW) for item in new_ids), dtype=np.int64, count=len(new_ids))


@torch.no_grad()
def warm_start(model: SetRecModel, old: SetRecModel, rows: np.ndarray, texts: np.ndarray | None = None) -> int:
    """Copy what ``old`` learned into ``model``, in place; return the number of items whose learned vector was copied.

    ``rows``: see :func:`old_rows`. ``texts``: the text vectors (I, width) of ``model``, standardised like those of
    ``old``; ``None`` if no slot reads text.

    Raises:
        ConfigError: a tensor of one model is missing in the other or has another shape; the message names it, and
            ``model`` is as it was.
    """
    if (model.leg is None) != (old.leg is None):
        one, other = ("has a", "has none") if model.leg else ("has no", "has one")
        raise ConfigError(
            f"warm start: the model {one} collaborative leg and the older one {other}: see model.collaborative_leg"
        )
    per_item = _per_item(model)
    ours, theirs = model.state_dict(), {"log_offset_scale": torch.zeros(1), **old.state_dict()}
    ours = {name: value for name, value in ours.items() if not name.startswith(WORDS)}
    _require_fit(ours, theirs, per_item)
    for name, value in ours.items():
        if name not in per_item:
            value.copy_(theirs[name])
    if texts is not None:
        for kind in model.tokens.text_kinds:
            cast(SemanticTokenizer | TextTokenizer, model.tokens.parts[kind]).refill(texts)
    table, source = model.tokens.table(COLLABORATIVE), old.tokens.table(COLLABORATIVE)
    if table is None or source is None or not table.table.requires_grad:
        return 0
    return _copy_rows(table.table.data, source.table.data, rows, table.known, source.known)


@torch.no_grad()
def warm_start_sasrec(model: SasRec, old: SasRec, rows: np.ndarray) -> int:
    """Copy the weights of a SASRec likewise. This keeps its vectors compatible between successive trainings: a model
    trained from scratch learns the same similarities, but in a rotated space.

    Raises:
        ConfigError: as of :func:`warm_start`.
    """
    ours, theirs = model.state_dict(), old.state_dict()
    per_item = {"items.weight", "trained"}
    _require_fit(ours, theirs, per_item)
    for name, value in ours.items():
        if name not in per_item:
            value.copy_(theirs[name])
    return _copy_rows(model.items.weight.data, old.items.weight.data, rows, model.trained, old.trained)


def _per_item(model: SetRecModel) -> set[str]:
    """Return the names of the tensors with a row per item."""
    names = set()
    for kind, part in model.tokens.parts.items():
        present = {name for name, _ in [*part.named_parameters(), *part.named_buffers()]}
        names |= {f"tokens.parts.{kind}.{name}" for name in present & {"features", "table", "known"}}
    return names


def _copy_rows(target: Tensor, source: Tensor, rows: np.ndarray, known: Tensor, was_known: Tensor) -> int:
    """Copy the rows of items that both models know from training; return their number."""
    both = torch.from_numpy(np.flatnonzero(rows != NEW))
    origin = torch.from_numpy(rows[rows != NEW])
    meant = known.cpu()[both] & was_known.cpu()[origin]
    both, origin = both[meant], origin[meant]
    target[both] = source[origin].to(target)
    return len(both)


def _require_fit(ours: dict[str, Tensor], theirs: dict[str, Tensor], per_item: set[str]) -> None:
    """Check that all tensors of ``ours`` are in ``theirs``, with the same shape except for the number of items."""
    for name, value in ours.items():
        other, first = theirs.get(name), 1 if name in per_item else 0
        if other is None or other.shape[first:] != value.shape[first:]:
            there = "has none" if other is None else f"has {tuple(other.shape)}"
            raise ConfigError(
                f"warm start: the models do not fit: {name} is {tuple(value.shape)} here, the older one {there}"
            )
