"""Parquet input files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.embedding.chunks import CHUNK_ROWS, MAX_TEXT_BYTES, Chunks, InputFile, not_utf8, too_long
from mra_export.errors import InputError
from mra_export.optional import require_pyarrow

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["parquet_file", "scan_parquet", "text_arrays"]


def parquet_file(pa: Any, path: Path) -> Any:
    """The opened file (`pyarrow.parquet.ParquetFile`)."""
    try:
        # Buffered: a row group is then read bit by bit, not whole.
        return pa.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a readable parquet file: {str(error).splitlines()[0]}") from error


def text_arrays(file: Any, path: Path, column: str, groups: list[int] | None = None) -> Iterator[Any]:
    """Large-string arrays of a column, in order."""
    pa = require_pyarrow()
    try:
        for batch in file.iter_batches(CHUNK_ROWS, row_groups=groups, columns=[column], use_threads=False):
            yield batch.column(0).cast(pa.large_string())
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def scan_parquet(path: Path, column: str, id_columns: tuple[str, ...], chunk_rows: int) -> InputFile:
    """`input.scan` of a parquet file."""
    pa = require_pyarrow()
    file = parquet_file(pa, path)
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
    chunks = Chunks(chunk_rows)
    for array in text_arrays(file, path, column):
        for data in array.cast(pa.large_binary()).to_pylist():
            where = f"{path}, row {chunks.row}"
            if data is None:
                raise InputError(f"{where}: {column!r} is null. Mend or remove the row (row numbers count from 0).")
            if len(data) > MAX_TEXT_BYTES:
                raise InputError(too_long(where, len(data)))
            try:
                data.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(not_utf8(where, error)) from error
            chunks.add(data, separator=b"\0")
    chunks.close()
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as raw:
        while block := raw.read(1 << 20):
            digest.update(block)
            size += len(block)
    return InputFile(path.absolute(), "parquet", column, size, digest.hexdigest(), chunks.row, tuple(chunks.made))
