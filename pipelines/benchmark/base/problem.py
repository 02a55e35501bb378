"""The problem that a benchmark's systems solve: a data set under a protocol.

``leave-one-out``: each user's last item is for testing, the one before for validation (users with fewer than three
items only train). ``setrec``: the split by global time of arXiv 2502.10833, as published by its authors if
``setrec_split.parquet`` is in the folder of the data; else by their rule from timestamps: the latest 17% of all
interactions are for testing, the 13.6% before for validation, users with fewer than two training items are left out.

Items are numbered at random, so that models cannot use the order of ids.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq

from pipelines.common.fingerprints import of_file
from pipelines.common.run_directory import Run
from pipelines.config.job import JobConfig, load_config
from pipelines.config.sections import ItemEncoderSettings
from pipelines.data import directory
from pipelines.data.directory import write_histories
from pipelines.data.settings import DataSettings, places
from pipelines.features import item_features, preparation
from setrec.atomic import atomic_directory
from setrec.data.catalog import TEST, TRAIN, VALID, Catalog, Histories
from setrec.data.schema import Schema
from setrec.data.splits import ByColumn, GlobalTime, LeaveOneOut
from setrec.errors import DataError
from setrec.evaluation import ranking
from setrec.ragged import Ragged
from setrec.scoring.text_similarity import TextFeatures

RECORD = "problem.json"
"""The file with data set and protocol of a run; written last."""
Protocol = Literal["setrec", "leave-one-out"]
PUBLISHED_SPLIT = "setrec_split.parquet"
TEXT = ("title", "description", "keywords")
"""Columns of words that are read if a table of items has them; the first is the title."""
ATTRIBUTES = ("brand", "categories", "attributes", "genres")
"""Columns of categories that are read, as words, if a table of items has them."""


@dataclass(frozen=True)
class Problem:
    """A prepared data set. ``text``: word and sentence vectors of the items, float32 (I, w), ``None`` without texts;
    ``hash``: of the input files, which identifies results of the same data; ``texts``: features of text similarity;
    ``run`` and ``config``: the run that holds it all, and the recipe."""

    name: str
    protocol: Protocol
    catalog: Catalog
    histories: Histories
    text: np.ndarray | None
    hash: str
    texts: TextFeatures | None = None
    run: Run | None = None
    config: JobConfig | None = None

    @property
    def items(self) -> int:
        """Size of the catalogue, I."""
        return len(self.catalog)

    @cached_property
    def train(self) -> Ragged:
        """Training histories."""
        return self.histories.upto(TRAIN)

    @cached_property
    def counts(self) -> np.ndarray:
        """Number of training interactions of each item, int64 (I,)."""
        return self.histories.train_counts(self.items)

    @cached_property
    def trained(self) -> np.ndarray:
        """Warm items, bool (I,)."""
        return self.counts > 0

    @cached_property
    def valid(self) -> ranking.Cases:
        """Validation users: training history, all validation items."""
        return ranking.Cases.of(self.histories, VALID)

    @cached_property
    def test(self) -> ranking.Cases:
        """Test users: training and validation items as history, all test items."""
        return ranking.Cases.of(self.histories, TEST)

    @property
    def goal(self) -> str:
        """History protocol of the published figures: SETRec's keep the history, leave-one-out removes it."""
        return "kept" if self.protocol == "setrec" else "removed"

    @property
    def timed(self) -> bool:
        """Whether the split is one of global time."""
        return self.protocol == "setrec"


def settings_of(data: Path, protocol: Protocol, seed: int = 0) -> DataSettings:
    """Return the data settings for the tables in ``data`` under a protocol.

    Raises:
        DataError: a table is missing, or the protocol needs times that the data does not have.
    """
    interactions, items = data / "interactions.parquet", data / "items.parquet"
    published = data / PUBLISHED_SPLIT
    columns = Schema(**_item_columns(items))
    if protocol == "setrec" and published.is_file():
        named = columns.model_copy(update={"user": "user", "position": "position", "split": "split"})
        return _settings(published, items, named, ByColumn(), seed)
    names = _names(interactions)
    if protocol == "leave-one-out":
        return _settings(interactions, items, columns, LeaveOneOut(), seed)
    if "timestamp" not in names:
        raise DataError(f"the protocol setrec needs a column timestamp, or {PUBLISHED_SPLIT}", file=interactions)
    return _settings(interactions, items, columns, GlobalTime(valid=0.136, test=0.17), seed)


