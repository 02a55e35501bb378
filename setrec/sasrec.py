"""SASRec: causal self-attention over item embeddings, full-softmax cross-entropy at every position in one pass.

The source of the collaborative vectors and a serious opponent: with a full softmax over the catalogue it beats most
published generative recommenders (Kang and McAuley 2018, arXiv 1808.09781; loss as in arXiv 2309.07602).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from setrec import batches, ranking
from setrec.atomic import atomic_directory
from setrec.catalog import TRAIN, VALID, Histories
from setrec.errors import ConfigError
from setrec.precision import Precision, autocast
from setrec.ragged import Ragged
from setrec.settings import Settings
from setrec.softmax import catalogue_cross_entropy


class SasRecSettings(Settings):
    """Shape and training of SASRec. ``patience``: epochs without a better validation NDCG@10."""

    width: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.3
    max_items: int = 50
    epochs: int = 30
    patience: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup_epochs: float = 1.0
    targets_per_batch: int = 2048
    precision: Precision = "auto"


class Block(nn.Module):
    """A pre-norm transformer block with causal attention."""

    def __init__(self, s: SasRecSettings) -> None:
        super().__init__()
        self.heads, self.rate = s.heads, s.dropout
        self.norm_attention, self.norm_forward = nn.LayerNorm(s.width), nn.LayerNorm(s.width)
        self.attend, self.merge = nn.Linear(s.width, 3 * s.width), nn.Linear(s.width, s.width)
        self.forward_in, self.forward_out = nn.Linear(s.width, 4 * s.width), nn.Linear(4 * s.width, s.width)
        self.dropout = nn.Dropout(s.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) to (B, L, width)."""
        b, length, width = x.shape
        q, k, v = self.attend(self.norm_attention(x)).view(b, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.rate if self.training else 0.0)
        x = x + self.dropout(self.merge(mixed.transpose(1, 2).reshape(b, length, width)))
        return x + self.dropout(self.forward_out(F.gelu(self.forward_in(self.norm_forward(x)))))


class SasRec(nn.Module):
    """Histories of item rows in, one vector per position out; scores are inner products with the item embeddings.

    ``trained`` bool (I,): items that occur in training. The others have embeddings, but no meaning.
    """

    trained: Tensor

    def __init__(self, items: int, settings: SasRecSettings) -> None:
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

    def forward(self, items: Tensor) -> Tensor:
        """User vectors (B, L, width) after each item of right-padded histories (B, L)."""
        x = self.dropout(self.items(items) + self.positions.weight[: items.shape[1]])
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    @torch.no_grad()
    def item_embeddings(self) -> Tensor:
        """(I, width); rows of items never trained on are zero."""
        return self.items.weight * self.trained[:, None]

    @torch.no_grad()
    def user_vectors(self, history: Ragged) -> Tensor:
        """(B, width) after the last item of each history."""
        items, lengths = history.pad(self.settings.max_items)
        out = self(torch.from_numpy(items).long())
        return out[torch.arange(len(items)), torch.from_numpy(lengths) - 1]

    def save(self, folder: Path) -> None:
        """Write weights and settings to ``folder``, atomically."""
        with atomic_directory(folder) as target:
            save_file(self.state_dict(), target / "model.safetensors")
            (target / "config.json").write_text(self.settings.model_dump_json(indent=2))

    @classmethod
    def load(cls, folder: Path) -> SasRec:
        """Read what :meth:`save` wrote.

        Raises:
            ConfigError: the folder holds no such model.
        """
        try:
            weights = load_file(folder / "model.safetensors")
            settings = SasRecSettings.model_validate(json.loads((folder / "config.json").read_text()))
            model = cls(len(weights["trained"]), settings)
            model.load_state_dict(weights)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ConfigError(f"'{folder}' holds no SASRec: {str(error).splitlines()[0]}") from error
        return model.eval()


def scorer(model: SasRec) -> ranking.Scorer:
    """Scores (b, I); items never trained on stand below all others."""
    model.eval()
    table, floor = model.items.weight.detach(), torch.where(model.trained, 0.0, -1e9)

    def score(history: Ragged) -> np.ndarray:
        return (model.user_vectors(history) @ table.T + floor).numpy()

    return score


def train_sasrec(
    histories: Histories,
    items: int,
    settings: SasRecSettings,
    *,
    report: Callable[[dict[str, Any]], None] | None = None,
    seed: int = 42,
    begin: Callable[[SasRec], object] | None = None,
) -> SasRec:
    """Train on the training parts of the histories, stop early on validation NDCG@10, return the best epoch.

    ``report`` is told epoch, epochs, loss, ndcg@10 and seconds after every epoch. Without validation items (NDCG@10
    is then NaN) the epoch of the lowest training loss is taken. ``begin`` may give the new model other weights than
    random ones.
    """
    torch.manual_seed(seed)
    model = SasRec(items, settings)
    model.trained.copy_(torch.from_numpy(histories.trained(items)))
    if begin is not None:
        begin(model)
    rows, cases = histories.upto(TRAIN), ranking.Cases.of(histories, VALID)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    best, best_epoch, kept, began = -math.inf, 0, {}, time.perf_counter()
    for epoch in range(1, settings.epochs + 1):
        loss = _epoch(model, rows, optimizer, epoch, seed)
        value = ranking.mean_metric(scorer(model), cases) if len(cases) else math.nan
        if (goal := value if len(cases) else -loss) > best:
            best, best_epoch, kept = goal, epoch, {k: v.detach().clone() for k, v in model.state_dict().items()}
        if report is not None:
            seconds = round(time.perf_counter() - began, 3)
            report({"epoch": epoch, "epochs": settings.epochs, "loss": loss, "ndcg@10": value, "seconds": seconds})
        if epoch - best_epoch >= settings.patience:
            break
    model.load_state_dict(kept)
    return model.eval()


def _epoch(model: SasRec, rows: Ragged, optimizer: torch.optim.Optimizer, epoch: int, seed: int) -> float:
    """One epoch over all targets; returns the mean cross-entropy."""
    s, rng = model.settings, np.random.default_rng([seed, epoch])
    plan = batches.one_pass(rows, s.max_items, s.targets_per_batch, rng)
    position = (torch.cumsum(model.trained, dim=0) - 1).clamp(min=0)
    summed, count = 0.0, 0
    model.train()
    for index, batch in enumerate(plan):
        done = epoch - 1 + index / len(plan)
        rate = min(1.0, (done + 1 / len(plan)) / max(s.warmup_epochs, 1e-9))
        rate *= 0.5 + 0.5 * math.cos(math.pi * min(1.0, done / s.epochs))
        for group in optimizer.param_groups:
            group["lr"] = s.learning_rate * rate
        items, visible, targets = (torch.from_numpy(x).long() for x in (batch.items, batch.visible, batch.targets))
        asked = targets >= 0
        with autocast(model.items.weight.device, s.precision):
            vectors = torch.gather(model(items), 1, (visible - 1).clamp(min=0)[..., None].expand(-1, -1, s.width))
            table = model.items.weight[model.trained]
            loss = catalogue_cross_entropy(vectors[asked], table, position[targets[asked]])
        (loss / batch.count).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        summed, count = summed + float(loss.detach()), count + batch.count
    return summed / max(1, count)
