"""Reading of only the new items of histories, from the keys and values of the items before them.

In a causal backbone the keys and values of an item depend on the instruction, the items before it and its position, but
not on later items: they stay valid when the history grows at its end. They do not when the window of the latest
``max_items`` slides: above the first layer every state depends on the items that have left the window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import Cache, DynamicLayer

from setrec.errors import ConfigError
from setrec.models import grounding, masks
from setrec.models.backbones import CausalBackbone
from setrec.models.setrec_model import SetRecModel
from setrec.ragged import Ragged


def can_continue(model: object) -> TypeGuard[SetRecModel]:
    """Return whether :func:`user_codes` can read histories with ``model``: its backbone is causal."""
    return isinstance(model, SetRecModel) and isinstance(model.backbone, CausalBackbone)


@torch.no_grad()
def user_codes(
    model: SetRecModel,
    histories: Ragged,
    weights: Mapping[str, float],
    codes: Tensor,
    known: Sequence[Tensor | None],
) -> tuple[Tensor, list[Tensor]]:
    """Return the user codes (B, D) of :meth:`SetRecModel.user_codes`, and the keys and values of each history.

    ``known``: keys and values that were returned for the first items of each history, at least one and not all;
    ``None`` where there are none. Those of k items have the shape (2 * layers, heads, a + k * m, c), so those of fewer
    items are a slice. Histories with and without known items are read in a pass each, because lengths differ.

    Raises:
        ConfigError: the backbone is not causal.
    """
    if not can_continue(model):
        raise ConfigError("keys and values of a history stay valid behind a causal backbone only")
    items, visible = model.whole(histories)
    groups = [[b for b, own in enumerate(known) if (own is not None) == is_known] for is_known in (True, False)]
    parts, whole = list[Tensor](), list[Tensor]()
    for rows in filter(None, groups):
        some = [own for b in rows if (own := known[b]) is not None]
        answers, states = _answers(model, items[rows], visible[rows], codes, some)
        parts.append(answers)
        whole += states
    order = np.argsort(np.concatenate(groups)).astype(np.int64)
    answers, whole = torch.cat(parts)[torch.from_numpy(order)], [whole[at] for at in order]
    own_codes = model.grounded(answers, items, visible, codes)
    return grounding.joined(model.tokens, own_codes, weights)[:, 0].float(), whole


def _answers(
    model: SetRecModel, items: Tensor, visible: Tensor, codes: Tensor, known: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Return answers (B, 1, n, d) to histories, ``items`` (B, L) with ``visible`` (B, 1) of them, and their keys and
    values; ``known`` as in :func:`read_on`."""
    a, m = len(model.instruction), model.tokens_per_item
    before = torch.tensor([(own.shape[2] - a) // m for own in known] or [0], device=items.device)[:, None]
    new = visible - before
    at = before + torch.arange(int(new.max()), device=items.device)
    vectors = model.item_vectors(items.gather(1, at.clamp(max=items.shape[1] - 1).expand(len(items), -1)), codes)
    queries = vectors[:, None, :0] if model.maps is not None else model.query_vectors(vectors, new)
    queries = queries[:, 0].expand(len(items), -1, -1)
    backbone = cast(CausalBackbone, model.backbone)
    states, whole = read_on(backbone, model.instruction, vectors, queries, new, known, m)
    if model.maps is None:
        return model.answers_from(states[:, None, -queries.shape[1] :]), whole
    head = states.shape[1] - vectors.shape[1]
    return model.answers_from(masks.last_seen(states, head + new - 1)), whole


def read_on(
    backbone: CausalBackbone,
    instruction: Tensor,
    items: Tensor,
    queries: Tensor,
    new: Tensor,
    known: Sequence[Tensor],
    m: int,
) -> tuple[Tensor, list[Tensor]]:
    """Return the states (B, S, d) of the new tokens, and the keys and values of each whole history, as ``known``.

    Args:
        backbone: the model that reads.
        instruction: input vectors (a, d); the first new tokens if nothing is known.
        items: input vectors (B, N * m, d) of the new items, right-padded.
        queries: input vectors (B, n, d) of the queries, the last new tokens; n may be 0.
        new: number of new items of each history, int (B, 1), N at most.
        known: keys and values (2 * layers, heads, a + k * m, c) of the instruction and the first k items of each
            history; empty if nothing is known of any.
        m: number of tokens per item.
    """
    (batch, n), count, device = queries.shape[:2], items.shape[1] // m, items.device
    a = 0 if known else len(instruction)
    lengths = torch.tensor([own.shape[2] for own in known] or [0] * batch, device=device)[:, None]
    longest = int(lengths.max())
    # Known keys are padded on the left, so that the keys of a history are one slice.
    before = torch.arange(longest, device=device) >= longest - lengths
    history = masks.history_mask(a, count, m, causal_instruction=True, device=device)
    itself = torch.eye(n, dtype=torch.bool, device=device).expand(batch, -1, -1)
    asks = torch.cat([masks.query_mask(new, n, a, count, m), itself], dim=2)
    among = torch.cat([F.pad(history, (0, n)).expand(batch, -1, -1), asks], dim=1)
    positions = masks.history_positions(a, count, m, device).expand(batch, -1)
    positions = torch.cat([positions, masks.query_positions(new, n, a)], dim=1)
    if known:
        positions = positions + len(instruction) + (lengths - len(instruction)) // m
    layers = _layers(backbone.model.config.num_hidden_layers, known, longest)
    states: Tensor = backbone.model(
        inputs_embeds=torch.cat([instruction[:a].expand(batch, -1, -1), items, queries], dim=1),
        attention_mask=torch.cat([before[:, None].expand(-1, among.shape[1], -1), among], dim=2)[:, None],
        position_ids=positions,
        past_key_values=Cache(layers=layers),
        use_cache=True,
    ).last_hidden_state
    tables = [table for layer in layers for table in (layer.keys, layer.values)]
    spans = torch.cat([longest - lengths, longest + a + m * new], dim=1).tolist()
    return states, [torch.stack([table[b, :, i:j] for table in tables]) for b, (i, j) in enumerate(spans)]


def _layers(count: int, known: Sequence[Tensor], longest: int) -> list[Any]:
    """Return the layers of transformers' cache of a batch, with the ``known`` keys and values padded on the left."""
    layers = [DynamicLayer() for _ in range(count)]
    if known:
        padded = [F.pad(own, (0, 0, longest - own.shape[2], 0)) if own.shape[2] < longest else own for own in known]
        together = padded[0][:, None] if len(padded) == 1 else torch.stack(padded, dim=1)
        for layer, (keys, values) in zip(layers, together.unflatten(0, (-1, 2)), strict=True):
            layer.keys, layer.values, layer.is_initialized = keys, values, True
    return layers
