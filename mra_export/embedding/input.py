"""Input of `embed`: checked whole before any work is done, then read again in chunks of bounded size.

A chunk is the unit of everything that follows: its texts are batched together, and its vectors are journalled together. Where
chunks begin depends on the files alone, so that an interrupted run, a resumed one and one on many machines do the same work.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mra_export.embedding import delimited, json_values, lines, parquet
from mra_export.embedding.chunks import CHUNK_ROWS, Chunk, Chunks, InputFile, Source, checksum
from mra_export.embedding.compressed import head_of, unpacked
from mra_export.embedding.encodings import HEAD_BYTES, encoding_of, other_encoding
from mra_export.embedding.fields import json_kind
from mra_export.embedding.files import find_files
from mra_export.errors import InputError
from mra_export.optional import require_pyarrow
from mra_export.outputs import file_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

__all__ = ["NULLS", "ChunkReader", "changed", "id_tables", "read_texts", "scan"]

NULLS = ("error", "skip", "empty")
"""What may be done with a row whose text is null."""


@dataclass(frozen=True)
class _Format:
    """How files of a kind are read.

    Attributes:
        rows: (file, column, start, offset) -> number, offset and content of each row, from row `start` or before it.
        text: (file, column, others, number, content, lenient) -> the text, None for null.
        data: (content, text) -> the bytes that count and are checksummed.
        values: (file, columns, number, content) -> where it is, and values of those columns that it has; None for parquet.
        seeks: whether `rows` can begin at an offset.
    """

    rows: Callable[[InputFile, str, int, int], Iterator[tuple[int, int, Any]]]
    text: Callable[[InputFile, str, tuple[str, ...], int, Any, bool], str | None]
    data: Callable[[Any, str], bytes]
    values: Callable[[InputFile, tuple[str, ...], int, Any], tuple[str, dict[str, Any]]] | None
    seeks: bool


def _without_column(
    rows: Callable[[InputFile, int, int], Iterator[tuple[int, int, Any]]],
) -> Callable[[InputFile, str, int, int], Iterator[tuple[int, int, Any]]]:
    return lambda file, column, start, offset: rows(file, start, offset)


_LINES = _without_column(lines.lines)
_RECORDS = _Format(
    _without_column(delimited.records), delimited.record_text, delimited.record_data, delimited.record_values, True
)
_FORMATS = {
    "txt": _Format(_LINES, lines.line_text, lines.line_data, None, True),
    "jsonl": _Format(_LINES, lines.json_text, lines.line_data, lines.json_values, True),
    "json": _Format(
        _without_column(json_values.elements),
        json_values.element_text,
        json_values.element_data,
        json_values.element_values,
        False,
    ),
    "csv": _RECORDS,
    "tsv": _RECORDS,
    "parquet": _Format(parquet.values, parquet.value_text, parquet.value_data, None, False),
}


def scan(
    sources: Path | str | Sequence[Path | str],
    *,
    column: str = "text",
    id_columns: tuple[str, ...] = (),
    null: str = "error",
    input_format: str | None = None,
    delimiter: str | None = None,
    chunk_rows: int = CHUNK_ROWS,
    spooled: Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Source:
    """Reads a whole input once: its hash, its rows and chunks, and every error that is in it.

    A .txt file has a text a line, which ends with a line feed, or a carriage return and a line feed; a byte-order mark at the
    start is left out. A line of a .jsonl file is an object. An empty text is a text.

    Args:
        sources: see `find_files`.
        column: where the texts are, in all but .txt; `doc.text` is that column, or `text` within `doc`.
        id_columns: columns that have to be there too.
        null: what is done with a row whose text is null, one of `NULLS`; unless it is "error", a field that a JSON object lacks
            is null too.
        input_format: as for `find_files`.
        delimiter: as for `find_files`.
        chunk_rows: texts of a chunk at most.
        spooled: the file that holds standard input.
        progress: called with what is being done.

    Raises:
        InputError: a file cannot be read, or a row is not a text; the message names the line or row.
        DependencyError: a parquet or .zst file, and pyarrow is not installed.
    """
    if chunk_rows < 1:
        raise InputError(f"chunk_rows={chunk_rows} must be at least 1.")
    if null not in NULLS:
        raise InputError(f"null={null!r} must be one of {', '.join(NULLS)}.")
    given = [sources] if isinstance(sources, str) or not hasattr(sources, "__iter__") else list(sources)
    found, named = find_files(given, input_format=input_format, delimiter=delimiter, spooled=spooled)
    chunks = Chunks(chunk_rows)
    files: list[InputFile] = []
    row = 0
    progress(f"reading {found[0].name}" if len(found) == 1 else f"reading {len(found)} files")
    for index, file in enumerate(found):
        try:
            count = _scan_file(index, file, column, id_columns, null, chunks)
            read = dataclasses.replace(
                file, bytes=file.path.stat().st_size, sha256=file_sha256(file.path), rows=count, first_row=row
            )
        except OSError as error:
            raise InputError(f"{file.name} cannot be read: {error.strerror or error}.") from error
        files.append(read)
        row += count
    chunks.close()
    own = None if all(file.kind == "txt" for file in files) else column
    nulls = chunks.nulls
    if row and nulls == row and not chunks.seen:
        raise InputError(f"None of the {row} rows has a field {column!r}. Name the column of the texts with --column.")
    return Source(tuple(files), own, null, named, chunks.row, row, nulls, tuple(chunks.made))


def _scan_file(index: int, file: InputFile, column: str, id_columns: tuple[str, ...], null: str, chunks: Chunks) -> int:
    """The number of rows of a file, which are added to the chunks."""
    others = tuple(name for name in id_columns if name not in dict(file.partition))
    if file.kind == "txt" and others:
        raise InputError(f"{file.name} is a .txt file, which has no columns; leave out --id-column.")
    if file.kind == "parquet":
        parquet.check_columns(file, column, others)
    else:
        head = head_of(file, HEAD_BYTES)
        if (encoding := encoding_of(head)) is not None:
            raise InputError(other_encoding(file.name, encoding))
        if file.kind in delimited.DELIMITERS:
            delimited.check_header(file, (column, *others))
    how = _FORMATS[file.kind]
    count = 0
    for number, offset, content in unpacked(how.rows(file, column, 0, 0), file):
        count = number + 1
        text = how.text(file, column, others, number, content, null != "error")
        if text is None:
            if null == "error":
                where = how.values(file, (), number, content)[0] if how.values else f"{file.name}, row {number}"
                raise InputError(
                    f"{where}: {column!r} is null, not a string. Mend or remove the row (row numbers count from 0), or leave such "
                    "rows out with --null skip, or take them as empty with --null empty."
                )
            chunks.nulls += 1
            if not chunks.seen:  # a name that no object has is a slip
                is_object = file.kind in ("json", "jsonl")
                chunks.seen = not is_object or bool(how.values and how.values(file, (column,), number, content)[1])
            if null == "skip":
                continue
        chunks.add(how.data(content, text or ""), index, number, offset)
    return count


def changed(name: str) -> str:
    """The message for a file that is no longer what was scanned."""
    return f"{name} changed while it was being read. Let it alone, and run the command again."


class ChunkReader:
    """Reads chunks of a scanned input again; fast in ascending order, right in any.

    Where a file is compressed or an array, what stands before a chunk is read again to find it, and passed over.

    Args:
        source: what `scan` returned.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._rows: Iterator[tuple[int, int, Any]] | None = None
        self._file = self._next = 0  # where `_rows` stands

    def texts(self, chunk: Chunk) -> list[str]:
        """The texts of a chunk.

        Raises:
            InputError: the file is no longer what was scanned.
        """
        return self.read(chunk)[1]

    def read(self, chunk: Chunk) -> tuple[list[int], list[str]]:
        """The numbers of a chunk's rows, counted over the whole input, and their texts.

        Raises:
            InputError: the file is no longer what was scanned.
        """
        file = self.source.files[chunk.file]
        crc = 0
        numbers: list[int] = []
        texts: list[str] = []
        problem: Exception | None = None
        try:
            self._go_to(chunk)
            for data, number, text in self._from(chunk.start):
                crc = checksum(data, crc)
                numbers.append(number)
                texts.append(text)
                if len(texts) == chunk.rows:
                    break
        except FileNotFoundError as error:
            raise InputError(
                f"{file.path} does not exist (any more). All machines that take part need it at this path."
            ) from error
        except OSError as error:
            raise InputError(f"{file.path} cannot be read: {error.strerror or error}.") from error
        except InputError as error:  # there was none before
            problem = error
        if problem is not None or crc != chunk.crc32 or len(texts) != chunk.rows:
            self._rows = None
            raise InputError(
                f"{file.name} changed while it was being read (rows {chunk.first_row} to "
                f"{chunk.first_row + chunk.rows - 1} are other ones). Let it alone, and run the command again."
            ) from problem
        return numbers, texts

    def _go_to(self, chunk: Chunk) -> None:
        file = self.source.files[chunk.file]
        stands = self._rows is not None and self._file == chunk.file
        seeks = _FORMATS[file.kind].seeks and not file.compression
        # What stands before it is passed over, where the file cannot be read from there; a parquet file can from a row group on.
        if stands and (self._next == chunk.start or (self._next < chunk.start and not seeks)):
            return
        self._open(chunk.file, chunk.start if seeks or file.kind == "parquet" else 0, chunk.offset if seeks else 0)

    def _open(self, index: int, start: int, offset: int) -> None:
        file = self.source.files[index]
        rows = _FORMATS[file.kind].rows(file, self.source.column or "", start, offset)
        self._rows, self._file, self._next = iter(unpacked(rows, file)), index, start

    def _from(self, start: int) -> Iterator[tuple[bytes, int, str]]:
        while True:
            assert self._rows is not None
            file = self.source.files[self._file]
            how = _FORMATS[file.kind]
            for number, _, content in self._rows:
                self._next = number + 1
                if number < start:
                    continue
                text = how.text(file, self.source.column or "", (), number, content, self.source.null != "error")
                if text is None and self.source.null == "skip":
                    continue
                yield how.data(content, text or ""), file.first_row + number, text or ""
            if self._file + 1 == len(self.source.files):
                return
            start = 0
            self._open(self._file + 1, 0, 0)


