"""Reads and writes the JSON files of a checkpoint; what cannot be read is said with the file's own name."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from mra_export.errors import InputError

__all__ = ["FETCH", "is_pointer", "parse_json", "read_json", "refuse_pointer", "write_json"]

_POINTER = b"version https://git-lfs.github.com/spec/"
_MAX_POINTER_BYTES = 1024  # by Git LFS' specification
FETCH = "Fetch the file itself with `git lfs pull`"


def parse_json(path: Path) -> Any:
    """What a JSON file holds, of whatever kind.

    Raises:
        ValueError: it cannot be read; the text says why, and goes on from a sentence that names the file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    if content.startswith(_POINTER):
        raise ValueError(f"it is a pointer of Git LFS, not the file. {FETCH}")
    if content.startswith(codecs.BOM_UTF8):
        raise ValueError(
            "it begins with a byte order mark, which transformers does not read. "
            f"Take the mark away: `sed -i '1s/^\\xEF\\xBB\\xBF//' {path}`"
        )
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"it is UTF-16. Write it as UTF-8: `iconv -f UTF-16 -t UTF-8 {path}`")
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty if there is no such file.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    if not path.is_file():
        return {}
    try:
        value = parse_json(path)
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}. Mend or remove it.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object. Mend or remove it.")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes an object with its keys in order, so that the same value gives the same bytes."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def is_pointer(path: Path) -> bool:
    """Whether a file is what Git LFS puts in the place of a large one that was not fetched."""
    try:
        if path.stat().st_size >= _MAX_POINTER_BYTES:
            return False
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def refuse_pointer(path: Path) -> None:
    """Refuses a file that Git LFS did not fetch.

    Raises:
        InputError: it is a pointer.
    """
    if is_pointer(path):
        raise InputError(f"{path} is a pointer of Git LFS, not the file itself. {FETCH} in its repository.")
