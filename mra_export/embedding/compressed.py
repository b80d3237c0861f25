"""Files of bytes, as they are or unpacked while they are read."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from mra_export.errors import InputError
from mra_export.optional import require_pyarrow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mra_export.embedding.chunks import InputFile

__all__ = ["COMPRESSIONS", "compression_of", "head_of", "open_bytes", "unpacked"]

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
"""Suffix -> compression."""

_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def compression_of(path: Path) -> str:
    """The compression by a file's first bytes, whatever its name; "" for none. No text in UTF-8 begins so.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(10)
    for magic, name in _MAGIC.items():
        if head.startswith(magic) and (name != "bz2" or head[4:] == b"1AY&SY"):
            return name
    return ""


def open_bytes(file: InputFile) -> BinaryIO:
    """The unpacked bytes of a file from its beginning; several streams one after the other are one.

    Raises:
        DependencyError: .zst, and pyarrow is not installed.
    """
    if file.compression == "gzip":
        return cast("BinaryIO", gzip.open(file.path, "rb"))
    if file.compression == "bz2":
        return cast("BinaryIO", bz2.open(file.path, "rb"))
    if file.compression == "xz":
        return cast("BinaryIO", lzma.open(file.path, "rb"))
    if file.compression == "zstd":
        pa = require_pyarrow(".zst files")
        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(file.path)), "zstd"), 1 << 16)
    return file.path.open("rb")


def head_of(file: InputFile, size: int) -> bytes:
    """The first unpacked bytes.

    Raises:
        InputError: as `unpacked`.
    """
    with _unpacking(file), open_bytes(file) as stream:
        return stream.read(size)


def unpacked(rows: Iterator[Any], file: InputFile) -> Iterator[Any]:
    """The same rows; an archive that is cut off or damaged becomes an error that names it.

    Raises:
        InputError: that.
    """
    with _unpacking(file):
        yield from rows


@contextlib.contextmanager
def _unpacking(file: InputFile) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise InputError(_damaged(file, error)) from error
    except OSError as error:
        if file.compression and error.errno is None:
            raise InputError(_damaged(file, error)) from error
        raise


def _damaged(file: InputFile, error: Exception) -> str:
    """The message for a file that cannot be unpacked."""
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    if "too much memory" in reason:
        return (
            f"{file.name} was packed with a window of more than 128 MiB (`zstd --long`). Unpack it: `zstd -dc --long=31 "
            f"{file.name} | mra-export embed BUNDLE - --input-format FORMAT`."
        )
    return f"{file.name} cannot be unpacked ({file.compression}): {reason}. It is cut off or damaged; copy it again."
