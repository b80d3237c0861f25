"""Parquet input files, read row group by row group in batches: pyarrow.dataset would read ahead, and does not number the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mra_export.embedding import chunks
from mra_export.embedding.encodings import not_utf8
from mra_export.errors import InputError
from mra_export.optional import require_pyarrow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mra_export.embedding.chunks import InputFile

__all__ = ["check_columns", "column_field", "column_tables", "value_data", "value_text", "values"]


def open_parquet(pa: Any, file: InputFile) -> Any:
    """The opened file (`pyarrow.parquet.ParquetFile`)."""
    try:
        # Buffered: a row group is then read bit by bit, not whole.
        return pa.parquet.ParquetFile(file.path, buffer_size=1 << 20, pre_buffer=False)
    except pa.ArrowInvalid as error:
        raise InputError(f"{file.name} is not a readable parquet file: {str(error).splitlines()[0]}") from error


def _path_of(schema: Any, column: str) -> tuple[str, ...] | None:
    """Names from the outside to the inside: `doc.text` is the column of that very name, else `text` in the struct `doc`."""
    pa = require_pyarrow()
    names = [field.name for field in schema]
    if names.count(column) == 1:
        return (column,)
    place = column.rfind(".")
    while place > 0:
        if names.count(column[:place]) == 1:
            kind = schema.field(column[:place]).type
            if pa.types.is_struct(kind) and (inner := _path_of(kind, column[place + 1 :])) is not None:
                return (column[:place], *inner)
        place = column.rfind(".", 0, place)
    return None


def _names(pa: Any, schema: Any, before: str = "") -> Iterator[str]:
    for field in schema:
        if pa.types.is_struct(field.type):
            yield from _names(pa, field.type, f"{before}{field.name}.")
        else:
            yield f"{before}{field.name}"


def column_field(file: InputFile, column: str, option: str = "--column") -> Any:
    """Name and type of a column.

    Raises:
        InputError: there is none of that name.
    """
    pa = require_pyarrow()
    schema = open_parquet(pa, file).schema_arrow
    path = _path_of(schema, column)
    if path is None:
        have = ", ".join(_names(pa, schema)) or "none"
        what = "the column of the texts" if option == "--column" else "another"
        raise InputError(f"{file.name} has no column {column!r}; it has: {have}. Name {what} with {option}.")
    field = schema.field(path[0])
    nullable = field.nullable
    for name in path[1:]:
        field = field.type.field(field.type.get_field_index(name))
        nullable = nullable or field.nullable
    return pa.field(column, field.type, nullable, field.metadata)


def check_columns(file: InputFile, column: str, others: tuple[str, ...]) -> None:
    """Refuses a file without such columns, or whose texts are no strings.

    Raises:
        InputError: that.
    """
    pa = require_pyarrow()
    kind = column_field(file, column).type
    for name in others:
        column_field(file, name, "--id-column")
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_view = getattr(pa.types, "is_string_view", lambda kind: False)
    if not (pa.types.is_string(value) or pa.types.is_large_string(value) or is_view(value) or pa.types.is_null(value)):
        raise InputError(f"{file.name}: column {column!r} is of type {kind}, not string. Choose another with --column.")


def _arrays(file: InputFile, columns: tuple[str, ...], rows: int, start: int = 0) -> Iterator[tuple[int, list[Any]]]:
    """Number of the first row, and an array for each column, in order; begins with the row group that has row `start`."""
    pa = require_pyarrow()
    opened = open_parquet(pa, file)
    metadata = opened.metadata
    group = row = 0
    while group < metadata.num_row_groups and row + metadata.row_group(group).num_rows <= start:
        row += metadata.row_group(group).num_rows
        group += 1
    paths = [_path_of(opened.schema_arrow, name) for name in columns]
    if any(path is None for path in paths):
        raise InputError(f"{file.name} changed while it was being read. Let it alone, and run the command again.")
    wanted = list(dict.fromkeys(".".join(path) for path in paths if path is not None))
    groups = list(range(group, metadata.num_row_groups))
    try:
        for batch in opened.iter_batches(rows, row_groups=groups, columns=wanted, use_threads=False):
            arrays = []
            for path in paths:
                assert path is not None
                array = batch.column(batch.schema.get_field_index(path[0]))
                arrays.append(pa.compute.struct_field(array, list(path[1:])) if path[1:] else array)
            yield row, arrays
            row += len(batch)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file.name} cannot be read: {str(error).splitlines()[0]}") from error


def values(file: InputFile, column: str, start: int, offset: int) -> Iterator[tuple[int, int, bytes | None]]:
    """Number, 0, and bytes of each text, from row `start` or one before it."""
    pa = require_pyarrow()
    for first, (array,) in _arrays(file, (column,), chunks.CHUNK_ROWS, start):
        wide = array.cast(pa.large_string()).cast(pa.large_binary())
        skip = max(0, start - first)
        for number, value in enumerate(wide[skip:].to_pylist(), first + skip):
            yield number, 0, value


def value_data(value: bytes | None, text: str) -> bytes:
    """What the checksum of a chunk is of."""
    return value or b""


def value_text(
    file: InputFile, column: str, others: tuple[str, ...], row: int, value: bytes | None, lenient: bool
) -> str | None:
    """The text of a row, None for null."""
    if value is None:
        return None
    where = f"{file.name}, row {row}"
    if len(value) > chunks.MAX_TEXT_BYTES:
        raise InputError(chunks.too_long(where, len(value)))
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(not_utf8(where, error, b"")) from error


def column_tables(file: InputFile, columns: tuple[str, ...], rows: int) -> Iterator[Any]:
    """Tables of some columns, so many rows each at most."""
    pa = require_pyarrow()
    for _, arrays in _arrays(file, columns, rows):
        yield pa.table(dict(zip(columns, arrays, strict=True)))
