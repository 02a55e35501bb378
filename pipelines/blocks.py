"""Arrow files with a record batch per part: a task writes all parts of its block, another reads one part of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from pipelines import storage
from pipelines.pieces import patiently

_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


@contextmanager
def parted(where: str, schema: pa.Schema, parts: int) -> Iterator[Callable[[pa.Table, np.ndarray], None]]:
    """A file to append to: ``append(table, part of each row)`` writes ``parts`` batches; rows keep their order."""
    with storage.atomic_stream(where) as stream, pa.ipc.new_file(stream, schema, options=_OPTIONS) as writer:

        def append(table: pa.Table, part: np.ndarray) -> None:
            table = table.take(pa.array(np.argsort(part, kind="stable"))).combine_chunks()
            start = 0
            for count in np.bincount(part, minlength=parts).tolist():
                batches = table.slice(start, count).to_batches()
                writer.write_batch(batches[0] if batches else _empty(schema))
                start += count

        yield append


def part_of(wheres: Sequence[str], part: int, parts: int) -> Iterator[tuple[int, int, pa.RecordBatch]]:
    """Batch ``part`` of every block of every file: the file's place in ``wheres``, the block's in it, the batch."""
    for at, where in enumerate(wheres):
        system, path = storage.filesystem(where)
        with patiently(lambda: system.open_input_file(path), where) as stream:  # noqa: B023
            reader = pa.ipc.open_file(stream)
            for block, batch in enumerate(range(part, reader.num_record_batches, parts)):
                yield at, block, patiently(lambda: reader.get_batch(batch), where)  # noqa: B023


def save_arrays(where: str, arrays: Mapping[str, np.ndarray | pa.Array]) -> None:
    """Write arrays of one length as one batch."""
    table = pa.table({name: pa.array(values) for name, values in arrays.items()}).combine_chunks()
    with storage.atomic_stream(where) as stream, pa.ipc.new_file(stream, table.schema, options=_OPTIONS) as writer:
        writer.write_table(table)


def load_arrays(where: str) -> dict[str, np.ndarray]:
    """What :func:`save_arrays` wrote; text as objects."""
    system, path = storage.filesystem(where)
    with patiently(lambda: system.open_input_file(path), where) as stream:
        table = patiently(lambda: pa.ipc.open_file(stream).read_all(), where)
    return {name: table[name].combine_chunks().to_numpy(zero_copy_only=False) for name in table.column_names}


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
