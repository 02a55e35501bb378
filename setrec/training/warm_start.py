"""A new model begins where an older one ended, though the catalogue has changed: weights as they are, items by id.

What was learned is copied: backbone, instruction, queries, tokenizers, and the learned vector of every item that both
catalogues hold. What is given with the data is not: text vectors and positions are those of the new catalogue, and a
new item begins as :meth:`setrec.models.setrec_model.SetRecModel.build` leaves it. Text vectors are standardised as the
old model's were, for its autoencoder knows no other scale.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor

from setrec.errors import ConfigError
from setrec.models.item_tokens import COLLABORATIVE, SemanticTokenizer, TextTokenizer
from setrec.models.sasrec import SasRec
from setrec.models.setrec_model import SetRecModel

NEW = -1
"""Stands for "the old catalogue does not hold this item"."""


def old_rows(old_ids: list[str], new_ids: list[str]) -> np.ndarray:
    """For each item of the new catalogue its row in the old one, int64 (I,), or :data:`NEW`."""
    row_of = {item: row for row, item in enumerate(old_ids)}
    return np.fromiter((row_of.get(item, NEW) for item in new_ids), dtype=np.int64, count=len(new_ids))


@torch.no_grad()
def warm_start(model: SetRecModel, old: SetRecModel, rows: np.ndarray, texts: np.ndarray | None = None) -> int:
    """Copy what ``old`` learned into ``model``, in place; returns how many items brought a learned vector along.

    ``rows``: see :func:`old_rows`. ``texts``: the text vectors (I, width) that ``model`` was filled with, read as
    ``old`` read its own; ``None`` where no slot reads any.

    Raises:
        ConfigError: a tensor of one model is missing in the other or has another shape; the message names it, and
            ``model`` is as it was.
    """
    per_item = _per_item(model)
    ours, theirs = model.state_dict(), old.state_dict()
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
    """The same for the collaborative model. Only so do its vectors keep their meaning from one night to the next: a
    model trained from nothing finds like items near each other again, but turned in another direction.

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
    """Names of the tensors with a row per item."""
    found = set()
    for kind, part in model.tokens.parts.items():
        present = {name for name, _ in [*part.named_parameters(), *part.named_buffers()]}
        found |= {f"tokens.parts.{kind}.{name}" for name in present & {"features", "table", "known"}}
    return found


def _copy_rows(target: Tensor, source: Tensor, rows: np.ndarray, known: Tensor, was_known: Tensor) -> int:
    """Copy the rows of items that both models have trained on, so that they know them; returns how many."""
    both = torch.from_numpy(np.flatnonzero(rows != NEW))
    origin = torch.from_numpy(rows[rows != NEW])
    meant = known.cpu()[both] & was_known.cpu()[origin]
    both, origin = both[meant], origin[meant]
    target[both] = source[origin].to(target)
    return len(both)


def _require_fit(ours: dict[str, Tensor], theirs: dict[str, Tensor], per_item: set[str]) -> None:
    """All tensors of ours are there in the same shape, but for the number of items."""
    for name, value in ours.items():
        found, first = theirs.get(name), 1 if name in per_item else 0
        if found is None or found.shape[first:] != value.shape[first:]:
            there = "has none" if found is None else f"has {tuple(found.shape)}"
            raise ConfigError(
                f"warm start: the models do not fit: {name} is {tuple(value.shape)} here, the older one {there}"
            )
