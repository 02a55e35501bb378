"""Item tokenizers and the set of tokens they form (SETRec section 3.1).

Every token of an item is an affine map of a small **code**: 64 collaborative numbers, the 128 numbers of the
autoencoder's last hidden layer, and further features of an item (for example a node's position in a graph). Only the
code has to be stored, indexed or compared; see ``setrec.models.grounding``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from setrec.rows import normalize_rows

COLLABORATIVE = "collaborative"
SEMANTIC = "semantic"
TEXT = "text"


@dataclass(frozen=True)
class ItemFeatures:
    """Features of the items: inputs of the item tokenizers.

    ``collaborative`` (I, 64) and ``text`` (I, width) float32; ``trained`` bool (I,): whether the item occurs in the
    training part; ``extra``: further feature matrices (I, width) by slot kind. ``None`` leaves a kind of slot out.
    """

    trained: np.ndarray
    collaborative: np.ndarray | None
    text: np.ndarray | None
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.trained)

    def table(self, kind: str) -> np.ndarray:
        """Return the feature matrix of a kind of slot.

        Raises:
            KeyError: no slot of this kind.
        """
        table = {COLLABORATIVE: self.collaborative, SEMANTIC: self.text, TEXT: self.text, **self.extra}[kind]
        if table is None:
            raise KeyError(kind)
        return table


@dataclass(frozen=True)
class Slot:
    """One token of the set: its kind, and the columns of the code from which it is an affine map."""

    kind: str
    start: int
    stop: int


class TableTokenizer(nn.Module):
    """A tokenizer with one token from a table of vectors: z(i) = P c_i + p.

    Rows of items without training interactions would be noise. They are kept at zero: as input they carry no
    information, and no inner product can favour or penalise them.
    """

    known: Tensor

    def __init__(self, items: int, features: int, width: int, *, trainable: bool, id_dropout: float = 0.0) -> None:
        super().__init__()
        self.id_dropout = id_dropout
        self.table = nn.Parameter(torch.zeros(items, features), requires_grad=trainable)
        self.register_buffer("known", torch.ones(items, dtype=torch.bool))
        self.project = nn.Linear(features, width)
        self.tokens, self.code_width = 1, features

    @torch.no_grad()
    def fill(self, table: np.ndarray, known: np.ndarray) -> None:
        """Set the table (I, features) and the mask of valid rows (I,)."""
        self.known.copy_(torch.from_numpy(known))
        self.table.copy_(torch.from_numpy(table) * self.known[:, None])

    def codes(self, rows: Tensor | None = None) -> Tensor:
        """Return codes (I, features), or of some rows; zero for invalid rows and, in training, for a random share
        ``id_dropout`` of the others."""
        table, known = (self.table, self.known) if rows is None else (self.table[rows], self.known[rows])
        if self.training and self.id_dropout:
            known = known & (torch.rand(len(known), device=known.device) >= self.id_dropout)
        return table * known[:, None]

    def maps(self) -> tuple[Tensor, Tensor]:
        """Return the affine map as A (1, d, features) and b (1, d)."""
        return self.project.weight[None], self.project.bias[None]


class SemanticTokenizer(nn.Module):
    """A tokenizer with N tokens from a text vector: an autoencoder (512, 256, 128) whose code is split into N vectors
    of width d.

    The encoder's last layer is linear on 128 rectified numbers h_i, so z_k(i) = A_k h_i + b_k. Text vectors are
    centred and scaled to unit variance first: sentence encoders give unit length, hence tiny components. Without
    ``hidden`` layers the code is the text vector itself, scaled to one length: nothing shared by all texts is lost, and
    an index stores that many numbers per item.

    With ``words`` a linear map predicts so many key words from the code, in training only.
    """

    features: Tensor
    center: Tensor
    scale: Tensor

    def __init__(
        self, items: int, features: int, hidden: tuple[int, ...], tokens: int, width: int, words: int = 0
    ) -> None:
        super().__init__()
        sizes = (features, *hidden)
        self.tokens, self.width, self.code_width = tokens, width, sizes[-1]
        self.encoder = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))
        self.split = nn.Linear(self.code_width, tokens * width)
        back = (tokens * width, *reversed(sizes))
        self.decoder = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(back))
        self.words = nn.Linear(self.code_width, words) if words else None
        self.register_buffer("features", torch.zeros(items, features))
        self.register_buffer("center", torch.zeros(features))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fill(self, features: np.ndarray) -> None:
        """Set the text vectors (I, features), and compute centre and scale."""
        x = torch.from_numpy(features)
        self.center.copy_(x.mean(dim=0))
        self.scale.copy_((x - self.center).square().mean().sqrt().clamp(min=1e-8))
        self.refill(features)

    @torch.no_grad()
    def refill(self, features: np.ndarray) -> None:
        """Set the text vectors (I, features), keeping centre and scale."""
        self.features.copy_(self.standardised(torch.from_numpy(features).to(self.center.device)))

    def standardised(self, texts: Tensor) -> Tensor:
        """Standardise text vectors (..., features) for the encoder; an empty text (all zeros) stays zero if codes are
        the vectors themselves."""
        x = texts - self.center
        if self.encoder:
            return x / self.scale
        some = texts.abs().sum(dim=-1, keepdim=True) > 0
        scaled: Tensor = some * x * (x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True).clamp(min=1e-8))
        return scaled

    def encode(self, standardised: Tensor) -> Tensor:
        """Return codes h (..., 128) of standardised text vectors (..., features)."""
        for layer in self.encoder:
            standardised = F.relu(layer(standardised))
        return standardised

    def codes(self, rows: Tensor | None = None) -> Tensor:
        """Return codes (I, 128), or of some rows."""
        return self.encode(self.features if rows is None else self.features[rows])

    def new_codes(self, texts: Tensor) -> Tensor:
        """Return codes of raw text vectors (rows, features) of new items."""
        return self.encode(self.standardised(texts))

    def maps(self) -> tuple[Tensor, Tensor]:
        """Return the affine maps as A (N, d, 128) and b (N, d)."""
        return self.split.weight.view(self.tokens, self.width, -1), self.split.bias.view(self.tokens, -1)

    def reconstruction_error(self, rows: Tensor) -> Tensor:
        """Return the mean squared error between the standardised text vectors of ``rows`` and their reconstruction."""
        x = self.features[rows]
        back = self.split(self.encode(x))
        for layer in self.decoder[:-1]:
            back = F.relu(layer(back))
        return F.mse_loss(self.decoder[-1](back), x)

    def word_error(self, rows: Tensor, shares: Tensor) -> Tensor:
        """Return the mean cross-entropy of the key words of ``rows`` (J,), given their ``shares`` (J, V), over the rows
        that have any."""
        assert self.words is not None
        logits: Tensor = self.words(self.encode(self.features[rows])).float()
        error: Tensor = -(shares * logits.log_softmax(dim=-1)).sum() / shares.sum().clamp(min=1)
        return error


class TextTokenizer(nn.Module):
    """A tokenizer with one token from the text vector itself: its frozen code is the centred vector, scaled to one
    length for all, in the ``width`` directions of largest variance.

    An inner product of two codes is ``width`` times the cosine of the two centred texts. Principal directions keep most
    of it at a fraction of the cost of a softmax; what is lost is mostly noise.
    """

    table: Tensor
    center: Tensor
    directions: Tensor

    def __init__(self, items: int, features: int, code_width: int, width: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(items, code_width))
        self.register_buffer("center", torch.zeros(features))
        self.register_buffer("directions", torch.zeros(features, code_width))
        self.project = nn.Linear(code_width, width)
        self.tokens, self.code_width = 1, code_width

    @torch.no_grad()
    def fill(self, features: np.ndarray) -> None:
        """Set the text vectors (I, features), and compute mean and directions."""
        center = text_center(features)
        self.center.copy_(torch.from_numpy(center))
        self.directions.copy_(torch.from_numpy(_principal(unit_rows(features, center), self.code_width)))
        self.refill(features)

    @torch.no_grad()
    def refill(self, features: np.ndarray) -> None:
        """Set the text vectors (I, features), keeping mean and directions."""
        self.table.copy_(self.new_codes(torch.from_numpy(features).to(self.center.device)))

    def codes(self, rows: Tensor | None = None) -> Tensor:
        """Return codes (I, width), or of some rows."""
        return self.table if rows is None else self.table[rows]

    def new_codes(self, texts: Tensor) -> Tensor:
        """Return codes (rows, width) of text vectors (rows, features); an empty text (all zeros) has a code of
        zeros."""
        some = texts.abs().sum(dim=-1, keepdim=True) > 0
        x = some * (texts - self.center)
        x = (x / x.norm(dim=-1, keepdim=True).clamp(min=1e-8)) @ self.directions
        codes: Tensor = x * (x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True).clamp(min=1e-8))
        return codes

    def maps(self) -> tuple[Tensor, Tensor]:
        """Return the affine map as A (1, d, width) and b (1, d)."""
        return self.project.weight[None], self.project.bias[None]


def _principal(rows: np.ndarray, width: int) -> np.ndarray:
    """Return the ``width`` orthonormal principal directions, float32 (w, width), of rows (I, w); the axes themselves if
    there are no more. Directions in which no row differs are zeros."""
    if rows.shape[1] <= width:
        return np.eye(rows.shape[1], dtype=np.float32)
    # LAPACK's rounding depends on its number of threads, and directions without variance are arbitrary.
    with threadpool_limits(1):
        values, directions = np.linalg.eigh(rows.T.astype(np.float64) @ rows)
    directions[:, values <= values[-1] * 1e-10] = 0
    return np.ascontiguousarray(directions[:, -width:], dtype=np.float32)


def unit_rows(text: np.ndarray, center: np.ndarray | None = None) -> np.ndarray:
    """Return text vectors, float32 (I, w), centred on their mean (or ``center``) and scaled to length 1; an item
    without text (all zeros) stays zero."""
    some = np.abs(text).sum(axis=1, keepdims=True) > 0
    centred = np.where(some, text - (text_center(text) if center is None else center), 0.0)
    return np.asarray(normalize_rows(centred), dtype=np.float32)


def text_center(text: np.ndarray) -> np.ndarray:
    """Return the mean, float32 (w,), of the vectors (I, w) of items with a text."""
    some = np.abs(text).sum(axis=1) > 0
    return np.asarray(text[some].mean(axis=0) if some.any() else np.zeros(text.shape[1]), dtype=np.float32)


Tokenizer = TableTokenizer | SemanticTokenizer | TextTokenizer


class ItemTokens(nn.Module):
    """The tokenizers of a catalogue: codes, tokens and the affine maps between them.

    Args:
        leg_width: width of the collaborative leg, which reads and answers the collaborative slot; ``None`` without one.

    Attributes:
        slots: all slots, the collaborative first, in the order of the code's columns.
        read: the slots that the backbone reads and answers; the last of ``slots``.
    """

    def __init__(
        self,
        items: int,
        width: int,
        *,
        collaborative: int = 64,
        text: int = 384,
        text_slot: int = 0,
        semantic_tokens: int = 4,
        hidden: tuple[int, ...] = (512, 256, 128),
        extra: dict[str, int] | None = None,
        trainable_table: bool = False,
        id_dropout: float = 0.0,
        leg_width: int | None = None,
        words: int = 0,
    ) -> None:
        super().__init__()
        parts: dict[str, Tokenizer] = {}
        if collaborative:
            parts[COLLABORATIVE] = TableTokenizer(
                items, collaborative, leg_width or width, trainable=trainable_table,
                id_dropout=0.0 if leg_width else id_dropout,
            )  # fmt: skip
        if text and semantic_tokens:
            parts[SEMANTIC] = SemanticTokenizer(items, text, hidden, semantic_tokens, width, words)
        if text and text_slot:
            parts[TEXT] = TextTokenizer(items, text, text_slot, width)
        for kind, features in (extra or {}).items():
            parts[kind] = TableTokenizer(items, features, width, trainable=False)
        self.parts = nn.ModuleDict(parts)
        self.slots: list[Slot] = []
        start = 0
        for kind, part in parts.items():
            stop = start + part.code_width
            self.slots += [Slot(kind, start, stop)] * part.tokens
            start = stop
        self.code_width = start
        self.read = [slot for slot in self.slots if leg_width is None or slot.kind != COLLABORATIVE]

    def _tokenizers(self) -> list[Tokenizer]:
        return cast(list[Tokenizer], list(self.parts.values()))

    def table(self, kind: str) -> TableTokenizer | None:
        """Return the tokenizer of a kind of table slot, or ``None``."""
        return cast(TableTokenizer, self.parts[kind]) if kind in self.parts else None

    @property
    def semantic(self) -> SemanticTokenizer | None:
        """The tokenizer of the semantic slots, or ``None``."""
        return cast(SemanticTokenizer, self.parts[SEMANTIC]) if SEMANTIC in self.parts else None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of slots, in the order of the code's columns."""
        return tuple(self.parts)

    @property
    def read_kinds(self) -> tuple[str, ...]:
        """Kinds of the slots that the backbone reads, in the order of the code's columns."""
        return tuple(dict.fromkeys(slot.kind for slot in self.read))

    @property
    def columns(self) -> dict[str, tuple[int, int]]:
        """Columns of the code by kind."""
        return {slot.kind: (slot.start, slot.stop) for slot in self.slots}

    def fill(self, features: ItemFeatures) -> None:
        """Load the features of the catalogue into the tokenizers."""
        for kind, part in zip(self.kinds, self._tokenizers(), strict=True):
            table = features.table(kind)
            if not isinstance(part, TableTokenizer):
                part.fill(table)
            else:
                known = features.trained if kind == COLLABORATIVE else np.ones(len(features), dtype=bool)
                part.fill(table, known)

    def codes(self, rows: Tensor | None = None) -> Tensor:
        """Return codes of the catalogue, (I, D), or of some rows."""
        return torch.cat([part.codes(rows) for part in self._tokenizers()], dim=1)

    @property
    def text_kinds(self) -> tuple[str, ...]:
        """Kinds of slots whose codes follow from an item's text."""
        return tuple(kind for kind in (SEMANTIC, TEXT) if kind in self.parts)

    def text_codes(self, texts: Tensor) -> Tensor:
        """Return codes (rows, D) of new items from text vectors (rows, width); columns of other kinds are zero."""
        parts = []
        for part in self._tokenizers():
            if isinstance(part, TableTokenizer):
                parts.append(texts.new_zeros(len(texts), part.code_width))
            else:
                parts.append(part.new_codes(texts))
        return torch.cat(parts, dim=1)

    def maps(self) -> list[tuple[Tensor, Tensor]]:
        """Return the affine map of each slot read, A (d, its columns) and b (d,): z_k = A code[start:stop] + b."""
        pairs = [cast(Tokenizer, self.parts[kind]).maps() for kind in self.read_kinds]
        return [(a[k], b[k]) for a, b in pairs for k in range(len(a))]

    def tokens(self, codes: Tensor) -> Tensor:
        """Return the set of tokens read (..., n, d) from codes (..., D)."""
        maps = zip(self.read, self.maps(), strict=True)
        return torch.stack([F.linear(codes[..., s.start : s.stop], a, b) for s, (a, b) in maps], dim=-2)

    def fused(self, codes: Tensor) -> Tensor:
        """Return the sum of an item's tokens read, (..., d) from codes (..., D): one affine map, n times cheaper than
        the set."""
        return F.linear(codes[..., self.read[0].start :], *self.fused_map())

    def fused_map(self) -> tuple[Tensor, Tensor]:
        """Return the affine map of :meth:`fused`, (d, columns read) and (d,)."""
        maps = self.maps()
        whole = torch.cat(
            [
                torch.stack([a for s, (a, _) in zip(self.read, maps, strict=True) if s.kind == kind]).sum(0)
                for kind in self.read_kinds
            ],
            dim=1,
        )
        return whole, torch.stack([b for _, b in maps]).sum(0)
