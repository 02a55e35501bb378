"""Sources of a warm start: the folder of a run, of a record of the nightly loop, or a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError

from pipelines.common.run_directory import validated
from setrec.errors import ConfigError
from setrec.models.sasrec import SasRec
from setrec.models.setrec_model import SetRecModel
from setrec.text.lexical import LexicalEncoder
from setrec.training.warm_start import old_rows, warm_start, warm_start_sasrec


@dataclass(frozen=True)
class Source:
    """A model, its items and, if stored, the collaborative model.

    ``beginning``: the model that a warm start begins with. If the run stored it, this is the model that was not trained
    on validation events, because the new run may have the same ones.
    """

    model: Path
    beginning: Path
    items: Path
    sasrec: Path | None

    @classmethod
    def at(cls, path: Path) -> Source:
        """Return the source at ``path``: a run, a bundle, or the ``model`` folder of either.

        Raises:
            ConfigError: there is no model with its catalogue.
        """
        root = path.parent if (path / "config.json").is_file() and path.name == "model" else path
        for items in (root / "data" / "items.parquet", root / "items.parquet"):
            if items.is_file() and (root / "model" / "config.json").is_file():
                model, sasrec = root / "model", root / "sasrec"
                return cls(model, validated(model), items, sasrec if (sasrec / "config.json").is_file() else None)
        raise ConfigError(f"warm start: {path} holds no model with its items: give the folder of a run or a bundle")

    def rows(self, item_ids: list[str]) -> np.ndarray:
        """Return each item's row in the older catalogue; see :func:`setrec.training.warm_start.old_rows`."""
        try:
            known = pq.read_table(self.items, columns=["item_id"])["item_id"].to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(f"warm start: {self.items} cannot be read") from error
        return old_rows(known, item_ids)


def begin(model: SetRecModel, path: Path | None, item_ids: list[str], texts: np.ndarray | None) -> int:
    """Initialise ``model`` with the weights at ``path``, if any; return the number of items known there. ``texts``: the
    text vectors of the model.

    Raises:
        ConfigError: there is no usable model, or the two models do not fit.
    """
    if path is None:
        return 0
    source = Source.at(path)
    try:
        old = SetRecModel.from_pretrained(source.beginning, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"warm start: {source.beginning} cannot be loaded: {reason}") from error
    return warm_start(model, old, source.rows(item_ids), texts)


def lexical_encoder(path: Path | None) -> LexicalEncoder | None:
    """Return the lexical encoder of the run or bundle at ``path``, or ``None``.

    Raises:
        ConfigError: there is no usable one.
    """
    if path is None:
        return None
    root = Source.at(path).items.parent
    folders = (root / "lexical", root.parent / "features" / "lexical")
    found = next((folder for folder in folders if folder.is_dir()), None)
    try:
        return None if found is None else LexicalEncoder.load(found)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise ConfigError(f"warm start: {found} is damaged") from error


def sentence_encoder(path: Path | None) -> Path | None:
    """Return the folder of the sentence encoder in the run or bundle at ``path``, or ``None``; that of a run is there
    only if it was fine-tuned.

    Raises:
        ConfigError: there is no usable source.
    """
    root = None if path is None else Source.at(path).items.parent
    folders = () if root is None else (root / "encoder", root.parent / "encoder")
    return next((folder for folder in folders if folder.is_dir()), None)


def begin_sasrec(model: SasRec, path: Path | None, item_ids: list[str]) -> int:
    """Do the same for the collaborative model; a bundle contains none, and training then starts from random weights."""
    if path is None:
        return 0
    source = Source.at(path)
    return 0 if source.sasrec is None else warm_start_sasrec(model, SasRec.load(source.sasrec), source.rows(item_ids))
