"""Where a warm start comes from: the folder of a run, of a record of the nightly loop, or a bundle."""

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
    """A model, the items it knows and, where it is kept beside it, the collaborative model.

    ``beginning``: the model that a warm start begins with, which has not learned from validation events where the run
    kept it: they may be among those of the run that begins.
    """

    model: Path
    beginning: Path
    items: Path
    sasrec: Path | None

    @classmethod
    def at(cls, path: Path) -> Source:
        """What lies at ``path``: a run, a bundle, or the ``model`` folder of either.

        Raises:
            ConfigError: no model with its catalogue is there.
        """
        root = path.parent if (path / "config.json").is_file() and path.name == "model" else path
        for items in (root / "data" / "items.parquet", root / "items.parquet"):
            if items.is_file() and (root / "model" / "config.json").is_file():
                model, sasrec = root / "model", root / "sasrec"
                return cls(model, validated(model), items, sasrec if (sasrec / "config.json").is_file() else None)
        raise ConfigError(f"warm start: {path} holds no model with its items: give the folder of a run or a bundle")

    def rows(self, item_ids: list[str]) -> np.ndarray:
        """For each item its row in the older catalogue; see :func:`setrec.training.warm_start.old_rows`."""
        try:
            known = pq.read_table(self.items, columns=["item_id"])["item_id"].to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(f"warm start: {self.items} cannot be read") from error
        return old_rows(known, item_ids)


def begin(model: SetRecModel, path: Path | None, item_ids: list[str], texts: np.ndarray | None) -> int:
    """Let ``model`` begin with the weights at ``path``, if there is one; returns how many items were known there.
    ``texts``: the text vectors that the model was filled with.

    Raises:
        ConfigError: nothing usable is there, or the two models do not fit.
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
    """The lexical encoder of the run or bundle at ``path``, ``None`` where there is none.

    Raises:
        ConfigError: nothing usable is there.
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


def begin_sasrec(model: SasRec, path: Path | None, item_ids: list[str]) -> int:
    """The same for the collaborative model; a bundle carries none, and it then begins anew."""
    if path is None:
        return 0
    source = Source.at(path)
    return 0 if source.sasrec is None else warm_start_sasrec(model, SasRec.load(source.sasrec), source.rows(item_ids))
