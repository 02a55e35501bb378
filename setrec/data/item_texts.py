"""Which columns of a table of items become its words and attributes, and the text made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from setrec.data.schema import Schema


@dataclass(frozen=True)
class TextColumns:
    """The columns of a table of items that become words and attributes, with what parts values in one string."""

    text: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    separators: tuple[str | None, ...] = ()
    strip_html: bool = False


def compose(text: list[str], attributes: dict[str, list[str]]) -> str:
    """The encoder's text of one item; columns without a value leave no trace. ``details.Brand`` is called Brand."""
    parts = [line.rstrip(".") for line in text if line]
    parts += [f"{label(name)}: {', '.join(values)}" for name, values in attributes.items() if values]
    return ". ".join(parts)


def label(attribute: str) -> str:
    """An attribute's name as its text shows it."""
    return attribute.rpartition(".")[2].replace("_", " ").capitalize()


def text_columns(types: Mapping[str, str], schema: Schema) -> tuple[str, ...]:
    """The columns of words, stated or told by the ``types`` that an atomic file states of its columns."""
    if schema.text is not None:
        return schema.text
    if types:
        taken = {schema.item_id, *(schema.attributes or ())}
        return tuple(name for name, kind in types.items() if kind == "token_seq" and name not in taken)[:1]
    return ("title",)


def attribute_columns(types: Mapping[str, str], schema: Schema) -> tuple[str, ...]:
    """The categorical columns, stated or told by the file's types."""
    if schema.attributes is not None:
        return schema.attributes
    taken = {schema.item_id, *text_columns(types, schema)}
    return tuple(name for name, kind in types.items() if kind.startswith("token") and name not in taken)


def separator(types: Mapping[str, str], schema: Schema, name: str) -> str | None:
    """What parts the values of an attribute held in one string: as stated; a blank for an atomic ``token_seq``."""
    return schema.separators.get(name, " " if types.get(name) == "token_seq" else None)
