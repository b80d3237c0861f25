"""Input files of lines: plain text, and JSON by lines.

The lines are read here and not by pyarrow.json, which guesses a type for each field of the file, refuses the file where one that
nobody asked for changes its type, and does not know the line.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mra_export.embedding import chunks
from mra_export.embedding.compressed import head_of, open_bytes
from mra_export.embedding.encodings import HEAD_BYTES, not_utf8
from mra_export.embedding.fields import MISSING, json_kind, lookup, text_in
from mra_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from typing import BinaryIO

    from mra_export.embedding.chunks import InputFile

__all__ = ["MAX_LINE_BYTES", "json_text", "json_values", "line_data", "line_text", "lines"]

MAX_LINE_BYTES = 64 << 20
"""Of one line of a .jsonl file: it may hold other fields."""


def lines(file: InputFile, start: int, offset: int) -> Iterator[tuple[int, int, bytes]]:
    """Number, offset and bytes of each line, its line feed included.

    Blank lines at the end of a .jsonl file are no rows.

    Args:
        file: .txt or .jsonl.
        start: number of the line at `offset`.
        offset: where to begin; 0 in a compressed file.

    Raises:
        InputError: a line is too long, or blank in the midst of a .jsonl file.
    """
    row = start
    blank: int | None = None
    opened: AbstractContextManager[BinaryIO] = open_bytes(file)
    with opened as stream:
        if offset:
            stream.seek(offset)
        while line := stream.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                raise InputError(
                    f"{where(file, row)} is longer than {MAX_LINE_BYTES >> 20} MiB. A row is a line; is this the right file?"
                )
            if file.kind == "jsonl" and _is_blank(line, row):
                blank = row if blank is None else blank
            elif blank is not None:
                raise InputError(
                    f"{where(file, blank)} is empty; each line of a .jsonl file is an object. Remove the line."
                )
            else:
                yield row, offset, line
            row += 1
            offset += len(line)


def _is_blank(line: bytes, row: int) -> bool:
    return not (line.removeprefix(b"\xef\xbb\xbf") if row == 0 else line).strip()


def where(file: InputFile, row: int) -> str:
    """How messages name a line."""
    return f"{file.name}, line {row + 1} (row {row})"


def line_data(line: bytes, text: str) -> bytes:
    """What the checksum of a chunk is of."""
    return line


def line_text(file: InputFile, column: str, others: tuple[str, ...], row: int, line: bytes, lenient: bool) -> str:
    """The text of a line of a .txt file, without its end."""
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    if row == 0:
        line = line.removeprefix(b"\xef\xbb\xbf")
    if len(line) > chunks.MAX_TEXT_BYTES:
        raise InputError(chunks.too_long(where(file, row), len(line)))
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(not_utf8(where(file, row), error, head_of(file, HEAD_BYTES))) from error


def json_text(
    file: InputFile, column: str, others: tuple[str, ...], row: int, line: bytes, lenient: bool
) -> str | None:
    """The text of a line of a .jsonl file, None for null."""
    return text_in(where(file, row), _object(file, row, line), column, others, lenient=lenient)


def json_values(file: InputFile, columns: tuple[str, ...], row: int, line: bytes) -> tuple[str, dict[str, Any]]:
    """Where a line is, and values of some of its fields."""
    fields = _object(file, row, line)
    return where(file, row), {name: lookup(fields, name) for name in columns if lookup(fields, name) is not MISSING}


def _object(file: InputFile, row: int, line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8-sig" if row == 0 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(not_utf8(where(file, row), error, head_of(file, HEAD_BYTES))) from error
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where(file, row)} is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise InputError(f'{where(file, row)} is {json_kind(fields)}, not an object such as {{"text": "…"}}.')
    return fields