def prepare(data: Path, protocol: Protocol, out: Path, encoder: str | None, seed: int = 0) -> None:
    """Prepare ``data`` under a protocol as ``setrec prepare`` does, into the run ``out``.

    Raises:
        DataError: the data cannot be used, or nothing is left to validate or test on.
    """
    texts = ItemEncoderSettings(path=encoder)
    config = JobConfig(name=data.name, data=settings_of(data, protocol, seed), encoder=texts)
    run = Run(out)
    (out / RECORD).unlink(missing_ok=True)
    preparation.ingest_data(run, config)
    if isinstance(config.data.split, GlobalTime):
        _replace(run.data, *_without_beginners(*directory.load(run.data)))
    catalog, histories = directory.load(run.data)
    for split, what in ((VALID, "validate"), (TEST, "test")):
        if not len(ranking.Cases.of(histories, split)):
            raise DataError(f"the protocol {protocol} leaves no user to {what} on", file=data)
    if any(catalog.texts):
        preparation.tokenise(run, config)
    run.write_json(RECORD, {"hash": hash_of(data, protocol), "name": data.name, "protocol": protocol})


def load(out: Path) -> Problem:
    """Load the problem that :func:`prepare` wrote."""
    run = Run(out)
    catalog, histories = directory.load(run.data)
    record = run.read_json(RECORD)
    return Problem(
        record["name"], record["protocol"], catalog, histories, item_features.text_vectors(run), record["hash"],
        item_features.text_features(run, catalog), run, load_config(run.config),
    )  # fmt: skip


def is_prepared(out: Path) -> bool:
    """Return whether :func:`prepare` has finished."""
    return (out / RECORD).is_file()


def hash_of(data: Path, protocol: Protocol) -> str:
    """Return a hash of the files that a protocol reads from ``data``."""
    settings = settings_of(data, protocol)
    paths = [Path(path) for path in (*places(settings.interactions), *places(settings.items))]
    return hashlib.sha256(b"".join(bytes.fromhex(of_file(path)) for path in paths)).hexdigest()[:16]


def _settings(interactions: Path, items: Path, columns: Schema, split: object, seed: int) -> DataSettings:
    return DataSettings(
        interactions=interactions, items=items if items.is_file() else None, columns=columns, split=split,
        item_min_count=1, seed=seed, ties="shuffle",
    )  # fmt: skip


def _item_columns(items: Path) -> dict[str, tuple[str, ...]]:
    names = _names(items) if items.is_file() else ()
    return {
        "text": tuple(name for name in TEXT if name in names),
        "attributes": tuple(name for name in ATTRIBUTES if name in names),
    }


def _names(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError("no such file", file=path)
    try:
        names: list[str] = pq.read_schema(path).names
        return names
    except Exception as error:  # pyarrow raises many kinds
        raise DataError("not a readable Parquet file", file=path) from error


def _without_beginners(catalog: Catalog, histories: Histories) -> tuple[Catalog, Histories]:
    """Remove users with fewer than two training items, and items without other users."""
    kept = histories.take(np.flatnonzero(histories.upto(TRAIN).lengths >= 2))
    met = np.flatnonzero(np.bincount(kept.items.values, minlength=len(catalog)))
    row = np.zeros(len(catalog), dtype=np.int32)
    row[met] = np.arange(len(met))
    return catalog.take(met), Histories(kept.user_ids, Ragged(row[kept.items.values], kept.items.offsets), kept.splits)


def _replace(folder: Path, catalog: Catalog, histories: Histories) -> None:
    with atomic_directory(folder) as new:
        catalog.save(new / "items.parquet")
        write_histories(new / "histories", [histories])
