"""Standard input, saved as a file beside the output: `embed` reads its input twice."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from typing import TYPE_CHECKING, BinaryIO

from mra_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["spooled"]


@contextlib.contextmanager
def spooled(stream: BinaryIO, output: Path) -> Iterator[Path]:
    """A file with all that `stream` gives; it goes with the block.

    A kill leaves it behind; the next run of the same command replaces it.

    Args:
        stream: in bytes.
        output: the file to be made; OUT.npy -> .OUT.npy.stdin beside it.

    Yields:
        Its path.

    Raises:
        InputError: another run is at it, or the disk is full.
    """
    path = output.absolute().with_name(f".{output.name}.stdin")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}. Choose another output.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"Another run is writing {output} at this moment ({path} is locked). Wait for it, or choose another output."
            ) from error
        try:
            try:
                os.ftruncate(file.fileno(), 0)
                shutil.copyfileobj(stream, file, 1 << 20)
                file.flush()
            except OSError as error:
                raise InputError(
                    f"Standard input could not be saved as {path}: {error.strerror or error}. Free some space, or choose another "
                    "output."
                ) from error
            yield path
        finally:
            path.unlink(missing_ok=True)
