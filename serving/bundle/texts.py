"""Item texts: the rule for composing them, and the features of the catalogue's texts for comparison with others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from safetensors.numpy import save_file

from setrec.data.catalog import Catalog
from setrec.data.item_texts import compose
from setrec.mapped import mapped
from setrec.scoring.text_similarity import TextFeatures
from setrec.settings import Settings

TEXTS = "texts.safetensors"


class TextRule(Settings):
    """The parts of an item's text, in order: optionally the ``title``, further words, these ``attributes``.

    They are joined by :func:`setrec.data.item_texts.compose`. Attributes unknown in training are left out, as the model
    cannot interpret them.
    """

    title: bool = True
    attributes: tuple[str, ...] = ()

    @classmethod
    def of(cls, catalog: Catalog) -> TextRule:
        """Infer the rule by which the texts of ``catalog`` were composed from the texts themselves."""
        titled = [
            (title, text)
            for title, text, item_id in zip(catalog.titles, catalog.texts, catalog.item_ids, strict=True)
            if title != item_id  # a blank title is replaced by the id, which is never in a text
        ]
        title = bool(titled) and all(text.startswith(compose([title], {})) for title, text in titled)
        return cls(title=title, attributes=tuple(name for name in catalog.attributes if _is_in(name, catalog)))

    def text(self, title: str, words: str, attributes: Mapping[str, Sequence[str]]) -> str:
        """Return the text of one item."""
        known = {name: list(attributes[name]) for name in self.attributes if name in attributes}
        return compose([title, words] if self.title else [words], known)


def _is_in(name: str, catalog: Catalog) -> bool:
    pairs = [
        (values, text) for values, text in zip(catalog.attributes[name], catalog.texts, strict=True) if values and text
    ]
    return bool(pairs) and all(compose([], {name: values}) in text for values, text in pairs)


@dataclass(frozen=True)
class BundleTexts:
    """``features`` of the catalogue's texts, memory-mapped, and its sentence vectors' ``center``, float32 (w,)."""

    features: TextFeatures
    center: np.ndarray | None

    def save(self, folder: Path) -> None:
        """Write ``texts.safetensors``: TF-IDF rows as CSR arrays, sentence vectors (I, w) and their centre."""
        rows, sentences, center = self.features.lexical, self.features.sentences, self.center
        tensors = {"data": rows.data.astype(np.float32), "shape": np.array(rows.shape, np.int64)}
        tensors |= {"columns": rows.indices.astype(np.int32), "offsets": rows.indptr.astype(np.int64)}
        if sentences is not None and center is not None:
            tensors |= {"sentences": np.ascontiguousarray(sentences, np.float32), "center": center.astype(np.float32)}
        save_file(tensors, folder / TEXTS)

    @classmethod
    def load(cls, folder: Path) -> BundleTexts | None:
        """Load what :meth:`save` wrote; ``None`` if there is no file.

        Raises:
            KeyError, ValueError: the file is damaged.
        """
        file = folder / TEXTS
        if not file.exists():
            return None
        offsets, shape = mapped(file, "offsets", np.int64), mapped(file, "shape", np.int64)
        if offsets[-1] < 1 << 31:  # both index arrays must have one type, or SciPy copies
            offsets = offsets.astype(np.int32)
        arrays = mapped(file, "data"), mapped(file, "columns", np.int32), offsets
        rows = sp.csr_matrix(arrays, (int(shape[0]), int(shape[1])))
        try:
            return cls(TextFeatures(rows, mapped(file, "sentences")), np.array(mapped(file, "center")))
        except KeyError:
            return cls(TextFeatures(rows), None)
