"""Input files of `embed`: checked whole before any work is done, then read again in chunks of bounded size.

A chunk is the unit of everything that follows: its texts are batched together, and its vectors are journalled together. Where
chunks begin depends on the file alone, so that an interrupted run, a resumed one and one on many machines do the same work.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.errors import InputError
from mra_export.optional import require_pyarrow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "CHUNK_BYTES",
    "CHUNK_ROWS",
    "INPUT_KINDS",
    "MAX_LINE_BYTES",
    "MAX_TEXT_BYTES",
    "Chunk",
    "ChunkReader",
    "InputFile",
    "scan",
]

CHUNK_ROWS = 1024
"""Rows of a chunk at most."""
CHUNK_BYTES = 4 << 20
"""UTF-8 bytes of a chunk's texts at most, unless a single text has more."""
MAX_TEXT_BYTES = 4 << 20
"""Of one text. Nothing beyond the model's maximum length counts, and tokenizing takes a hundred times its size in memory."""
MAX_LINE_BYTES = 64 << 20
"""Of one line of a .jsonl file: it may hold other fields."""
INPUT_KINDS = {".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
"""Suffix -> kind of file."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of the input.

    Attributes:
        index: of the chunk.
        first_row: counted from 0.
        rows: how many.
        offset: where they begin, in the bytes that `size` counts.
        size: bytes of the lines in the file; of the texts for parquet.
        crc32: of the same bytes.
    """

    index: int
    first_row: int
    rows: int
    offset: int
    size: int
    crc32: int


@dataclass(frozen=True)
class InputFile:
    """An input file that was read and checked from its first to its last byte.

    Attributes:
        path: absolute.
        kind: "txt", "jsonl" or "parquet".
        column: of the texts, for jsonl and parquet; None for txt.
        bytes: size of the file.
        sha256: of the file.
        rows: number of texts.
        chunks: all of them, in order.
    """

    path: Path
    kind: str
    column: str | None
    bytes: int
    sha256: str
    rows: int
    chunks: tuple[Chunk, ...]


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
            return _scan_parquet(path, column, id_columns, chunk_rows)
        return _scan_lines(path, kind, column, id_columns, chunk_rows)
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
        return [_text(source.path, source.kind, source.column, (), chunk.first_row + i, x) for i, x in enumerate(lines)]

    def ids(self, columns: tuple[str, ...], rows: int) -> tuple[Any, Iterator[Any]]:
        """The schema of id columns, and their values as tables of at most `rows` rows, in order.

        Raises:
            InputError: ids in a .jsonl file that are not all strings or all integers of 64 bits.
        """
        pa = require_pyarrow()
        path = self.source.path
        if self.source.kind == "parquet":
            file = _parquet_file(pa, path)
            schema = pa.schema([file.schema_arrow.field(name) for name in columns])
            batches = file.iter_batches(rows, columns=list(columns), use_threads=False)
            return schema, (pa.Table.from_batches([batch]).select(list(columns)) for batch in batches)
        schema = pa.schema(list(_json_types(path, columns).items()))
        return schema, _json_tables(path, columns, rows, schema)

    def _parquet_rows(self, chunk: Chunk) -> list[str]:
        pa = require_pyarrow()
        assert self.source.column is not None
        if self._file is None or chunk.first_row < self._row:
            self._file = _parquet_file(pa, self.source.path)
            metadata = self._file.metadata
            group, self._row = 0, 0
            while group < metadata.num_row_groups and self._row + metadata.row_group(group).num_rows <= chunk.first_row:
                self._row += metadata.row_group(group).num_rows
                group += 1
            self._pending = []
            self._batches = _text_arrays(
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


class _Chunks:
    """Divides rows into chunks, as they come."""

    def __init__(self, chunk_rows: int) -> None:
        self.made: list[Chunk] = []
        self.row = 0
        self._limit = chunk_rows
        self._first = self._offset = self._size = self._crc = self._end = 0
        self._separator = b""

    def add(self, data: bytes, *, separator: bytes = b"") -> None:
        """A row: its bytes, and what stands between it and the row before in the same chunk."""
        rows = self.row - self._first
        if rows and (rows == self._limit or self._size + len(data) > CHUNK_BYTES):
            self.close()
            rows = 0
        if rows and separator:
            self._crc = zlib.crc32(separator, self._crc)
        self._crc = zlib.crc32(data, self._crc)
        self._size += len(data)
        self._end += len(data)
        self.row += 1

    def close(self) -> None:
        """Ends the current chunk."""
        if self.row > self._first:
            rows = self.row - self._first
            self.made.append(Chunk(len(self.made), self._first, rows, self._offset, self._size, self._crc))
        self._first, self._offset, self._size, self._crc = self.row, self._end, 0, 0


def _scan_lines(path: Path, kind: str, column: str, id_columns: tuple[str, ...], chunk_rows: int) -> InputFile:
    digest = hashlib.sha256()
    chunks = _Chunks(chunk_rows)
    with path.open("rb") as file:
        for row, line in _lines(file, path):
            digest.update(line)
            _text(path, kind, column, id_columns, row, line.removesuffix(b"\n"))
            chunks.add(line)
        size = file.tell()
    chunks.close()
    own = None if kind == "txt" else column
    return InputFile(path.absolute(), kind, own, size, digest.hexdigest(), chunks.row, tuple(chunks.made))


def _lines(file: Any, path: Path) -> Iterator[tuple[int, bytes]]:
    row = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise InputError(
                f"{_line(path, row)} is longer than {MAX_LINE_BYTES >> 20} MiB. A row is a line; is this the right file?"
            )
        yield row, line
        row += 1


def _line(path: Path, row: int) -> str:
    return f"{path}, line {row + 1} (row {row})"


def _text(path: Path, kind: str, column: str | None, others: tuple[str, ...], row: int, line: bytes) -> str:
    """The text of a line without its line feed."""
    line = line.removesuffix(b"\r")
    if row == 0:
        line = line.removeprefix(b"\xef\xbb\xbf")
    if kind == "txt":
        if len(line) > MAX_TEXT_BYTES:
            raise InputError(_too_long(_line(path, row), len(line)))
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(_not_utf8(_line(path, row), error)) from error
    fields = _object(path, row, line)
    for name in (column, *others):
        if name not in fields:
            have = ", ".join(fields) or "none"
            raise InputError(
                f"{_line(path, row)} has no field {name!r}; it has: {have}. Name the field of the texts with --column."
            )
    text = fields[column] if column is not None else None
    if not isinstance(text, str):
        raise InputError(
            f"{_line(path, row)}: {column!r} is {_json_kind(text)}, not a string. Mend or remove the row, or choose another "
            "field with --column."
        )
    if text.isascii():
        size = len(text)
    else:
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise InputError(
                f"{_line(path, row)}: {column!r} holds half of a surrogate pair (\\u{ord(text[error.start]):04x}), which is no "
                "character. Mend or remove the row."
            ) from error
    if size > MAX_TEXT_BYTES:
        raise InputError(_too_long(_line(path, row), size))
    return text


def _object(path: Path, row: int, line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8-sig" if row == 0 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(_not_utf8(_line(path, row), error)) from error
    if not text.strip():
        raise InputError(f"{_line(path, row)} is empty; each line of a .jsonl file is an object. Remove the line.")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{_line(path, row)} is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise InputError(f'{_line(path, row)} is {_json_kind(fields)}, not an object such as {{"text": "…"}}.')
    return fields


def _json_kind(value: object) -> str:
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        list: "an array",
        dict: "an object",
    }
    return names.get(type(value), "a string")


def _json_types(path: Path, columns: tuple[str, ...]) -> dict[str, Any]:
    """Types for id columns of a .jsonl file: int64 where all are integers that fit, string where all are strings."""
    pa = require_pyarrow()
    seen: dict[str, set[str]] = {name: set() for name in columns}
    with path.open("rb") as file:
        for row, line in _lines(file, path):
            fields = _object(path, row, line)
            for name in columns:
                value = fields[name]
                if value is None:
                    continue
                if type(value) is int and -(2**63) <= value < 2**63:
                    seen[name].add("int64")
                elif isinstance(value, str):
                    seen[name].add("string")
                else:
                    raise InputError(
                        f"{_line(path, row)}: {name!r} is {_json_kind(value)}; an id is a string or an integer of 64 bits."
                    )
                if len(seen[name]) > 1:
                    raise InputError(
                        f"{_line(path, row)}: {name!r} is {_json_kind(value)}, but of another type in a line before. Write all "
                        "of them as strings, or all as integers."
                    )
    return {name: pa.int64() if kinds == {"int64"} else pa.string() for name, kinds in seen.items()}


def _json_tables(path: Path, columns: tuple[str, ...], rows: int, schema: Any) -> Iterator[Any]:
    pa = require_pyarrow()
    held: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for row, line in _lines(file, path):
            fields = _object(path, row, line)
            held.append({name: fields[name] for name in columns})
            if len(held) == rows:
                yield pa.Table.from_pylist(held, schema=schema)
                held = []
    if held:
        yield pa.Table.from_pylist(held, schema=schema)


def _too_long(where: str, size: int) -> str:
    return (
        f"{where} has a text of {size / 2**20:.0f} MiB; the longest that embed takes has {MAX_TEXT_BYTES >> 20} MiB. Only its "
        "beginning counts: cut it."
    )


def _not_utf8(where: str, error: UnicodeDecodeError) -> str:
    return (
        f"{where} is not UTF-8: byte 0x{error.object[error.start]:02x} at byte {error.start}. Convert the file, for example "
        "with `iconv -f WINDOWS-1252 -t UTF-8`."
    )


def _parquet_file(pa: Any, path: Path) -> Any:
    try:
        # Buffered: a row group is then read bit by bit, not whole.
        return pa.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a readable parquet file: {str(error).splitlines()[0]}") from error


def _text_arrays(file: Any, path: Path, column: str, groups: list[int] | None = None) -> Iterator[Any]:
    """Large-string arrays of a column, in order."""
    pa = require_pyarrow()
    try:
        for batch in file.iter_batches(CHUNK_ROWS, row_groups=groups, columns=[column], use_threads=False):
            yield batch.column(0).cast(pa.large_string())
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def _scan_parquet(path: Path, column: str, id_columns: tuple[str, ...], chunk_rows: int) -> InputFile:
    pa = require_pyarrow()
    file = _parquet_file(pa, path)
    schema = file.schema_arrow
    for name in (column, *id_columns):
        if len(schema.get_all_field_indices(name)) != 1:
            raise InputError(
                f"{path} has no column {name!r}; it has: {', '.join(schema.names) or 'none'}. Name the column of the texts "
                "with --column."
            )
    kind = schema.field(column).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)):
        raise InputError(f"{path}: column {column!r} is of type {kind}, not string. Choose another with --column.")
    chunks = _Chunks(chunk_rows)
    for array in _text_arrays(file, path, column):
        for data in array.cast(pa.large_binary()).to_pylist():
            where = f"{path}, row {chunks.row}"
            if data is None:
                raise InputError(f"{where}: {column!r} is null. Mend or remove the row (row numbers count from 0).")
            if len(data) > MAX_TEXT_BYTES:
                raise InputError(_too_long(where, len(data)))
            try:
                data.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(_not_utf8(where, error)) from error
            chunks.add(data, separator=b"\0")
    chunks.close()
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as raw:
        while block := raw.read(1 << 20):
            digest.update(block)
            size += len(block)
    return InputFile(path.absolute(), "parquet", column, size, digest.hexdigest(), chunks.row, tuple(chunks.made))
