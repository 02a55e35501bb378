"""Coding of added items: from fields to text, text vector, and the code columns that depend on it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from serving.bundle.reader import Bundle
from serving.engine.items.live_components import LiveItemText
from serving.stores.item_changes import ItemChange, ItemFields
from serving.telemetry import metrics
from setrec.errors import ConfigError, SetRecError
from setrec.models.item_tokens import SEMANTIC, TEXT
from setrec.scoring.text_similarity import TextFeatures


class CannotEncodeError(SetRecError):
    """The served bundle cannot code an item by its text; the message states the reason."""


@dataclass(frozen=True)
class CodedItem:
    """An item's ``code`` float32 (D,), whether it is ``new`` (without training interactions), and its ``text``, if text
    similarity is used."""

    code: np.ndarray
    new: bool
    text: LiveItemText | None = None


class TextEncode(Protocol):
    """A text encoder, such as :class:`setrec.scoring.text_features.TextFeaturizer`."""

    @property
    def identity(self) -> str:
        """Identifier of everything that a vector depends on except the text."""
        ...

    def encode(self, texts: Sequence[str], /) -> np.ndarray:
        """Return vectors, float32 (len(texts), width)."""
        ...

    def similarity_features(
        self, texts: Sequence[str], vectors: np.ndarray, center: np.ndarray | None, /
    ) -> TextFeatures:
        """Return the text-similarity features of texts with these vectors; ``center`` is the catalogue's."""
        ...


class ItemCoder:
    """Codes items for one bundle."""

    def __init__(self, bundle: Bundle, encode: TextEncode | None = None) -> None:
        """``encode`` replaces the bundle's own encoder."""
        self._bundle = bundle
        self._encoder = encode or bundle.featurizer()
        self._one_at_a_time = threading.Lock()

    def warm(self) -> None:
        """Load the encoder, so that the first item does not wait for it. Does nothing if there is none."""
        if self._encoder is not None:
            self._vector("")

    def encode(self, fields: ItemFields) -> ItemChange:
        """Return the change-log entry of an item. Takes about 10 ms; texts are encoded one at a time.

        Raises:
            CannotEncodeError: the bundle has no encoder, or its model no slot that reads text.
        """
        if self._encoder is None:
            raise CannotEncodeError(
                "the bundle has no text encoder, so items cannot be added to it; export one with an encoder"
            )
        change = ItemChange.of(fields, self._encoder.identity, self._encoded(fields))
        self._text_code(change.unpacked())
        return change

    def code(self, item_id: str, change: ItemChange) -> CodedItem:
        """Return the code of an item from its change-log entry.

        An item of the bundle keeps the columns that do not depend on its text, so that collaborative information is not
        lost.

        Raises:
            SetRecError: the entry is damaged, or was encoded with another encoder and cannot be encoded again.
        """
        bundle = self._bundle
        row, vector = bundle.catalog.find(item_id), self._vector_of(change)
        code = self._text_code(vector)
        if row is not None:
            of_text, code = code, np.array(bundle.codes[row])
            for kind in (SEMANTIC, TEXT):
                start, stop = bundle.manifest.code_columns.get(kind, (0, 0))
                code[start:stop] = of_text[start:stop]
        return CodedItem(code, row is None or bool(bundle.popularity[row] == 0), self._item_text(change.fields, vector))

    def _item_text(self, fields: ItemFields, vector: np.ndarray) -> LiveItemText | None:
        texts = self._bundle.texts
        if texts is None:
            return None
        assert self._encoder is not None
        features = self._encoder.similarity_features([self._text(fields)], vector[None], texts.center)
        return LiveItemText.of(features, texts.features)

    def _vector_of(self, change: ItemChange) -> np.ndarray:
        if self._encoder is not None and change.encoder == self._encoder.identity:
            return change.unpacked()
        if self._encoder is None:
            raise CannotEncodeError("the item was encoded for another bundle, and this one has no text encoder")
        return self._encoded(change.fields)

    def _encoded(self, fields: ItemFields) -> np.ndarray:
        with metrics.stage("encode"):
            return self._vector(self._text(fields))

    def _text(self, fields: ItemFields) -> str:
        return self._bundle.text_rule.text(fields.title, fields.text, fields.attributes)

    def _vector(self, text: str) -> np.ndarray:
        assert self._encoder is not None
        with self._one_at_a_time:
            vector: np.ndarray = self._encoder.encode([text])[0]
            return vector

    def _text_code(self, vector: np.ndarray) -> np.ndarray:
        try:
            code: np.ndarray = self._bundle.model.text_codes(torch.from_numpy(vector[None])).cpu().numpy()[0]
            return code
        except ConfigError as error:
            raise CannotEncodeError(str(error)) from error
