"""Input files of lines: plain text and JSON."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.embedding.chunks import MAX_TEXT_BYTES, Chunks, InputFile, not_utf8, too_long
from mra_export.errors import InputError
from mra_export.optional import require_pyarrow

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "MAX_LINE_BYTES",
    "json_tables",
    "json_types",
    "lines_of",
    "scan_lines",
    "text_of",
]

MAX_LINE_BYTES = 64 << 20
"""Of one line of a .jsonl file: it may hold other fields."""


def scan_lines(path: Path, kind: str, column: str, id_columns: tuple[str, ...], chunk_rows: int) -> InputFile:
    """`input.scan` of a file of lines."""
    digest = hashlib.sha256()
    chunks = Chunks(chunk_rows)
    with path.open("rb") as file:
        for row, line in lines_of(file, path):
            digest.update(line)
            text_of(path, kind, column, id_columns, row, line.removesuffix(b"\n"))
            chunks.add(line)
        size = file.tell()
    chunks.close()
    own = None if kind == "txt" else column
    return InputFile(path.absolute(), kind, own, size, digest.hexdigest(), chunks.row, tuple(chunks.made))


def lines_of(file: Any, path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line, its line feed included; refuses one that is too long."""
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


def text_of(path: Path, kind: str, column: str | None, others: tuple[str, ...], row: int, line: bytes) -> str:
    """The text of a line without its line feed."""
    line = line.removesuffix(b"\r")
    if row == 0:
        line = line.removeprefix(b"\xef\xbb\xbf")
    if kind == "txt":
        if len(line) > MAX_TEXT_BYTES:
            raise InputError(too_long(_line(path, row), len(line)))
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(not_utf8(_line(path, row), error)) from error
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
        raise InputError(too_long(_line(path, row), size))
    return text


def _object(path: Path, row: int, line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8-sig" if row == 0 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(not_utf8(_line(path, row), error)) from error
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


def json_types(path: Path, columns: tuple[str, ...]) -> dict[str, Any]:
    """Types for id columns of a .jsonl file: int64 where all are integers that fit, string where all are strings."""
    pa = require_pyarrow()
    seen: dict[str, set[str]] = {name: set() for name in columns}
    with path.open("rb") as file:
        for row, line in lines_of(file, path):
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


def json_tables(path: Path, columns: tuple[str, ...], rows: int, schema: Any) -> Iterator[Any]:
    """Arrow tables of columns of a .jsonl file, so many rows each."""
    pa = require_pyarrow()
    held: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for row, line in lines_of(file, path):
            fields = _object(path, row, line)
            held.append({name: fields[name] for name in columns})
            if len(held) == rows:
                yield pa.Table.from_pylist(held, schema=schema)
                held = []
    if held:
        yield pa.Table.from_pylist(held, schema=schema)
