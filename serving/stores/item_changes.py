"""Change-log entries of added items: fields, and the text vector, which is encoded once."""

from __future__ import annotations

import base64
import binascii

import numpy as np
from pydantic import ValidationError

from setrec.errors import DataError
from setrec.settings import Settings


class ItemFields(Settings):
    """Description of an item."""

    title: str
    text: str = ""
    attributes: dict[str, list[str]] = {}  # noqa: RUF012 - pydantic copies it
    available_from: float | None = None  # seconds since 1970, UTC
    available_until: float | None = None


class ItemChange(Settings):
    """An entry of the change log: the fields, the text's ``vector`` (float32, base64), and the identity of its
    encoder."""

    fields: ItemFields
    encoder: str
    vector: str

    @classmethod
    def of(cls, fields: ItemFields, encoder: str, vector: np.ndarray) -> ItemChange:
        """Return the entry of ``fields`` with the text ``vector`` float32 (width,) of ``encoder``."""
        packed = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        return cls(fields=fields, encoder=encoder, vector=packed)

    @classmethod
    def read(cls, payload: str | None) -> ItemChange:
        """Parse an entry.

        Raises:
            DataError: it is damaged or from an incompatible version.
        """
        try:
            return cls.model_validate_json(payload or "")
        except ValidationError as error:
            raise DataError(f"not a description of an item ({error.errors()[0]['msg']})") from error

    def unpacked(self) -> np.ndarray:
        """Return the vector, float32 (width,).

        Raises:
            DataError: it is damaged.
        """
        try:
            vector = np.frombuffer(base64.b64decode(self.vector, validate=True), dtype="<f4").astype(np.float32)
        except (binascii.Error, ValueError) as error:
            raise DataError("the vector of an item is damaged") from error
        if not np.isfinite(vector).all():
            raise DataError("the vector of an item is damaged")
        return vector
