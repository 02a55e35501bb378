"""SASRec: causal self-attention over item embeddings, full-softmax cross-entropy at every position in one pass.

It provides the collaborative vectors and is a strong baseline: with a full softmax over the catalogue it beats most
published generative recommenders (Kang and McAuley 2018, arXiv 1808.09781; loss as in arXiv 2309.07602).

Two options improve it further: a sampled softmax (arXiv 2508.06450), which allows many cheap epochs, and text vectors,
which are added to the item embeddings, so that new items have meaningful vectors.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from setrec.atomic import atomic_directory
from setrec.data.events import read
from setrec.errors import ConfigError, first_line
from setrec.evaluation import ranking
from setrec.models.settings import SasRecSettings
from setrec.ragged import Ragged

LATER = ("negatives", "text_dropout", "id_dropout")
"""Settings that are written only if they differ from the default, so that files of a plain model do not change."""


class Block(nn.Module):
    """A pre-norm transformer block with causal attention."""

    def __init__(self, s: SasRecSettings) -> None:
        super().__init__()
        self.heads, self.rate = s.heads, s.dropout
        self.norm_attention, self.norm_forward = nn.LayerNorm(s.width), nn.LayerNorm(s.width)
        self.attend, self.merge = nn.Linear(s.width, 3 * s.width), nn.Linear(s.width, s.width)
        self.forward_in, self.forward_out = nn.Linear(s.width, 4 * s.width), nn.Linear(4 * s.width, s.width)
        self.dropout = nn.Dropout(s.dropout)

    def forward(self, x: Tensor, last: Tensor | None = None) -> Tensor:
        """Map (B, L, width) to (B, L, width); or to (B, 1, width), the positions ``last`` (B,) alone."""
        b, length, width = x.shape
        normed, mask = self.norm_attention(x), None
        if last is None:
            q, k, v = self._heads(normed, 0, 3)
        else:
            row = torch.arange(b, device=x.device)
            (q,), (k, v) = self._heads(normed[row, last][:, None], 0, 1), self._heads(normed, 1, 3)
            x = x[row, last][:, None]
            mask = (torch.arange(length, device=x.device) <= last[:, None])[:, None, None]
        rate = self.rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, mask, rate, is_causal=last is None)
        x = x + self.dropout(self.merge(mixed.transpose(1, 2).reshape(b, -1, width)))
        out: Tensor = x + self.dropout(self.forward_out(F.gelu(self.forward_in(self.norm_forward(x)))))
        return out

    def _heads(self, x: Tensor, first: int, end: int) -> Tensor:
        """Return queries, keys and values, those from ``first`` to ``end``, each (B, heads, L, width / heads)."""
        width = x.shape[-1]
        rows = slice(first * width, end * width)
        mapped = F.linear(x, self.attend.weight[rows], self.attend.bias[rows])
        return mapped.view(*x.shape[:2], end - first, self.heads, -1).permute(2, 0, 3, 1, 4)


class ItemText(nn.Module):
    """Text part of the item embeddings: fixed vectors (I, w) through a learned linear map.

    Columns are centred and the table is scaled as a whole: columns keep their relative variance, which separates signal
    from noise. At the start a text counts as much as an embedding.
    """

    table: Tensor

    def __init__(self, features: Tensor, width: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("table", features)
        self.map = nn.Linear(features.shape[1], width, bias=False)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.map.weight, std=(width * features.shape[1]) ** -0.5)

    @staticmethod
    def standard(features: np.ndarray) -> Tensor:
        """Standardise vectors (I, w) to columns of mean 0 and overall variance 1."""
        centred = torch.from_numpy(features).float()
        centred = centred - centred.mean(dim=0)
        return centred / centred.std().clamp(min=1e-8)

    def forward(self, rows: Tensor) -> Tensor:
        """Map item rows (...) to (..., width)."""
        vectors: Tensor = self.dropout(self.map(self.table[rows]))
        return vectors


class SasRec(nn.Module):
    """SASRec: maps histories of item rows to one vector per position; scores are inner products with the item vectors.

    ``trained`` bool (I,): items that occur in training. The embeddings of others are meaningless. ``features`` float32
    (I, w): vectors of the items' texts, added to embeddings by :class:`ItemText`; an item that is not in training is
    then represented by its text only.
    """

    trained: Tensor

    def __init__(self, items: int, settings: SasRecSettings, features: Tensor | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.items = nn.Embedding(items, settings.width)
        self.positions = nn.Embedding(settings.max_items, settings.width)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.width)
        self.dropout = nn.Dropout(settings.dropout)
        self.register_buffer("trained", torch.ones(items, dtype=torch.bool))
        nn.init.normal_(self.items.weight, std=settings.width**-0.5)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.text = None if features is None else ItemText(features, settings.width, settings.text_dropout)

    def vectors(self, rows: Tensor) -> Tensor:
        """Return vectors (..., width) of item rows (...), as inputs and as targets."""
        own: Tensor = self.items(rows)
        if self.text is None:
            return own
        known = self.trained[rows]
        if self.training and self.settings.id_dropout > 0:
            known = known & (torch.rand(rows.shape, device=rows.device) >= self.settings.id_dropout)
        vectors: Tensor = own * known[..., None] + self.text(rows)
        return vectors

    def forward(self, items: Tensor, last: Tensor | None = None) -> Tensor:
        """Return user vectors (B, L, width) after each item of right-padded histories (B, L); or (B, 1, width), after
        the items at the positions ``last`` (B,) alone, for which the last block computes nothing else."""
        x: Tensor = self.dropout(self.vectors(items) + self.positions.weight[: items.shape[1]])
        for block in self.blocks[:-1]:
            x = block(x)
        x = self.norm(self.blocks[-1](x, last))
        return x

    @torch.no_grad()
    def item_embeddings(self) -> Tensor:
        """Return item embeddings (I, width) without texts; rows of items outside training are zero."""
        return self.items.weight * self.trained[:, None]

    @torch.no_grad()
    def user_vectors(self, history: Ragged) -> Tensor:
        """Return user vectors (B, width) after the last item of each history."""
        items, lengths = read(history).pad(self.settings.max_items)
        device = self.items.weight.device
        last = (torch.from_numpy(lengths) - 1).clamp(min=0).to(device)
        out: Tensor = self(torch.from_numpy(items).long().to(device), last)
        return out[:, 0]

    def save(self, folder: Path) -> None:
        """Write weights and settings to ``folder``, atomically."""
        with atomic_directory(folder) as target:
            save_file(self.state_dict(), target / "model.safetensors")
            default = {name for name in LATER if getattr(self.settings, name) == getattr(SasRecSettings(), name)}
            (target / "config.json").write_text(self.settings.model_dump_json(indent=2, exclude=default))

    @classmethod
    def load(cls, folder: Path) -> SasRec:
        """Load what :meth:`save` wrote.

        Raises:
            ConfigError: the folder does not contain a SASRec.
        """
        try:
            weights = load_file(folder / "model.safetensors")
            settings = SasRecSettings.model_validate(json.loads((folder / "config.json").read_text()))
            model = cls(len(weights["trained"]), settings, weights.get("text.table"))
            model.load_state_dict(weights)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ConfigError(f"'{folder}' holds no SASRec: {first_line(error)}") from error
        return model.eval()


def scorer(model: SasRec) -> ranking.Scorer:
    """Return a scorer of histories, (b, I); without texts, items outside training rank below all others."""
    model.eval()
    with torch.no_grad():
        whole = model.text is None
        rows = torch.arange(len(model.trained), device=model.trained.device)
        table = model.items.weight.detach() if whole else model.vectors(rows)
    floor = torch.where(model.trained | (model.text is not None), 0.0, -1e9)
    # The floor is one more column: adding it to the product is a pass over all scores.
    columns = torch.cat([table, floor[:, None]], dim=1)

    def score(history: Ragged) -> np.ndarray:
        return (F.pad(model.user_vectors(history), (0, 1), value=1.0) @ columns.T).cpu().numpy()

    return score
