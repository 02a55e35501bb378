"""Interactions in DuckDB, in this process: a table ``raw``, then a table ``ordered`` from which rows are removed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipelines.data.directory import SHARD_ROWS
from pipelines.data.engine import DuckDbEngine
from pipelines.data.files import File
from pipelines.data.settings import DataSettings
from pipelines.ingest import interactions
from pipelines.ingest.histories import HistoryBlock
from pipelines.ingest.interactions import Loaded
from pipelines.ingest.rejects import Rejects, faulty
from setrec.data.interactions import chronological, distinct


class OnDuckDB:
    """The steps of an ingest; each method is called once, in this order; see
    :class:`pipelines.ingest.histories.Interactions`."""

    def __init__(self, config: DataSettings, engine: DuckDbEngine) -> None:
        self.config, self.engine = config, engine
        self._facts = interactions.fact_names(config)
        self._shuffled = ["row"] if config.ties == "shuffle" else []

    def load(self, files: list[File], rejects: Rejects) -> Loaded:
        """Read all files into ``raw``.

        Raises:
            DataError: a file cannot be read, or a column is missing or of a wrong type.
        """
        interactions.create(self.engine, self.config)
        interactions.read(self.engine, self.config, files, alone=len(files) == 1)
        counts = self.engine.table(interactions.COUNTS).to_pandas()
        found = interactions.time_facts(self.config, counts, len(files))
        interactions.settle(self.engine, found)
        rejects.collect(faulty("raw"), int(found.rows.sum()))
        return found

    def items(self) -> None:
        """Make the table ``items`` of the items in interactions, in the order of their first occurrence."""
        self.engine.run(
            "CREATE TABLE items AS SELECT item AS id, min(rowid) AS row FROM raw WHERE fault IS NULL "
            "GROUP BY item ORDER BY row"
        )

    def order(self, found: Loaded, rejects: Rejects) -> dict[str, int]:
        """Make the tables ``users`` (``id``, in the order of their first occurrence; the code of a user is its
        ``rowid``) and ``ordered``: the rows of ``raw`` that count, by user and time, without repeats. Return how many
        interactions were dropped by reason; those of unknown items go to ``rejects`` if they are refused."""
        config, engine = self.config, self.engine
        passed = interactions.row_condition(config, found)
        dropped: dict[str, int] = engine.table(interactions.cuts(config, found)).to_pylist()[0]
        engine.run(
            f"CREATE TABLE users AS SELECT user AS id, min(rowid) AS met FROM raw WHERE {passed} "
            "GROUP BY user ORDER BY met"
        )
        row = "".join(f", raw.rowid AS {name}" for name in self._shuffled)
        engine.run(
            "CREATE TABLE ordered AS SELECT users.rowid::INTEGER AS user, items.rowid::INTEGER AS item, "
            f"{interactions.facts(config, found)}{row} "
            f"FROM raw JOIN users ON raw.user = users.id JOIN items ON raw.item = items.id WHERE {passed} "
            "ORDER BY 1, 3, raw.rowid"
        )
        dropped["unknown_item"] = dropped.pop("kept") - engine.one("SELECT count(*) FROM ordered")[0]
        if dropped["unknown_item"] and config.unknown_items == "refuse":
            dropped["unknown_item"] = 0
            fault = interactions.unknown_item(config, rejects.items)
            unheld = f"{passed} AND NOT EXISTS (SELECT 1 FROM items WHERE items.id = raw.item)"
            rejects.collect(faulty("raw", fault, unheld), int(found.rows.sum()))
        engine.run("DROP TABLE raw")
        dropped["repeated"] = self._drop_repeats()
        return dropped

    def _drop_repeats(self) -> int:
        config = self.config
        if config.deduplicate == "all":
            return 0
        schema = pa.schema([("place", pa.int64())])
        self.engine.run("CREATE TABLE repeated (place BIGINT)")
        judged = [name for name in self._facts if name in ("strength", "weight")]

        def repeats() -> Iterator[pa.RecordBatch]:
            for block in self._arrays("user", "item", *judged, "rowid"):
                kept = distinct(
                    block["user"], block["item"], config.deduplicate, block.get("strength"), block.get("weight")
                )
                yield pa.record_batch([pa.array(block["rowid"][~kept])], schema=schema)

        self.engine.insert("repeated", repeats(), schema)
        return self._delete("rowid IN (SELECT place FROM repeated)")

    def drop_rare(self) -> int:
        """Keep the largest part in which users and items have their minimum counts; return how many were removed.

        Removing one may bring another below its minimum, so the rule is applied until nothing changes.
        """
        dropped, round_ = 0, 1
        while round_:
            round_ = 0
            for column, least in (("item", self.config.item_min_count), ("user", self.config.user_min_count)):
                if least > 1:  # every user and item occurs at least once
                    few = f"SELECT {column} FROM ordered GROUP BY {column} HAVING count(*) < {least}"
                    round_ += self._delete(f"{column} IN ({few})")
            dropped += round_
        return dropped

    def _delete(self, where: str) -> int:
        return int(self.engine.one(f"DELETE FROM ordered WHERE {where}")[0])

    def counts(self, items: int) -> np.ndarray:
        """Return the number of interactions of each item code, int64 (I,)."""
        counts = np.zeros(items, dtype=np.int64)
        for batch in self.engine.batches("SELECT item, count(*) FROM ordered GROUP BY item", SHARD_ROWS):
            counts[batch.column(0).to_numpy()] = batch.column(1).to_numpy()
        return counts

    def times_at(self, ranks: list[int]) -> list[float]:
        """Return the times at the given ranks of all sorted times."""
        return [self.engine.one(f"SELECT time FROM ordered ORDER BY time LIMIT 1 OFFSET {rank}")[0] for rank in ranks]

    def blocks(self) -> Iterator[HistoryBlock]:
        """Yield the remaining interactions in blocks of about ``SHARD_ROWS``."""
        stored = [name for name in self._facts if name != "strength"]
        for block in self._arrays("user", "item", *stored):
            yield HistoryBlock(
                block["user"], block["item"], block["time"], self._names, block.get("split"), block.get("weight")
            )

    def _arrays(self, *columns: str) -> Iterator[dict[str, np.ndarray]]:
        """Yield columns of ``ordered`` by name, ``user`` first, with whole users in each batch."""
        held: list[pa.RecordBatch] = []
        if self._shuffled:
            columns = tuple(dict.fromkeys([*columns, "time", *self._shuffled]))
        for batch in self.engine.batches(f"SELECT {', '.join(columns)} FROM ordered", SHARD_ROWS):
            users = batch.column(0).to_numpy()
            # The last user may continue in the next batch.
            cut = int(np.searchsorted(users, users[-1])) if len(users) else 0
            if cut:
                yield self._sorted([*held, batch.slice(0, cut)])
                held = []
            elif held and len(users) and users[-1] != held[-1].column(0)[-1].as_py():
                yield self._sorted(held)
                held = []
            held.append(batch.slice(cut))
        if held:
            yield self._sorted(held)

    def _sorted(self, batches: list[pa.RecordBatch]) -> dict[str, np.ndarray]:
        table = pa.Table.from_batches(batches)
        block = {name: table[name].to_numpy() for name in table.column_names}
        if not self._shuffled:  # the engine has put them in this order
            return block
        order = chronological(block["user"], block["time"], self.config.ties, self.config.seed, block["row"] + 1)
        return {name: values[order] for name, values in block.items()}

    def _names(self, codes: np.ndarray) -> list[str]:
        query = f"SELECT id FROM users WHERE rowid BETWEEN {codes[0]} AND {codes[-1]} ORDER BY rowid"
        ids = pa.chunked_array([batch.column(0) for batch in self.engine.batches(query, SHARD_ROWS)])
        names: list[str] = ids.take(pa.array(codes - codes[0])).to_pylist()
        return names
