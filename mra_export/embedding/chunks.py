"""Chunks of an input: their limits, and where each begins."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CHUNK_BYTES", "CHUNK_ROWS", "MAX_TEXT_BYTES", "Chunk", "Chunks", "InputFile", "not_utf8", "too_long"]

CHUNK_ROWS = 1024
"""Rows of a chunk at most."""
CHUNK_BYTES = 4 << 20
"""UTF-8 bytes of a chunk's texts at most, unless a single text has more."""
MAX_TEXT_BYTES = 4 << 20
"""Of one text. Nothing beyond the model's maximum length counts, and tokenizing takes a hundred times its size in memory."""


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


class Chunks:
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


def too_long(where: str, size: int) -> str:
    """The message for a text of so many bytes."""
    return (
        f"{where} has a text of {size / 2**20:.0f} MiB; the longest that embed takes has {MAX_TEXT_BYTES >> 20} MiB. Only its "
        "beginning counts: cut it."
    )


def not_utf8(where: str, error: UnicodeDecodeError) -> str:
    """The message for bytes that are not UTF-8."""
    return (
        f"{where} is not UTF-8: byte 0x{error.object[error.start]:02x} at byte {error.start}. Convert the file, for example "
        "with `iconv -f WINDOWS-1252 -t UTF-8`."
    )
