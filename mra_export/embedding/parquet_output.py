"""The parquet output of `embed`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.embedding.input import changed, id_tables
from mra_export.embedding.records import runs_of
from mra_export.errors import InputError
from mra_export.optional import require_pyarrow
from mra_export.outputs import file_sha256

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mra_export.embedding.chunks import Source
    from mra_export.embedding.journal import Partial
    from mra_export.embedding.layout import Layout

__all__ = ["RESERVED", "ROW_GROUP", "write_parquet"]

ROW_GROUP = 8192
"""Rows of a row group, which are in memory at a time."""

RESERVED = ("row", "embedding")
"""Columns that every output has."""


def write_parquet(
    partial: Partial, path: Path, data: Source, layout: Layout, ids: tuple[str, ...], stated: dict[str, str]
) -> Path:
    """Writes a parquet file from finished vectors and the input's id columns, a row group at a time.

    Args:
        partial: all of whose rows are done.
        path: to write.
        data: the input.
        layout: of a row.
        ids: columns of the input.
        stated: for the metadata.

    Returns:
        `path`.

    Raises:
        InputError: the input is no longer what was scanned.
    """
    pa = require_pyarrow()
    fields = [pa.field("row", pa.int64(), nullable=False)]
    if data.named:
        fields.append(pa.field("file", pa.string(), nullable=False))
    tables: Iterator[Any] = iter(())
    if ids:
        schema, tables = id_tables(data, ids, ROW_GROUP)
        fields += list(schema)
    if (kept := layout.facts) is not None:
        own = [name for name in kept.names or () if name != "row"]
        fields += [pa.field(name, pa.from_numpy_dtype(kept[name]), nullable=False) for name in own]
    number = pa.from_numpy_dtype(layout.dtype)
    vector = pa.list_(pa.field("element", number, nullable=False), layout.hidden_size)
    fields.append(pa.field("embedding", vector, nullable=False))
    schema = pa.schema(fields, {f"mra_export.{name}": value for name, value in stated.items()})
    others = _Aligned(tables)
    firsts = np.array([file.first_row for file in data.files], np.int64)
    names = pa.array([file.name for file in data.files], pa.string())
    with pa.parquet.ParquetWriter(path, schema, compression="zstd", use_dictionary=["file", *ids]) as writer:
        row = 0
        for vectors, facts in partial.blocks(ROW_GROUP):
            rows = np.arange(row, row + len(vectors)) if facts is None else np.ascontiguousarray(facts["row"])
            columns = {"row": pa.array(rows, pa.int64())}
            if data.named:
                columns["file"] = names.take(pa.array(np.searchsorted(firsts, rows, side="right") - 1))
            if ids:
                taken = others.take(pa, rows)
                columns |= {name: taken[name] for name in ids}
            if facts is not None:
                columns |= {name: pa.array(np.ascontiguousarray(facts[name])) for name in facts.dtype.names or ()}
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=vector)
            writer.write_table(pa.table([columns[f.name] for f in schema], schema=schema), row_group_size=ROW_GROUP)
            row += len(vectors)
    for file in data.files if ids else ():
        if file_sha256(file.path) != file.sha256:
            raise InputError(changed(file.name))
    return path


class _Aligned:
    """Rows of tables that come one after the other, by their numbers, which never go back."""

    def __init__(self, tables: Iterator[Any]) -> None:
        self._tables = tables
        self._table: Any = None
        self._first = 0

    def take(self, pa: Any, rows: np.ndarray[Any, Any]) -> Any:
        parts = []
        while len(rows):
            while self._table is None or rows[0] >= self._first + len(self._table):
                self._first += 0 if self._table is None else len(self._table)
                self._table = next(self._tables, None)
                if self._table is None:
                    raise InputError(changed("The input"))
            count = int(np.searchsorted(rows, self._first + len(self._table)))
            parts += _picked(pa, self._table, rows[:count] - self._first)
            rows = rows[count:]
        return pa.concat_tables(parts)


def _picked(pa: Any, table: Any, rows: np.ndarray[Any, Any]) -> list[Any]:
    """Rows of a table, as tables."""
    runs = list(runs_of(rows))
    if len(runs) > 1:
        try:
            return [table.take(pa.array(rows))]
        except pa.ArrowNotImplementedError:  # as of views; any type can be sliced
            pass
    return [table.slice(int(rows[first]), last - first) for first, last in runs]
