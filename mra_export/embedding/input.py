"""Input files of `embed`: checked whole before any work is done, then read again in chunks of bounded size.

A chunk is the unit of everything that follows: its texts are batched together, and its vectors are journalled together. Where
chunks begin depends on the file alone, so that an interrupted run, a resumed one and one on many machines do the same work.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.embedding.chunks import CHUNK_ROWS, Chunk, InputFile
from mra_export.embedding.lines import json_tables, json_types, scan_lines, text_of
from mra_export.embedding.parquet import parquet_file, scan_parquet, text_arrays
from mra_export.errors import InputError
from mra_export.optional import require_pyarrow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


__all__ = ["INPUT_KINDS", "ChunkReader", "scan"]

INPUT_KINDS = {".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
"""Suffix -> kind of file."""


def scan(
    path: Path,
    *,
    column: str = "text",
    id_columns: tuple[str, ...] = (),
    chunk_rows: int = CHUNK_ROWS,
    progress: Callable[[str], None] = lambda text: None,
) -> InputFile:
    """Reads a whole input once: its hash, its rows and chunks, and every error that is in it.

    A .txt file has a text a line, which ends with a line feed, or a carriage return and a line feed; a byte-order mark at the
    start is left out. A line of a .jsonl file is an object. An empty text is a text.

    Args:
        path: a .txt, .jsonl or .parquet file in UTF-8.
        column: where the texts are in jsonl and parquet.
        id_columns: columns that have to be there too (jsonl and parquet).
        chunk_rows: rows of a chunk at most.
        progress: called with what is being done.

    Raises:
        InputError: the file cannot be read, or a row is not a text; the message names the line or row.
        DependencyError: a parquet file, and pyarrow is not installed.
    """
    kind = INPUT_KINDS.get(path.suffix.lower())
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    if not path.is_file():
        raise InputError(f"{path} is not a regular file. It is read twice: save it as a file first.")
    if kind is None:
        raise InputError(f"{path} is of a kind that embed does not read. Give a {', '.join(INPUT_KINDS)} file.")
    if kind == "txt" and id_columns:
        raise InputError(f"{path} is a .txt file, which has no columns; leave out --id-column.")
    if chunk_rows < 1:
        raise InputError(f"chunk_rows={chunk_rows} must be at least 1.")
    progress(f"reading {path}")
    try:
        if kind == "parquet":
            return scan_parquet(path, column, id_columns, chunk_rows)
        return scan_lines(path, kind, column, id_columns, chunk_rows)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


class ChunkReader:
    """Reads chunks of a scanned file again; fast in ascending order, right in any.

    Args:
        source: what `scan` returned.
    """

    def __init__(self, source: InputFile) -> None:
        self.source = source
        self._file: Any = None
        self._pending: list[Any] = []  # parquet: arrays read ahead
        self._row = 0  # parquet: of the first of them
        self._batches: Iterator[Any] = iter(())

    def texts(self, chunk: Chunk) -> list[str]:
        """The texts of a chunk.

        Raises:
            InputError: the file is no longer what was scanned.
        """
        source = self.source
        try:
            if source.kind == "parquet":
                texts: list[str] = self._parquet_rows(chunk)
                data = b"\0".join(text.encode() for text in texts)
            else:
                if self._file is None:
                    self._file = source.path.open("rb")
                self._file.seek(chunk.offset)
                data = self._file.read(chunk.size)
        except FileNotFoundError as error:
            raise InputError(
                f"{source.path} does not exist (any more). All machines that take part need it at this path."
            ) from error
        except OSError as error:
            raise InputError(f"{source.path} cannot be read: {error.strerror or error}.") from error
        if zlib.crc32(data) != chunk.crc32:
            raise InputError(
                f"{source.path} changed while it was being read (rows {chunk.first_row} to "
                f"{chunk.first_row + chunk.rows - 1} are other ones). Let it alone, and run the command again."
            )
        if source.kind == "parquet":
            return texts
        lines = data.split(b"\n")
        if data.endswith(b"\n"):
            lines.pop()
        return [
            text_of(source.path, source.kind, source.column, (), chunk.first_row + i, x) for i, x in enumerate(lines)
        ]

    def ids(self, columns: tuple[str, ...], rows: int) -> tuple[Any, Iterator[Any]]:
        """The schema of id columns, and their values as tables of at most `rows` rows, in order.

        Raises:
            InputError: ids in a .jsonl file that are not all strings or all integers of 64 bits.
        """
        pa = require_pyarrow()
        path = self.source.path
        if self.source.kind == "parquet":
            file = parquet_file(pa, path)
            schema = pa.schema([file.schema_arrow.field(name) for name in columns])
            batches = file.iter_batches(rows, columns=list(columns), use_threads=False)
            return schema, (pa.Table.from_batches([batch]).select(list(columns)) for batch in batches)
        schema = pa.schema(list(json_types(path, columns).items()))
        return schema, json_tables(path, columns, rows, schema)

    def _parquet_rows(self, chunk: Chunk) -> list[str]:
        pa = require_pyarrow()
        assert self.source.column is not None
        if self._file is None or chunk.first_row < self._row:
            self._file = parquet_file(pa, self.source.path)
            metadata = self._file.metadata
            group, self._row = 0, 0
            while group < metadata.num_row_groups and self._row + metadata.row_group(group).num_rows <= chunk.first_row:
                self._row += metadata.row_group(group).num_rows
                group += 1
            self._pending = []
            self._batches = text_arrays(
                self._file, self.source.path, self.source.column, list(range(group, metadata.num_row_groups))
            )
        texts: list[str] = []
        while len(texts) < chunk.rows:
            if not self._pending:
                array = next(self._batches, None)
                if array is None:
                    break
                self._pending = [array]
            array = self._pending.pop()
            skip = chunk.first_row + len(texts) - self._row
            if skip >= len(array):
                self._row += len(array)
                continue
            taken = array[skip : skip + chunk.rows - len(texts)]
            texts += taken.to_pylist()
            rest = array[skip + len(taken) :]
            self._row += skip + len(taken)
            if len(rest):
                self._pending = [rest]
        return texts
