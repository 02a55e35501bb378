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
    """A bias on the logits of the distinct pairs (``rows``, ``items``), int64 (P,) each, sorted by row: a learned
    number ``by`` (scalar) times ``values`` float32 (P,), or times 1."""

    rows: Tensor
    items: Tensor
    by: Tensor
    values: Tensor | None = None

    def between(self, start: int, stop: int) -> LogitBias:
        """Return the pairs with rows from ``start`` to ``stop``, rows relative to ``start``."""
        a, b = torch.searchsorted(self.rows, torch.tensor([start, stop], device=self.rows.device)).tolist()
        values = None if self.values is None else self.values[a:b]
        return LogitBias(self.rows[a:b] - start, self.items[a:b], self.by, values)

    def among(self, items: Tensor) -> LogitBias:
        """Return the pairs whose item is one of ``items``, int64, ascending and at least one, with its place there."""
        place = torch.searchsorted(items, self.items).clamp(max=len(items) - 1)
        there = items[place] == self.items
        values = None if self.values is None else self.values[there]
        return LogitBias(self.rows[there], place[there], self.by, values)

    def scaled(self, numbers: Tensor) -> Tensor:
        """Return ``numbers`` (P, 1) of the pairs times ``values``."""
        return numbers if self.values is None else numbers * self.values[:, None]

    def added(self, by: Tensor) -> Tensor:
        """Return what is added to the logits of the pairs if the learned number is ``by``."""
        return by if self.values is None else by * self.values


def slot_codes(tokens: ItemTokens, outputs: Tensor) -> list[Tensor]:
    """Return the answer of each slot read in its columns, A_k^T o_k: n tensors (..., columns) from (..., n, d)."""
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
