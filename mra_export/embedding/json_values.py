"""Input files of JSON that is not by lines: an array of texts or of objects, or objects one after the other.

They are read bit by bit with the parser of the standard library: pyarrow.json knows no arrays, and `json.load` would take the
whole file into memory.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import TYPE_CHECKING, Any, BinaryIO

from mra_export.embedding import lines
from mra_export.embedding.compressed import head_of, open_bytes
from mra_export.embedding.encodings import HEAD_BYTES, not_utf8
from mra_export.embedding.fields import MISSING, checked_text, json_kind, lookup, text_in
from mra_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mra_export.embedding.chunks import InputFile

__all__ = ["element_data", "element_text", "element_values", "elements"]

_SPACE = re.compile(r"[ \t\n\r]*")
_BLOCK = 1 << 20


class _Stream:
    """Values of a JSON file, one after the other; holds little more than one of them."""

    def __init__(self, file: InputFile, stream: BinaryIO) -> None:
        self._file, self._stream = file, stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._parser = json.JSONDecoder()
        self._text, self._at, self._ended = "", 0, False
        self._line, self._counted = 1, 0  # the line of that place in the text in hand
        self.row = 0

    def line(self) -> int:
        """The line that is read at present."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def where(self, place: int | None = None) -> str:
        """How messages name a place in the text in hand, or where it is read at present."""
        line = self.line() + (0 if place is None else self._text.count("\n", self._at, place))
        return _where(self._file, self.row, line)

    def next_character(self) -> str:
        """The character after white space, which is not taken; "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._fill()

    def take(self) -> None:
        self._at += 1

    def value(self) -> Any:
        while True:
            try:
                value, end = self._parser.raw_decode(self._text, self._at)
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            except (ValueError, RecursionError) as error:
                held = len(self._text) - self._at
                if held > lines.MAX_LINE_BYTES:
                    raise InputError(
                        f"{self.where()} is not JSON, or a value longer than {lines.MAX_LINE_BYTES >> 20} MiB."
                    ) from error
                if self._ended:
                    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                    raise InputError(f"{self.where(getattr(error, 'pos', None))} is not JSON: {reason}.") from error
            self._fill()

    def _fill(self) -> None:
        """Reads as much again as is held, so that a long value is not parsed too often."""
        self.line()
        self._counted = 0
        rest = self._text[self._at :]
        data = self._stream.read(max(_BLOCK, len(rest)))
        self._ended = not data
        try:
            self._text, self._at = rest + self._decoder.decode(data, final=self._ended), 0
        except UnicodeDecodeError as error:
            head = head_of(self._file, HEAD_BYTES)
            raise InputError(not_utf8(f"{self._file.name}, row {self.row} or after it,", error, head)) from error


def _where(file: InputFile, row: int, line: int) -> str:
    return f"{file.name}, line {line} (row {row})"


def elements(file: InputFile, start: int, offset: int) -> Iterator[tuple[int, int, tuple[int, Any]]]:
    """Number, 0, and line and value of each row, from the first.

    Raises:
        InputError: the file is not an array, nor values one after the other.
    """
    with open_bytes(file) as opened:
        stream = _Stream(file, opened)
        array = stream.next_character() == "["
        if array:
            stream.take()
        while True:
            follows = stream.next_character()
            if array and (follows == "]" or not follows):
                break
            if not follows:
                return
            line = stream.line()
            yield stream.row, 0, (line, stream.value())
            stream.row += 1
            if array and stream.next_character() == ",":
                stream.take()
                if stream.next_character() == "]":
                    raise InputError(f"{stream.where()} is not JSON: a comma stands before the closing bracket.")
            elif array and stream.next_character() != "]":
                break
        if stream.next_character() != "]":
            raise InputError(
                f"{stream.where()} is not JSON: a comma or the closing bracket of the array is missing. Is the file cut off?"
            )
        stream.take()
        if stream.next_character():
            raise InputError(f"{stream.where()} is not JSON: something follows the closing bracket of the array.")


def element_data(element: tuple[int, Any], text: str) -> bytes:
    """What the checksum of a chunk is of."""
    return text.encode("utf-8")


def element_text(
    file: InputFile, column: str, others: tuple[str, ...], row: int, element: tuple[int, Any], lenient: bool
) -> str | None:
    """The text of an element: itself, or a field of it; None for null."""
    where, value = _where(file, row, element[0]), element[1]
    if value is None or isinstance(value, str):
        if others and value is not None:
            raise InputError(f"{where} is a string, which has no fields; leave out --id-column.")
        return checked_text(f"{where}: the text", where, value)
    return text_in(where, _fields(where, value), column, others, lenient=lenient)


def element_values(
    file: InputFile, columns: tuple[str, ...], row: int, element: tuple[int, Any]
) -> tuple[str, dict[str, Any]]:
    """Where an element is, and values of some of its fields."""
    where, value = _where(file, row, element[0]), element[1]
    fields = {} if value is None else _fields(where, value)
    return where, {name: lookup(fields, name) for name in columns if lookup(fields, name) is not MISSING}


def _fields(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f'{where} is {json_kind(value)}, not a string or an object such as {{"text": "…"}}.')
    return value