def read_texts(path: Path) -> Iterator[str]:
    """The texts of an input in one go, for those who need no chunks.

    Raises:
        InputError: as by `scan`.
    """
    source = scan(path)
    reader = ChunkReader(source)
    for chunk in source.chunks:
        yield from reader.texts(chunk)


def id_tables(source: Source, columns: tuple[str, ...], rows: int) -> tuple[Any, Iterator[Any]]:
    """The schema of id columns, and their values as tables of at most `rows` rows: all rows of the input, in order.

    A .csv file has strings; JSON has strings or integers of 64 bits, the same in all rows.

    Raises:
        InputError: values of JSON that are neither, or files whose columns do not fit each other.
    """
    pa = require_pyarrow("Columns")
    seen: dict[str, Any] = {}
    for file in source.files:
        for field in _id_fields(pa, file, columns, seen):
            if field.name not in seen:
                seen[field.name] = field
                continue
            try:
                pair = [pa.schema([seen[field.name]]), pa.schema([field])]
                seen[field.name] = pa.unify_schemas(pair, promote_options="permissive").field(0)
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise InputError(
                    f"{file.name}: column {field.name!r} is of type {field.type}, but {seen[field.name].type} in a file before. "
                    "Make them the same."
                ) from error
    fields = [seen.get(name, pa.field(name, pa.string())) for name in columns]
    if any(file.kind != "parquet" for file in source.files):  # which have no types of their own
        fields = [pa.field(f.name, pa.string()) if pa.types.is_null(f.type) else f for f in fields]
    schema = pa.schema(fields)
    return schema, _id_rows(pa, source, columns, rows, schema)


