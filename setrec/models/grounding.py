"""Grounding of answers in items: s(u, i) = sum over slots of w_k <o_k, z_k(i)> (SETRec section 3.2), as one inner
product.

With z_k(i) = A_k c_i + b_k, where c_i is the code of item i,

    s(u, i) = < sum_k w_k A_k^T o_k , c_i > + sum_k w_k <o_k, b_k>.

The second term is the same for every item, so a user's ranking is an inner product of D numbers (64 + 128 by default)
independent of the backbone's width d and the number of slots n. It is exact for any weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from setrec.models.item_tokens import ItemTokens


class LogitBias(NamedTuple):
    """A learned bias ``by`` (scalar) on the logits of the distinct pairs (``rows``, ``items``), int64 (P,) each, sorted
    by row."""

    rows: Tensor
    items: Tensor
    by: Tensor

    def between(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return rows, relative to ``start``, and items of the pairs with rows from ``start`` to ``stop``."""
        a, b = torch.searchsorted(self.rows, torch.tensor([start, stop], device=self.rows.device)).tolist()
        return self.rows[a:b] - start, self.items[a:b]


def slot_codes(tokens: ItemTokens, outputs: Tensor) -> list[Tensor]:
    """Return each slot's answer in the columns of its code, A_k^T o_k: n tensors (..., columns) from (..., n, d)."""
    return [outputs[..., k, :] @ a for k, (a, _) in enumerate(tokens.maps())]


def slot_weights(tokens: ItemTokens, weights: Mapping[str, float]) -> list[float]:
    """Return the weight of each slot from the weights of the kinds."""
    return [weights[slot.kind] for slot in tokens.slots]


def fold(tokens: ItemTokens, outputs: Tensor, weights: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """Return user code (..., D) and constant (...,): the score is the inner product with item codes plus the
    constant."""
    constant = outputs.new_zeros(outputs.shape[:-2])
    for k, w in enumerate(slot_weights(tokens, weights)):
        constant = constant + w * (outputs[..., k, :] @ tokens.maps()[k][1])
    return joined(tokens, slot_codes(tokens, outputs), weights), constant


def joined(tokens: ItemTokens, own: Sequence[Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the user code (..., D) from the slots' answers in the columns of their codes (:func:`slot_codes`)."""
    columns: dict[str, list[Tensor]] = {kind: [] for kind in tokens.kinds}
    for slot, code in zip(tokens.slots, own, strict=True):
        columns[slot.kind].append(weights[slot.kind] * code)
    return torch.cat([torch.stack(codes).sum(dim=0) for codes in columns.values()], dim=-1)
