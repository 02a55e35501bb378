"""Distances between the nodes of a prompt, from their anchor distances: min_k (d_ik + d_jk), the length of the shortest
path through an anchor.

It is used twice: as a bias between all node tokens, like T5's relative bias, and as a vector that a node receives for
each other node it sees. A bias only changes attention weights; with the bias alone a model needs about five times as
many training questions to decide which of two nodes is nearer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nodetok.positions import as_lengths

FAR = 24
"""The last bucket, of paths of 16 * 2 ** 8 hops or more; unreachable nodes have a separate bucket."""

OTHERS = 3
"""Number of distinguished positions in the prompt: the first node, the second, and all others."""

NEAR = 16
"""Paths of fewer hops have a bucket each."""

UNITS = 6
"""Number of hops that the mean length to an anchor counts as; a typical path through an anchor then has 12."""


class PairDistances(nn.Module):
    """Learned attention bias, initialised to zero, and vectors, by the bucket of the pair distance."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(FAR + 2, heads))
        self.embedding = nn.Parameter(torch.randn(OTHERS, FAR + 2, width) * 0.5)

    def attention_bias(self, rows: Tensor, table: Tensor) -> Tensor:
        """Return attention bias (B, heads, H, H) between the tokens of nodes ``rows`` (B, H); 0 for text tokens, whose
        row is -1.

        ``table`` (V, K): distances to the anchors.
        """
        here = rows >= 0
        bias = self.bias[buckets(rows, table)].permute(0, 3, 1, 2)
        return bias * (here[:, None, :, None] & here[:, None, None, :])

    def vectors(self, rows: Tensor, sees: Tensor, table: Tensor) -> Tensor:
        """Return vectors (B, S, d) for the nodes ``rows`` (B, S), in prompt order and padded with -1: for each, the
        mean over the other nodes in its row of the mask ``sees`` (B, S, S)."""
        here = rows >= 0
        order = (here.cumsum(dim=1) - 1).clamp(min=0, max=OTHERS - 1)
        embedded = self.embedding[order[:, None, :].expand_as(sees), buckets(rows, table)]
        counted = sees & here[:, :, None] & here[:, None, :]
        counted = counted & ~torch.eye(rows.shape[1], dtype=torch.bool, device=rows.device)
        weights = counted / counted.sum(dim=2, keepdim=True).clamp(min=1)
        return torch.einsum("bst,bstd->bsd", weights.to(embedded.dtype), embedded)


def buckets(rows: Tensor, table: Tensor) -> Tensor:
    """Return buckets of the shortest paths through an anchor, int64 (B, S, S), between nodes ``rows`` (B, S): one
    bucket a hop below NEAR, then one for each doubling, the last of them FAR; FAR + 1 for no path; 0 from a node to
    itself.

    Lengths are scaled so that their mean over ``table`` is UNITS.
    """
    lengths = as_lengths(table[rows.clamp(min=0)])
    if table.is_floating_point():
        finite = torch.isfinite(table)
        lengths = lengths * (UNITS / table[finite].float().mean().clamp(min=1e-30) if finite.any() else 1.0)
    way = torch.full((*rows.shape, rows.shape[1]), float("inf"), device=rows.device)
    for part in lengths.split(16, dim=-1):
        way = torch.minimum(way, (part[:, :, None] + part[:, None, :]).amin(dim=-1))
    doubled = NEAR + torch.log2(way.clamp(min=NEAR, max=2.0**64) / NEAR).floor()
    near = torch.where(way < NEAR, way.round(), doubled).clamp(max=FAR)
    far = torch.where(torch.isfinite(way), near, FAR + 1).long()
    return far.masked_fill(rows[:, :, None] == rows[:, None, :], 0)
