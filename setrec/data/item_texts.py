"""Text and attribute columns of a table of items, and the composition of item texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from setrec.data.schema import Schema


@dataclass(frozen=True)
class TextColumns:
    """The text and attribute columns of a table of items, with the separators of values in one string."""

    text: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    separators: tuple[str | None, ...] = ()
    strip_html: bool = False


def compose(text: list[str], attributes: dict[str, list[str]]) -> str:
    """Return the encoder's text of one item; columns without a value are left out. ``details.Brand`` becomes Brand."""
    parts = [line.rstrip(".") for line in text if line]
    parts += [f"{label(name)}: {', '.join(values)}" for name, values in attributes.items() if values]
    return ". ".join(parts)


def label(attribute: str) -> str:
    """Return an attribute's name as shown in texts."""
    return attribute.rpartition(".")[2].replace("_", " ").capitalize()


def text_columns(types: Mapping[str, str], schema: Schema) -> tuple[str, ...]:
    """Return the text columns, from the schema or from the column ``types`` of an atomic file."""
    if schema.text is not None:
        return schema.text
    if types:
        taken = {schema.item_id, *(schema.attributes or ())}
        return tuple(name for name, kind in types.items() if kind == "token_seq" and name not in taken)[:1]
    return ("title",)


def attribute_columns(types: Mapping[str, str], schema: Schema) -> tuple[str, ...]:
    """Return the categorical columns, from the schema or from the file's column types."""
    if schema.attributes is not None:
        return schema.attributes
    taken = {schema.item_id, *text_columns(types, schema)}
    return tuple(name for name, kind in types.items() if kind.startswith("token") and name not in taken)


def separator(types: Mapping[str, str], schema: Schema, name: str) -> str | None:
    """Return the separator of an attribute's values in one string: from the schema; a blank for an atomic
    ``token_seq``."""
    return schema.separators.get(name, " " if types.get(name) == "token_seq" else None)
