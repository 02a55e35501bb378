"""Raw tables to a data directory (``pipelines.data_directory``), all of it or nothing: in one process, or streamed."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.data_directory import (
    FORMAT,
    history_shards,
    load,
    refuse_foreign,
    shard_name,
    write_histories,
    write_summary,
)
from pipelines.data_settings import DataSettings
from pipelines.fingerprints import of_file
from pipelines.progress import Bar, bar
from pipelines.rejects import Rejected, Tally
from setrec.atomic import atomic_directory
from setrec.catalog import Catalog, Histories
from setrec.columns import Faults
from setrec.errors import DataError
from setrec.formats import RawTable, read_raw
from setrec.interactions import chronological, distinct, k_core, tied
from setrec.ragged import Ragged
from setrec.splits import NAMES, TRAIN, GlobalTime, LeaveOneOut, global_time, held_out_items, leave_one_out
from setrec.tables import interactions_of, items_of

__all__ = ["DataSettings", "history_shards", "ingest", "load"]


def ingest(
    config: DataSettings, out: str | Path, *, address: str | None = None, progress: Bar | None = None
) -> dict[str, Any]:
    """Read, check, filter, order and split; write the data directory ``out`` and return what ``data.json`` holds.

    A file is read in this process, half a second for MovieLens-100K. A folder or URI of Parquet files, or what
    ``config.streaming`` asks for, is streamed through the Ray cluster at ``address`` (this machine where there is
    none), to the same histories, labels and items (``pipelines.ingest_stream``). An earlier data directory at ``out``
    is replaced, anything else there is refused; after an error it is as it was.

    Raises:
        DataError: input that cannot be used, or nothing left to train on; one line naming file, row and column.
        ConfigError: the cluster failed.
    """
    out = Path(out)
    refuse_foreign(out)
    if streams(config):
        from pipelines.ingest_stream import ingest_stream

        with nullcontext(progress) if progress else bar("Ingest and split") as shown:
            return ingest_stream(config, out, shown, address)
    chosen = _split(config, _choose(config))
    catalog, histories = _number(config, chosen)
    summary = _summary(config, chosen, catalog, histories)
    with atomic_directory(out) as new:
        catalog.save(new / "items.parquet")
        write_histories(new / "histories", histories)
        for number, rejected in enumerate(filter(len, (chosen.rejected, chosen.rejected_items))):
            rejected.save(str(new / "rejected" / shard_name(number)))
        write_summary(new, summary)
    return summary


def streams(config: DataSettings) -> bool:
    """Whether the input is streamed: as configured, else where a table is a folder or a URI."""
    if config.streaming.enabled is not None:
        return config.streaming.enabled
    tables = (config.interactions, config.items)
    return any(isinstance(table, str) or table.is_dir() for table in tables if table is not None)


@dataclass
class _Chosen:
    """Interactions on their way: ``frame`` is chronological, ``user`` and ``item`` are codes into the id lists.

    ``counts`` int64: interactions of each item code that decide whether the item stays in the catalogue.
    """

    frame: pd.DataFrame
    catalog: Catalog
    users: list[str]
    rejected_items: Rejected
    rejected: Rejected = field(default_factory=Rejected)
    counts: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    dropped: dict[str, int] = field(default_factory=dict)

    def keep(self, mask: np.ndarray, reason: str) -> None:
        self.dropped[reason] = int((~mask).sum())
        self.frame = self.frame[mask]


def _choose(config: DataSettings) -> _Chosen:
    """Everything up to the split: the interactions that count, in chronological order."""
    raw, faults = read_raw(config.interactions), _faults(config)
    frame = interactions_of(raw, config.schema_in_use, faults)
    items = _Items.of(config, frame)
    user_codes, users = pd.factorize(frame["user"])
    chosen = _Chosen(frame.assign(user=user_codes), items.catalog, users.tolist(), items.rejected)
    if config.min_rating is not None:
        chosen.keep(_array(chosen, "rating") >= config.min_rating, "rating_below_minimum")
    chosen.frame = chosen.frame.assign(item=_item_codes(config, chosen.frame, items.catalog, faults))
    chosen.rejected = _rejected(config, raw, faults)
    if config.unknown_items == "refuse":  # those there are have been rejected
        chosen.frame = chosen.frame[chosen.frame["item"] >= 0]
    chosen.keep(chosen.frame["item"].to_numpy() >= 0, "unknown_item")
    rows = chosen.frame.index.to_numpy()
    order = chronological(_array(chosen, "user"), _array(chosen, "time"), config.ties, config.seed, rows)
    chosen.frame = chosen.frame.iloc[order]
    chosen.keep(distinct(_array(chosen, "user"), _array(chosen, "item"), config.deduplicate), "repeated")
    minima = config.user_min_count, config.item_min_count
    chosen.keep(k_core(_array(chosen, "user"), _array(chosen, "item"), *minima), "below_minimum_count")
    if chosen.frame.empty:
        raise DataError(f"no interactions are left after filtering ({chosen.dropped})", file=config.interactions)
    chosen.counts = np.bincount(_array(chosen, "item"), minlength=len(items.catalog))
    return chosen


def _split(config: DataSettings, chosen: _Chosen) -> _Chosen:
    """Label every interaction; where cold items are asked for, take some items out of training."""
    lengths = np.bincount(_array(chosen, "user"), minlength=len(chosen.users))
    labels = _labels(config, chosen, np.concatenate([[0], np.cumsum(lengths)]))
    chosen.frame = chosen.frame.assign(label=labels)
    if config.cold_share:
        items = _array(chosen, "item")
        trained = np.bincount(items[labels == TRAIN], minlength=len(chosen.catalog)) > 0
        cold = held_out_items(trained, config.cold_share, config.seed)
        chosen.keep(~((labels == TRAIN) & cold[items]), "held_out_item")
    if not (_array(chosen, "label") == TRAIN).any():
        raise DataError("the split leaves no interaction to train on", file=config.interactions)
    return chosen


def _faults(config: DataSettings) -> Faults | None:
    """Where bad rows are noted; nothing where the first is to be refused."""
    return None if config.rejected_share is None else {}


def _rejected(config: DataSettings, raw: RawTable, faults: Faults | None) -> Rejected:
    """The rows noted, unless they are too many."""
    rejected = Rejected()
    rejected.add_faults(faults or {}, str(raw.file))
    tally = Tally(str(raw.file), config.rejected_share or 0.0, raw.table.num_rows)
    tally.add(len(rejected), rejected.first())
    tally.check()
    return rejected


@dataclass(frozen=True)
class _Items:
    """The catalogue in the order of its file, and the rows of the file that are not in it."""

    catalog: Catalog
    rejected: Rejected

    @classmethod
    def of(cls, config: DataSettings, frame: pd.DataFrame) -> _Items:
        """Without an items file: the items met, titled by their ids, with no text (an id must not reach a model)."""
        if config.items is None:
            names = frame["item"].drop_duplicates().tolist()
            return cls(Catalog(names, names, [""] * len(names), {}), Rejected())
        raw, faults = read_raw(config.items), _faults(config)
        catalog = items_of(raw, config.columns, faults)
        return cls(catalog, _rejected(config, raw, faults))


def _item_codes(config: DataSettings, frame: pd.DataFrame, catalog: Catalog, faults: Faults | None) -> np.ndarray:
    codes = pd.Index(catalog.item_ids).get_indexer(pd.Index(frame["item"]))
    if config.unknown_items == "drop":
        return codes
    for at in np.flatnonzero(codes < 0).tolist():
        reason = f"unknown item {frame['item'].iloc[at]!r}: {config.items} does not hold it"
        row, column = int(frame.index[at]), config.columns.item
        if faults is None:
            raise DataError(reason, file=config.interactions, row=row, column=column)
        faults[row - 1] = (column, reason)
    return codes


def _number(config: DataSettings, chosen: _Chosen) -> tuple[Catalog, Histories]:
    """Give out rows: users in the order of the file, items in a random order drawn from the seed."""
    users, items = _array(chosen, "user"), _array(chosen, "item")
    kept = np.flatnonzero(chosen.counts >= config.item_min_count)
    kept = np.random.default_rng(config.seed).permutation(kept)
    row_of_item = np.full(len(chosen.catalog), -1, dtype=np.int32)
    row_of_item[kept] = np.arange(len(kept), dtype=np.int32)
    lengths = np.bincount(users, minlength=len(chosen.users))
    user_ids = [chosen.users[user] for user in np.flatnonzero(lengths)]
    offsets = np.concatenate([[0], np.cumsum(lengths[lengths > 0])]).astype(np.int64)
    return chosen.catalog.take(kept), Histories(user_ids, Ragged(row_of_item[items], offsets), _array(chosen, "label"))


def _labels(config: DataSettings, chosen: _Chosen, offsets: np.ndarray) -> np.ndarray:
    split = config.split
    if isinstance(split, LeaveOneOut):
        return leave_one_out(offsets, split.min_history)
    if isinstance(split, GlobalTime):
        return global_time(_array(chosen, "time"), split.valid, split.test)
    return _array(chosen, "split").astype(np.int8)


def _summary(config: DataSettings, chosen: _Chosen, catalog: Catalog, histories: Histories) -> dict[str, Any]:
    ties = tied(_array(chosen, "user"), _array(chosen, "time"))
    warm = int(histories.trained(len(catalog)).sum())
    counts = np.bincount(histories.splits, minlength=3)
    inputs = [Path(path) for path in (config.interactions, config.items) if path is not None]
    return {
        "format": FORMAT,
        "users": len(histories),
        "items": len(catalog),
        "interactions": len(histories.items.values),
        "splits": {name: int(counts[NAMES[name]]) for name in ("train", "valid", "test")},
        "warm_items": warm,
        "cold_items": len(catalog) - warm,
        "items_without_text": sum(not text for text in catalog.texts),
        "dropped": chosen.dropped,
        "rejected": {"interactions": len(chosen.rejected), "items": len(chosen.rejected_items)},
        # Share of interactions at the very time of the user's one before; and of users whose last one is such.
        "tied_share": round(float(ties.mean()), 4),
        "tied_last_share": round(float(ties[histories.items.offsets[1:] - 1].mean()), 4),
        "settings": config.model_dump(mode="json"),
        "inputs": {str(path): of_file(path) for path in inputs},
    }


def _array(chosen: _Chosen, name: str) -> np.ndarray:
    return chosen.frame[name].to_numpy()