def _id_fields(pa: Any, file: InputFile, columns: tuple[str, ...], seen: dict[str, Any]) -> list[Any]:
    """Fields of id columns as one file has them."""
    partition = dict(file.partition)
    own = tuple(name for name in columns if name not in partition)
    kinds = {name: pa.null() for name in own}
    if file.kind == "parquet":
        fields = {name: parquet.column_field(file, name, "--id-column") for name in own}
    else:
        values = _FORMATS[file.kind].values
        if file.kind in delimited.DELIMITERS:
            kinds = dict.fromkeys(own, pa.string())
        elif own and values is not None:
            for number, _, content in unpacked(_FORMATS[file.kind].rows(file, "", 0, 0), file):
                where, row = values(file, own, number, content)
                for name, value in row.items():
                    before = kinds[name]
                    if pa.types.is_null(before) and name in seen:
                        before = seen[name].type
                    kinds[name] = _json_type(pa, where, name, value, before)
        fields = {name: pa.field(name, kind) for name, kind in kinds.items()}
    for name in columns:
        if name in partition:
            kind = {int: pa.int64(), str: pa.string()}.get(type(partition[name]), pa.null())
            fields[name] = pa.field(name, kind)
    return [fields[name] for name in columns]


def _json_type(pa: Any, where: str, name: str, value: object, before: Any) -> Any:
    """int64 where all values are integers that fit, string where all are strings."""
    if value is None:
        return before
    if type(value) is int and -(2**63) <= value < 2**63:
        kind = pa.int64()
    elif isinstance(value, str):
        kind = pa.string()
    else:
        raise InputError(f"{where}: {name!r} is {json_kind(value)}; an id is a string or an integer of 64 bits.")
    if not pa.types.is_null(before) and before != kind:
        raise InputError(
            f"{where}: {name!r} is {json_kind(value)}, but of another type in a line before. Write all of them as strings, or all "
            "as integers."
        )
    return kind


def _id_rows(pa: Any, source: Source, columns: tuple[str, ...], rows: int, schema: Any) -> Iterator[Any]:
    for file in source.files:
        partition = dict(file.partition)
        own = tuple(name for name in columns if name not in partition)
        for table in _own_rows(pa, file, own, rows, schema):
            arrays = [
                pa.array([partition[name]] * len(table), schema.field(name).type)
                if name in partition
                else table[name].cast(schema.field(name).type)
                for name in columns
            ]
            yield pa.table(arrays, schema=schema)


def _own_rows(pa: Any, file: InputFile, columns: tuple[str, ...], rows: int, schema: Any) -> Iterator[Any]:
    """Tables of columns that the file itself has; without columns, of none and so many rows."""
    if file.kind == "parquet" and columns:
        yield from parquet.column_tables(file, columns, rows)
        return
    values = _FORMATS[file.kind].values
    part = pa.schema([schema.field(name) for name in columns])
    if not columns or values is None:
        for first in range(0, file.rows, rows):
            yield pa.table({"": pa.nulls(min(rows, file.rows - first))})
        return
    held: list[dict[str, Any]] = []
    for number, _, content in unpacked(_FORMATS[file.kind].rows(file, "", 0, 0), file):
        held.append(values(file, columns, number, content)[1])
        if len(held) == rows:
            yield pa.Table.from_pylist(held, schema=part)
            held = []
    if held:
        yield pa.Table.from_pylist(held, schema=part)
