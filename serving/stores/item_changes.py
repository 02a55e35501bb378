"""What the change log says of an item that was put: its fields, and its text as a vector, encoded once for all."""

from __future__ import annotations

import base64
import binascii

import numpy as np
from pydantic import ValidationError

from setrec.errors import DataError
from setrec.settings import Settings


class ItemFields(Settings):
    """An item as its owner describes it."""

    title: str
    text: str = ""
    attributes: dict[str, list[str]] = {}  # noqa: RUF012 - pydantic copies it
    available_from: float | None = None  # seconds since 1970, UTC
    available_until: float | None = None


class ItemChange(Settings):
    """An entry of the change log: the fields, the text's ``vector`` (float32, base64), and which encoder made it."""

    fields: ItemFields
    encoder: str
    vector: str

    @classmethod
    def of(cls, fields: ItemFields, encoder: str, vector: np.ndarray) -> ItemChange:
        """The entry of ``fields`` whose text is ``vector`` float32 (width,) to ``encoder``."""
        packed = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        return cls(fields=fields, encoder=encoder, vector=packed)

    @classmethod
    def read(cls, payload: str | None) -> ItemChange:
        """An entry as it was written.

        Raises:
            DataError: it is damaged or from a version of another kind.
        """
        try:
            return cls.model_validate_json(payload or "")
        except ValidationError as error:
            raise DataError(f"not a description of an item ({error.errors()[0]['msg']})") from error

    def unpacked(self) -> np.ndarray:
        """The vector, float32 (width,).

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
