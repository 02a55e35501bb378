"""From an item's fields to the text an encoder reads, joined for live items as it was for the trained ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from setrec.catalog import Catalog
from setrec.settings import Settings
from setrec.tables import compose


class TextRule(Settings):
    """What takes part in an item's text, and in which order: the ``title`` or not, further words, these ``attributes``.

    They are joined by :func:`setrec.tables.compose`. An attribute that training did not know takes no part: the model
    could make nothing of it.
    """

    title: bool = True
    attributes: tuple[str, ...] = ()

    @classmethod
    def of(cls, catalog: Catalog) -> TextRule:
        """The rule by which the texts of ``catalog`` were made, read off them: every text shows what is in it."""
        titled = [
            (title, text)
            for title, text, item_id in zip(catalog.titles, catalog.texts, catalog.item_ids, strict=True)
            if title != item_id  # a blank title is shown as the id, which never is in a text
        ]
        title = bool(titled) and all(text.startswith(compose([title], {})) for title, text in titled)
        return cls(title=title, attributes=tuple(name for name in catalog.attributes if _is_in(name, catalog)))

    def text(self, title: str, words: str, attributes: Mapping[str, Sequence[str]]) -> str:
        """The text of one item."""
        known = {name: list(attributes[name]) for name in self.attributes if name in attributes}
        return compose([title, words] if self.title else [words], known)


def _is_in(name: str, catalog: Catalog) -> bool:
    pairs = [
        (values, text) for values, text in zip(catalog.attributes[name], catalog.texts, strict=True) if values and text
    ]
    return bool(pairs) and all(compose([], {name: values}) in text for values, text in pairs)
