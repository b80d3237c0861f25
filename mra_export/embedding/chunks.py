"""What an input is once it was read: its files, and the chunks into which its rows are divided."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "CHUNK_BYTES",
    "CHUNK_ROWS",
    "MAX_TEXT_BYTES",
    "Chunk",
    "Chunks",
    "InputFile",
    "Source",
    "checksum",
    "too_long",
]

CHUNK_ROWS = 1024
"""Rows of a chunk at most."""
CHUNK_BYTES = 4 << 20
"""UTF-8 bytes of a chunk's texts at most, unless a single text has more."""
MAX_TEXT_BYTES = 4 << 20
"""Of one text. Nothing beyond the model's maximum length counts, and tokenizing takes a hundred times its size in memory."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive texts of the input; they may go on in the next file.

    Attributes:
        index: of the chunk.
        first_row: of its texts, counted from 0 over all texts of the input.
        rows: how many texts.
        file: index of the file in which it begins.
        start: number of its first text's row in that file.
        offset: of that row in bytes, where the file can be read from there, else 0.
        size: bytes of the lines for .txt and .jsonl, of the texts otherwise.
        crc32: of the same bytes.
    """

    index: int
    first_row: int
    rows: int
    file: int
    start: int
    offset: int
    size: int
    crc32: int


@dataclass(frozen=True)
class InputFile:
    """A file of the input.

    Attributes:
        path: absolute.
        name: what messages and the column `file` call it.
        kind: "txt", "jsonl", "json", "csv", "tsv" or "parquet".
        compression: "gzip", "bz2", "xz", "zstd", or "" for none.
        delimiter: between the fields of csv and tsv, else "".
        partition: names and values that the folders of its path give, as in `year=2024/lang=en`; a value may be None.
        bytes: size on the disk.
        sha256: of these bytes.
        rows: how many, those without a text included.
        first_row: of the file in the whole input.
    """

    path: Path
    name: str
    kind: str
    compression: str = ""
    delimiter: str = ""
    partition: tuple[tuple[str, str | int | None], ...] = ()
    bytes: int = 0
    sha256: str = ""
    rows: int = 0
    first_row: int = 0


@dataclass(frozen=True)
class Source:
    """An input that was read and checked from its first to its last byte.

    Attributes:
        files: in their order.
        column: of the texts; None where all files are .txt.
        null: what is done with a row whose text is null: "error", "skip" or "empty".
        named: whether the rows of an output say which file they are from: the input was not just one file by its name.
        rows: number of texts.
        input_rows: number of rows, those without a text included.
        nulls: rows whose text is null.
        chunks: all of them, in order.
    """

    files: tuple[InputFile, ...]
    column: str | None
    null: str
    named: bool
    rows: int
    input_rows: int
    nulls: int
    chunks: tuple[Chunk, ...]

    @property
    def bytes(self) -> int:
        """Of all files on the disk."""
        return sum(file.bytes for file in self.files)

    @property
    def sha256(self) -> str:
        """Of the input: of its file, or of the kinds and hashes of several; their names do not count."""
        if len(self.files) == 1:
            return self.files[0].sha256
        return hashlib.sha256("".join(f"{file.kind} {file.sha256}\n" for file in self.files).encode()).hexdigest()


class Chunks:
    """Divides texts into chunks, as they come."""

    def __init__(self, chunk_rows: int) -> None:
        self.made: list[Chunk] = []
        self.row = self.nulls = 0
        self.seen = False  # whether a null was that of a field and not a field that is missing
        self._limit = chunk_rows
        self._first = self._size = self._crc = 0
        self._begin = (0, 0, 0)

    def add(self, data: bytes, file: int, number: int, offset: int) -> None:
        """A text: its bytes, and the file, row and offset where it is."""
        rows = self.row - self._first
        if rows and (rows == self._limit or self._size + len(data) > CHUNK_BYTES):
            self.close()
            rows = 0
        if not rows:
            self._begin = (file, number, offset)
        self._crc = checksum(data, self._crc)
        self._size += len(data)
        self.row += 1

    def close(self) -> None:
        """Ends the current chunk."""
        if self.row > self._first:
            rows = self.row - self._first
            self.made.append(Chunk(len(self.made), self._first, rows, *self._begin, self._size, self._crc))
        self._first, self._size, self._crc = self.row, 0, 0


def checksum(data: bytes, crc: int) -> int:
    """The CRC-32 of a chunk with one text more."""
    return zlib.crc32(b"\0", zlib.crc32(data, crc))


def too_long(where: str, size: int) -> str:
    """The message for a text of so many bytes."""
    return (
        f"{where} has a text of {size / 2**20:.0f} MiB; the longest that embed takes has {MAX_TEXT_BYTES >> 20} MiB. Only its "
        "beginning counts: cut it."
    )
