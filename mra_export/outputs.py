"""Outputs that appear whole or not at all: written beside the target, then renamed."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mra_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["INTERRUPTED", "check_target", "file_sha256", "staged_directory", "staged_file"]

INTERRUPTED = threading.Event()
"""Set by whoever handles a signal that is to end the work: from then on no output gets its name."""


def check_target(target: Path, *, force: bool, sources: Iterable[Path] = ()) -> None:
    """Refuses a target that cannot be written, before any work is done for it.

    Args:
        target: the file or directory to be written.
        force: whether an existing target may be replaced.
        sources: what is being read; it is never replaced, whole or in part.

    Raises:
        InputError: the target exists and `force` is not set, or its folder cannot be written, or it is or holds a source.
    """
    try:
        exists = target.exists() or target.is_symlink()
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}.") from error
    resolved = target.resolve()
    for source in sources:
        whole = source.resolve()
        inside = whole in resolved.parents and exists and target.suffix != ".html"
        if resolved == whole or resolved in whole.parents or inside:
            raise InputError(f"{target} is, holds or belongs to the input {source}. Choose another output.")
    if exists and not force:
        raise InputError(f"{target} already exists. Choose another path, or add --force to replace it.")
    parent = _parent(target)
    existing = next(p for p in (parent, *parent.parents) if p.exists())
    if not existing.is_dir():
        raise InputError(f"{target} cannot be written: {existing} is not a directory.")
    if not os.access(existing, os.W_OK):
        raise InputError(f"{target} cannot be written: no permission to write to {existing}.")


@contextmanager
def staged_directory(target: Path, *, force: bool = False) -> Iterator[Path]:
    """A new directory beside `target` that becomes `target` when the block ends without an error.

    Args:
        target: the directory to be written.
        force: whether an existing target is replaced; it is kept until the new one is complete.

    Yields:
        The directory to write into; it is removed if the block raises, KeyboardInterrupt included.

    Raises:
        InputError: as `check_target`.
    """
    check_target(target, force=force)
    with _holder(target) as holder:
        stage = holder / "new"
        stage.mkdir()
        with _os_errors(target):
            yield stage
            _refuse_after_interruption()
            try:
                if target.exists() or target.is_symlink():
                    target.rename(holder / "old")
                stage.rename(target)
            except BaseException:  # an interruption here must not cost the old output
                if os.path.lexists(holder / "old") and not os.path.lexists(target):
                    (holder / "old").rename(target)
                raise


@contextmanager
def staged_file(target: Path, *, force: bool = False) -> Iterator[Path]:
    """A file path beside `target` whose file becomes `target` when the block ends without an error.

    Args:
        target: the file to be written.
        force: whether an existing target is replaced; it is kept until the new one is complete.

    Yields:
        The path to write to; what is there is removed if the block raises, KeyboardInterrupt included.

    Raises:
        InputError: as `check_target`; also if `target` is a directory.
    """
    if target.is_dir():
        raise InputError(f"{target} is a directory; the output is a file. Choose another path.")
    check_target(target, force=force)
    with _holder(target) as holder, _os_errors(target):
        yield holder / target.name
        _refuse_after_interruption()
        (holder / target.name).replace(target)


def _refuse_after_interruption() -> None:
    """An interruption counts although code in between, as of torch's exporter, has swallowed the exception."""
    if INTERRUPTED.is_set():
        raise KeyboardInterrupt


@contextmanager
def _holder(target: Path) -> Iterator[Path]:
    """A hidden directory beside `target`, on its file system, that is removed when the block ends, however it ends."""
    with _os_errors(target):
        parent = _parent(target)
        parent.mkdir(parents=True, exist_ok=True)
    # The name comes first: an interruption right after the directory was made must find it too.
    holder = parent / f".{target.name}.{secrets.token_hex(8)}"
    try:
        with _os_errors(target):
            holder.mkdir(mode=0o700)
        yield holder
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _parent(target: Path) -> Path:
    return target.absolute().parent


@contextmanager
def _os_errors(target: Path) -> Iterator[None]:
    """A full disk or a missing permission becomes an `InputError` that names the target."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{target} could not be written: {reason}. Nothing was left behind; free some space or choose another path."
        ) from error


def file_sha256(*paths: Path) -> str:
    """The SHA-256 of files one after the other, in hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
