"""From an item's fields to its code: text, vector, semantic columns, and what is known or guessed of the others."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from serving import metrics
from serving.changes import ItemChange, ItemFields
from setrec.errors import ConfigError, SetRecError
from setrec.tokens import COLLABORATIVE, SEMANTIC

if TYPE_CHECKING:
    from serving.bundle import Bundle


class CannotEncodeError(SetRecError):
    """What is served cannot place an item by its text; the message says why."""


class TextEncode(Protocol):
    """What turns texts into vectors; :class:`setrec.encoder.TextEncoder` is one."""

    @property
    def identity(self) -> str:
        """Names everything that a vector depends on but the text."""
        ...

    def encode(self, texts: Sequence[str], /) -> np.ndarray:
        """Vectors, float32 (len(texts), width)."""
        ...


class ItemCoder:
    """Codes items by the rules of one bundle."""

    def __init__(self, bundle: Bundle, encode: TextEncode | None = None) -> None:
        """``encode`` takes the place of the encoder that the bundle carries."""
        self._bundle = bundle
        self._encoder = encode or bundle.text_encoder()
        self._one_at_a_time = threading.Lock()

    def warm(self) -> None:
        """Load the encoder, so that the first item does not wait for it. Does nothing where there is none."""
        if self._encoder is not None:
            self._vector("")

    def encode(self, fields: ItemFields) -> ItemChange:
        """The entry of the change log that describes an item. Takes some 10 ms; one text at a time is encoded.

        Raises:
            CannotEncodeError: the bundle carries no encoder, or its model no semantic slot.
        """
        if self._encoder is None:
            raise CannotEncodeError("the bundle carries no text encoder, so items cannot be added to it; export one")
        change = ItemChange.of(fields, self._encoder.identity, self._encoded(fields))
        self._semantic(change.unpacked())
        return change

    def code(self, item_id: str, change: ItemChange) -> np.ndarray:
        """The code, float32 (D,), of an item that the change log describes.

        An item of the bundle keeps all but its semantic columns, so what was learned from its users stays.

        Raises:
            SetRecError: the entry is damaged, or was made by another encoder than the bundle's and cannot be encoded.
        """
        bundle, columns = self._bundle, self._bundle.manifest.code_columns
        row = bundle.catalog.find(item_id)
        code = np.zeros(bundle.codes.shape[1], np.float32) if row is None else np.array(bundle.codes[row])
        start, stop = columns[SEMANTIC]
        code[start:stop] = self._semantic(self._vector_of(change))
        if bundle.newcomers is not None and (row is None or bundle.popularity[row] == 0):
            first, last = columns[COLLABORATIVE]
            code[first:last] = bundle.newcomers(code[None, start:stop])[0]
        return code

    def _vector_of(self, change: ItemChange) -> np.ndarray:
        if self._encoder is not None and change.encoder == self._encoder.identity:
            return change.unpacked()
        if self._encoder is None:
            raise CannotEncodeError("the item was encoded for another bundle, and this one carries no text encoder")
        return self._encoded(change.fields)

    def _encoded(self, fields: ItemFields) -> np.ndarray:
        with metrics.stage("encode"):
            return self._vector(self._bundle.text_rule.text(fields.title, fields.text, fields.attributes))

    def _vector(self, text: str) -> np.ndarray:
        assert self._encoder is not None
        with self._one_at_a_time:
            return self._encoder.encode([text])[0]

    def _semantic(self, vector: np.ndarray) -> np.ndarray:
        if SEMANTIC not in self._bundle.manifest.code_columns:
            raise CannotEncodeError("the model has no semantic slot, so it cannot place an item by its text")
        try:
            return self._bundle.model.text_codes(torch.from_numpy(vector[None])).cpu().numpy()[0]
        except ConfigError as error:
            raise CannotEncodeError(str(error)) from error
