"""Input files of delimited fields: csv and tsv with a header.

They are parsed by the csv module of the standard library. pyarrow.csv is faster but takes a quotation mark that is never closed
for the beginning of a text that holds the rest of the file, without a word; it does not know the line, and cannot begin in the
midst of a file.
"""

from __future__ import annotations

import csv
import re
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mra_export.embedding import lines
from mra_export.embedding.compressed import head_of, open_bytes
from mra_export.embedding.encodings import HEAD_BYTES, not_utf8
from mra_export.embedding.fields import checked_text
from mra_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from mra_export.embedding.chunks import InputFile

__all__ = ["DELIMITERS", "check_header", "record_data", "record_text", "record_values", "records"]

DELIMITERS = {"csv": ",", "tsv": "\t"}

_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_LIMIT = threading.Lock()

Record = tuple[str, tuple[str, ...], list[str], str]
"""Where it is, the header, the fields, and the text of them all."""


class _Reader:
    """Records of a file with where they begin."""

    def __init__(self, file: InputFile, stream: BinaryIO) -> None:
        with _LIMIT:  # it is one for the whole process; others may have set a higher one
            csv.field_size_limit(max(csv.field_size_limit(), lines.MAX_LINE_BYTES))
        self._file, self._stream = file, stream
        self.line = self.offset = 0
        self.row = -1  # the header
        self._held: list[str] = []
        self._size = 0
        self._begin = 1
        self._parser = csv.reader(self._lines(), delimiter=file.delimiter, strict=True)

    def where(self) -> str:
        row = f"row {self.row}" if self.row >= 0 else "the header"
        return f"{self._file.name}, line {self._begin} ({row})"

    def _lines(self) -> Iterator[str]:
        while line := self._stream.readline(lines.MAX_LINE_BYTES + 1):
            if len(line) > lines.MAX_LINE_BYTES:
                raise InputError(f"{self.where()} has a line longer than {lines.MAX_LINE_BYTES >> 20} MiB.")
            first = self.offset == 0
            self.line += 1
            self.offset += len(line)
            try:
                text = line.decode("utf-8-sig" if first else "utf-8")
            except UnicodeDecodeError as error:
                head = head_of(self._file, HEAD_BYTES)
                raise InputError(not_utf8(f"{self._file.name}, line {self.line}", error, head)) from error
            self._held.append(text)
            self._size += len(text)
            if self._size > lines.MAX_LINE_BYTES:
                raise InputError(
                    f"{self.where()} is longer than {lines.MAX_LINE_BYTES >> 20} MiB. Is its last quotation mark missing?"
                )
            yield text

    def next(self) -> tuple[int, list[str], str] | None:
        """Offset, fields and text of the next record; None at the end. Blank lines are none."""
        while True:
            self._held.clear()
            self._size = 0
            offset, self._begin = self.offset, self.line + 1
            try:
                fields = next(self._parser, None)
            except csv.Error as error:
                reason = "a carriage return without a line feed" if "new-line" in str(error) else error
                raise InputError(
                    f"{self.where()} cannot be read: {reason}. A field that begins with a quotation mark has to end with one, and "
                    "one within it is doubled."
                ) from error
            if fields is None:
                return None
            if fields:
                return offset, fields, "".join(self._held)


def records(file: InputFile, start: int, offset: int) -> Iterator[tuple[int, int, Record]]:
    """Number, offset and content of each record after the header.

    Args:
        file: csv or tsv.
        start: number of the record at `offset`.
        offset: where to begin; 0 for the beginning of the file.

    Raises:
        InputError: there is no header, the quotation marks do not fit, or a record has more or fewer fields than the header.
    """
    with open_bytes(file) as stream:
        reader = _Reader(file, stream)
        first = reader.next()
        if first is None:
            raise InputError(f"{file.name} is empty. A {file.kind} file begins with a line of names.")
        header = tuple(first[1])
        if offset:
            stream.seek(offset)
            reader = _Reader(file, stream)
            reader.offset = offset
        reader.row = start
        while (record := reader.next()) is not None:
            at, fields, text = record
            if len(fields) != len(header):
                raise InputError(
                    f"{reader.where()} has {len(fields)} fields, the header {len(header)}. Mend the row; a delimiter within a "
                    "text needs quotation marks around it."
                )
            yield reader.row, at, (reader.where(), header, fields, text)
            reader.row += 1


def record_data(record: Record, text: str) -> bytes:
    """What the checksum of a chunk is of."""
    return text.encode("utf-8")


def record_text(
    file: InputFile, column: str, others: tuple[str, ...], row: int, record: Record, lenient: bool
) -> str | None:
    """The text of a record; None where the field is empty and not in quotation marks."""
    for name in others:
        _place(file, record[1], name, "--id-column")
    return checked_text(f"{record[0]}: {column!r}", record[0], _value(file, record, column))


def record_values(file: InputFile, columns: tuple[str, ...], row: int, record: Record) -> tuple[str, dict[str, Any]]:
    """Where a record is, and some of its fields, as strings."""
    return record[0], {name: _value(file, record, name) for name in columns}


def check_header(file: InputFile, columns: tuple[str, ...]) -> None:
    """Refuses a file without such columns, also where it has no record.

    Raises:
        InputError: it has no header, or not these columns.
    """
    with open_bytes(file) as stream:
        first = _Reader(file, stream).next()
    if first is not None:
        for place, name in enumerate(columns):
            _place(file, tuple(first[1]), name, "--id-column" if place else "--column")


def _value(file: InputFile, record: Record, column: str) -> str | None:
    _, header, fields, text = record
    place = _place(file, header, column, "--column")
    return fields[place] or ("" if _is_quoted(text, place, file.delimiter) else None)


@lru_cache(64)
def _place(file: InputFile, header: tuple[str, ...], column: str, option: str) -> int:
    if header.count(column) != 1:
        have = ", ".join(header)
        often = f"{header.count(column)} columns" if column in header else "no column"
        advice = f"Name another with {option}"
        if len(header) == 1 and (other := next((c for c in ";\t|," if c in header[0]), None)) is not None:
            shown = "'\\t'" if other == "\t" else f"'{other}'"
            advice += f", or the delimiter: --delimiter {shown}"
        raise InputError(f"{file.name} has {often} {column!r}; it has: {have}. {advice}.")
    return header.index(column)


def _is_quoted(text: str, place: int, delimiter: str) -> bool:
    """Whether a field of a well-formed record stands in quotation marks."""
    at = 0
    for _ in range(place):
        match = _QUOTED.match(text, at)
        at = text.index(delimiter, match.end() if match else at) + 1
    return text.startswith('"', at)
