"""The upper layers of a sentence encoder over stored states of the layers below, which training then never computes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from setrec.errors import ConfigError
from setrec.text.encoder import Progress, TextEncoder, no_progress_bar


class UpperLayers(nn.Module):
    """Vectors of texts by layers that can learn, from states that the frozen layers below give once for each text.

    States are stored in ``file`` in half precision without padding: 2 bytes times width times the tokens of all
    distinct texts. A vector is that of the whole encoder up to this rounding, scaled to length 1.

    Args:
        encoder: BERT or an encoder of the same structure; its loaded model is changed by training.
        layers: number of upper layers that learn.
        texts: text of each item, I of them; equal ones are computed once. ``text_of`` int64 (I,) is each item's row.

    Raises:
        ConfigError: the encoder has another structure, or not so many layers.
    """

    def __init__(
        self, encoder: TextEncoder, layers: int, texts: Sequence[str], file: Path, progress: Progress | None = None
    ) -> None:
        super().__init__()
        self.model, self.batch_size = encoder.model, encoder.batch_size
        self._body = self.model[0].model
        try:
            self._below, self._layers = self._body.embeddings, self._body.encoder.layer
        except AttributeError as error:
            kind = type(self._body).__name__
            raise ConfigError(f"text encoder {encoder.name}: layers of {kind} cannot be fine-tuned") from error
        if layers > (count := len(self._layers)):
            raise ConfigError(f"text encoder {encoder.name}: has {count} layers, of which {layers} cannot learn")
        rows: dict[str, int] = {}
        self.text_of = np.array([rows.setdefault(text or " ", len(rows)) for text in texts], dtype=np.int64)
        self.starts, self.lengths = np.zeros((2, len(rows)), dtype=np.int64)
        self._body.encoder.layer = self._layers[:-layers]
        self._states = self._stored(list(rows), file, progress)
        self._body.encoder.layer = self._layers[-layers:].requires_grad_(True)
        self._body.embeddings = self._given = _Given()
        self.original = self.vectors()
        """Vectors of the distinct texts by the encoder as it was, float32 (texts, width)."""

    def forward(self, rows: np.ndarray) -> Tensor:
        """Return the vectors, float32 (len(rows), width), of distinct texts ``rows``."""
        order = np.argsort(-self.lengths[rows], kind="stable")  # texts of similar length share a batch
        parts = [rows[order[start : start + self.batch_size]] for start in range(0, len(order), self.batch_size)]
        return torch.cat([self._batch(part) for part in parts])[torch.from_numpy(np.argsort(order))]

    @torch.inference_mode()
    def vectors(self) -> np.ndarray:
        """Return the vectors of all distinct texts, float32 (texts, width)."""
        found: np.ndarray = self(np.arange(len(self.lengths))).cpu().numpy()
        return found

    def save(self, folder: Path) -> None:
        """Write the whole encoder as a directory of sentence-transformers, and end the separation of its layers."""
        self._body.embeddings, self._body.encoder.layer = self._below, self._layers
        with no_progress_bar():
            self.model.save(str(folder), create_model_card=False)

    def _batch(self, rows: np.ndarray) -> Tensor:
        starts, lengths = self.starts[rows], self.lengths[rows]
        mask = np.arange(lengths.max()) < lengths[:, None]
        states = np.zeros((*mask.shape, self._states.shape[1]), dtype=np.float32)
        states[mask] = np.concatenate([self._states[s : s + n] for s, n in zip(starts, lengths, strict=True)])
        self._given.states = torch.from_numpy(states).to(self.model.device)
        seen = torch.from_numpy(mask.astype(np.int64)).to(self.model.device)
        found = self.model({"input_ids": seen, "attention_mask": seen})["sentence_embedding"]
        return normalize(found.float(), dim=-1)

    def _stored(self, texts: list[str], file: Path, progress: Progress | None) -> np.ndarray:
        """Write the states of all texts, longest first; return them, memory-mapped, float16 (tokens, w)."""
        order, total = sorted(range(len(texts)), key=lambda row: -len(texts[row])), 0
        encode = partial(self.model.encode, output_value="token_embeddings", show_progress_bar=False)
        with open(file, "wb") as out:
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                batch = [texts[row] for row in rows]
                found = encode(batch, batch_size=len(rows))
                for row, states in zip(rows, found, strict=True):
                    out.write(states.half().cpu().numpy().tobytes())
                    self.starts[row], self.lengths[row] = total, len(states)
                    total += len(states)
                if progress is not None:
                    progress(start + len(rows), len(order))
        return np.memmap(file, np.float16, "r").reshape(total, -1)


class _Given(nn.Module):
    """Stands for everything below the upper layers: returns ``states``, whatever it is called with."""

    states: Tensor

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.states
