"""Conversion of raw tables to a data directory (``pipelines.data.directory``), written completely or not at all.

Items and rejected rows are always in DuckDB in this process; interactions are there too, or on a Ray cluster.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.common import storage
from pipelines.common.cluster import quiet_data, ray_session
from pipelines.common.failures import readable_error
from pipelines.common.fingerprints import of_file
from pipelines.common.progress import Bar, bar
from pipelines.data import scans
from pipelines.data.directory import FORMAT, refuse_foreign, write_summary
from pipelines.data.engine import DuckDbEngine, engine
from pipelines.data.files import File, files_of
from pipelines.data.settings import DataSettings, ReaderSettings, places
from pipelines.ingest import catalogue, histories, interactions
from pipelines.ingest.on_duckdb import OnDuckDB
from pipelines.ingest.on_ray import OnRay
from pipelines.ingest.rejects import DEFAULT_SHARE, Rejects, save
from setrec.atomic import atomic_directory
from setrec.data.item_texts import TextColumns
from setrec.errors import DataError

_STEPS = ("reading items", "reading interactions", "ordering histories", "minimum counts", "split", "writing")


def ingest(
    config: DataSettings, out: str | Path, *, progress: Bar | None = None, address: str | None = None
) -> dict[str, Any]:
    """Read, check, filter, order and split; write the data directory ``out`` and return the content of ``data.json``.

    An earlier data directory at ``out`` is replaced, anything else there is refused; after an error it is unchanged.
    Memory stays within ``config.memory_limit`` plus about 0.5 GB for any size of the input. With ``engine: ray`` the
    interactions are on the cluster at ``address`` (see :func:`pipelines.common.cluster.ray_session`).

    Raises:
        DataError: the input cannot be used, or nothing is left to train on; one line names file, row and column.
        ConfigError: memory or disk space does not suffice.
    """
    out = Path(out)
    refuse_foreign(out)
    tables = files_of(places(config.interactions), config.reader), files_of(places(config.items), config.item_reader)
    with nullcontext(progress) if progress else bar("Ingest and split") as shown, engine(config, out) as running:
        scans.check_pattern(running, config.columns.time_format)
        with atomic_directory(out) as new, _interactions(config, running, address) as on:
            return _Ingest(config, running, *tables, shown).run(new, on)


@contextmanager
def _interactions(config: DataSettings, running: DuckDbEngine, address: str | None) -> Iterator[OnDuckDB | OnRay]:
    if config.engine == "duckdb":
        yield OnDuckDB(config, running)
        return
    with ray_session(address):
        quiet_data()
        from ray.exceptions import RayError

        try:
            yield OnRay(config, running)
        except RayError as error:
            raise readable_error(error, "ingest") from error


class _Ingest:
    """The state of one ingest."""

    def __init__(
        self, config: DataSettings, running: DuckDbEngine, files: list[File], item_files: list[File], shown: Bar
    ) -> None:
        self.config, self.engine, self.files, self.item_files, self.shown = config, running, files, item_files, shown
        self.name, self.items = _shown(config.interactions), _shown(config.items)
        self.rejects = self._rejects("interactions", self.name, files)
        self.item_rejects = self._rejects("items", self.items, item_files)

    def _rejects(self, name: str, table: str, files: list[File]) -> Rejects:
        share = self.config.rejected_share
        if share is None and len(files) > 1:
            share = DEFAULT_SHARE
        return Rejects(self.engine, name, table, [file.shown for file in files], share, self.items)

    def run(self, new: Path, on: OnDuckDB | OnRay) -> dict[str, Any]:
        """Run the steps; ``on`` holds the interactions."""
        config, running = self.config, self.engine
        bare, words = config.items is None, TextColumns()
        self._step(0)
        if not bare:
            words = catalogue.load(running, config.columns, self.item_files, self.item_rejects)
        self._step(1)
        loaded = on.load(self.files, self.rejects)
        if not loaded.rows.sum():
            raise DataError("holds no rows", file=self.name)
        self.rejects.check()
        if bare:
            on.items()
        items = running.one("SELECT count(*) FROM items")[0]
        self._step(2)
        dropped = on.order(loaded, self.rejects)
        self.rejects.check()
        self._step(3)
        dropped["below_minimum_count"] = on.drop_rare()
        counts = on.counts(items)
        if not counts.any():
            raise DataError(f"no interactions are left after filtering ({dropped})", file=self.name)
        self._step(4)
        split = histories.Split.of(on, config, counts)
        kept = np.flatnonzero(counts >= config.item_min_count)
        kept = np.random.default_rng(config.seed).permutation(kept)
        row_of = np.full(items, -1, dtype=np.int32)
        row_of[kept] = np.arange(len(kept), dtype=np.int32)
        self._step(5)
        catalogue.place(running, kept)
        with ThreadPoolExecutor(1) as beside:  # mostly Arrow and DuckDB, which release the interpreter lock
            writing = beside.submit(catalogue.write, running, words, new / "items.parquet", bare)
            written = histories.write(on, split, row_of, new / "histories")
            blank = writing.result()
        if not written.splits[0]:
            raise DataError("the split leaves no interaction to train on", file=self.name)
        if config.cold_share:
            dropped["held_out_item"] = written.held
        save([self.rejects, self.item_rejects], new / "rejected")
        summary = self._summary(written, len(kept), blank, dropped, loaded, words)
        write_summary(new, summary)
        return summary

    def _step(self, number: int) -> None:
        self.shown.update(number, len(_STEPS), _STEPS[number])

    def _summary(
        self, written: histories.Written, items: int, blank: int, dropped: dict[str, int],
        loaded: interactions.Loaded, words: TextColumns,
    ) -> dict[str, Any]:  # fmt: skip
        warm, total = int(written.trained.sum()), int(written.splits.sum())
        given = [*places(self.config.interactions), *places(self.config.items)]
        parts = {"interactions": self.rejects, "items": self.item_rejects}
        return {
            "format": FORMAT,
            "users": written.users,
            "items": items,
            "interactions": total,
            "splits": dict(zip(("train", "valid", "test"), written.splits.tolist(), strict=True)),
            "warm_items": warm,
            "cold_items": items - warm,
            "cold_item_share": round((items - warm) / items, 4),
            "items_without_text": blank,
            "text": list(words.text),
            "attributes": list(words.attributes),
            "rows": {"interactions": int(loaded.rows.sum()), "items": self.item_rejects.rows},
            "dropped": dropped,
            "rejected": {name: part.count for name, part in parts.items()},
            "rejected_reasons": {name: part.reasons() for name, part in parts.items()},
            # Share of interactions with the same time as the user's previous one; and of users whose last one is such.
            "tied_share": round(written.tied / total, 4),
            "tied_last_share": round(written.tied_last / written.users, 4),
            "settings": self.config.model_dump(mode="json"),
            "inputs": {storage.shown(where): fingerprint(where) for where in given},
        }


def fingerprint(where: Path | str) -> str:
    """Return the SHA-256 of a file's content; for anything else, of the names, sizes and times of its files."""
    if isinstance(where, Path) and where.is_file():
        return of_file(where)
    if isinstance(where, Path) and not where.exists():  # a pattern
        infos = [info for file in files_of([where], ReaderSettings()) for info in storage.files(file.shown)]
    else:
        infos = storage.files(where)
    facts = [(info.path, info.size, info.mtime_ns) for info in infos]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _shown(tables: Any) -> str:
    return ", ".join(storage.shown(place) for place in places(tables))
