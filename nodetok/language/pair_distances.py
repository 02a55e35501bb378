"""Distances between the nodes of a prompt, from their anchor distances: min_k (d_ik + d_jk), the length of the shortest
path through an anchor.

It is used twice: as a bias between all node tokens, like T5's relative bias, and as a vector that a node receives for
each other node it sees. A bias only changes attention weights; with the bias alone a model needs about five times as
many training questions to decide which of two nodes is nearer.

For the vectors, lists of neighbours make the lengths exact where no anchor lies on a shortest path, and count common
neighbours. With hubs as anchors the lists may be short: a node with more neighbours than its list holds is an anchor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nodetok.positions import as_lengths

FAR = 24
"""The last bucket, of paths of 16 * 2 ** 8 hops or more; unreachable nodes have a separate bucket."""

OTHERS = 3
"""Number of distinguished positions in the prompt: the first node, the second, and all others."""

SHARED = 3
"""The last bucket of the number of common neighbours: this many or more."""

NEAR = 16
"""Paths of fewer hops have a bucket each."""

UNITS = 6
"""Number of hops that the mean length to an anchor counts as; a typical path through an anchor then has 12."""


class PairDistances(nn.Module):
    """Learned attention bias, initialised to zero, and vectors, by the bucket of the pair distance and, if
    ``counted``, by the number of common neighbours."""

    def __init__(self, heads: int, width: int, *, counted: bool = False) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(FAR + 2, heads))
        self.embedding = nn.Parameter(torch.randn(OTHERS, FAR + 2, width) * 0.5)
        self.shared = nn.Parameter(torch.randn(OTHERS, SHARED + 1, width) * 0.5) if counted else None

    def attention_bias(self, rows: Tensor, table: Tensor) -> Tensor:
        """Return attention bias (B, heads, H, H) between the tokens of nodes ``rows`` (B, H); 0 for text tokens, whose
        row is -1.

        ``table`` (V, K): distances to the anchors.
        """
        here = rows >= 0
        bias = self.bias[buckets(rows, path_lengths(rows, table))].permute(0, 3, 1, 2)
        return bias * (here[:, None, :, None] & here[:, None, None, :])

    def vectors(self, rows: Tensor, sees: Tensor, table: Tensor, near: Tensor | None = None) -> Tensor:
        """Return vectors (B, S, d) for the nodes ``rows`` (B, S), in prompt order and padded with -1: for each, the
        mean over the other nodes in its row of the mask ``sees`` (B, S, S). ``near``: see :func:`refined`."""
        here = rows >= 0
        order = (here.cumsum(dim=1) - 1).clamp(min=0, max=OTHERS - 1)[:, None, :].expand_as(sees)
        lengths = path_lengths(rows, table)
        if near is not None and self.shared is not None and not table.is_floating_point():
            lengths, shared = refined(rows, lengths, table, near)
            embedded = self.embedding[order, buckets(rows, lengths)] + self.shared[order, shared.clamp(max=SHARED)]
        else:
            embedded = self.embedding[order, buckets(rows, lengths)]
        counted = sees & here[:, :, None] & here[:, None, :]
        counted = counted & ~torch.eye(rows.shape[1], dtype=torch.bool, device=rows.device)
        weights = counted / counted.sum(dim=2, keepdim=True).clamp(min=1)
        return torch.einsum("bst,bstd->bsd", weights.to(embedded.dtype), embedded)


def path_lengths(rows: Tensor, table: Tensor, others: Tensor | None = None) -> Tensor:
    """Return the lengths of the shortest paths through an anchor from ``rows`` (B, S) to ``others`` (B, T), by default
    ``rows``, float (B, S, T); infinite without one. ``table`` (V, K): distances to the anchors, lengths scaled so that
    their mean is UNITS."""
    ends = [as_lengths(table[x.clamp(min=0)]) for x in (rows, rows if others is None else others)]
    if table.is_floating_point():
        finite = torch.isfinite(table)
        scale = UNITS / table[finite].float().mean().clamp(min=1e-30) if finite.any() else 1.0
        ends = [lengths * scale for lengths in ends]
    way = torch.full((*rows.shape, ends[1].shape[1]), float("inf"), device=rows.device)
    for own, other in zip(ends[0].split(16, dim=-1), ends[1].split(16, dim=-1), strict=True):
        way = torch.minimum(way, (own[:, :, None] + other[:, None, :]).amin(dim=-1))
    return way


def refined(rows: Tensor, lengths: Tensor, table: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lengths (B, S, S) of the shortest paths through an anchor or a listed neighbour of either node, and
    the number of their common neighbours, int64 (B, S, S), as far as lists and anchors tell.

    ``near`` int64 (V, M): neighbours of every node, -1 for none. ``lengths``: in hops, from :func:`path_lengths`.
    """
    (b, s), m = rows.shape, near.shape[1]
    listed = near[rows.clamp(min=0)]
    steps = path_lengths(listed.flatten(1), table, rows).view(b, s, m, s)
    adjacent = (listed[:, :, :, None, None] == listed[:, None, None]).any(dim=-1)
    steps = torch.where(adjacent, steps.clamp(max=1), steps)
    steps = steps.masked_fill(listed[..., None] == rows[:, None, None, :], 0.0)
    steps = steps.masked_fill((listed < 0)[..., None], float("inf"))
    lengths = torch.minimum(lengths, 1 + steps.amin(dim=2))
    shared = (steps == 1).sum(dim=2)
    return torch.minimum(lengths, lengths.transpose(1, 2)), torch.maximum(shared, shared.transpose(1, 2))


def buckets(rows: Tensor, lengths: Tensor) -> Tensor:
    """Return the buckets int64 (B, S, S) of path lengths (B, S, S) between nodes ``rows`` (B, S): one bucket a hop
    below NEAR, then one for each doubling, the last of them FAR; FAR + 1 for no path; 0 from a node to itself."""
    doubled = NEAR + torch.log2(lengths.clamp(min=NEAR, max=2.0**64) / NEAR).floor()
    near = torch.where(lengths < NEAR, lengths.round(), doubled).clamp(max=FAR)
    far = torch.where(torch.isfinite(lengths), near, FAR + 1).long()
    return far.masked_fill(rows[:, :, None] == rows[:, None, :], 0)
