"""Where the parts of a checkpoint lie: sentence-transformers may keep its Transformer in a folder of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mra_export.checkpoint.json_files import parse_json
from mra_export.errors import InputError

__all__ = [
    "MODULES_FILE",
    "Entry",
    "flat_listing",
    "module_kind",
    "read_listing",
    "sentence_root",
    "transformer_folder",
]

MODULES_FILE = "modules.json"

_OWN_CLASS = re.compile(
    r"sentence_transformers\.(?:models|base\.modules|sentence_transformer\.modules)(?:\.\w+)?\.(?P<name>\w+)"
)
"""Modules of sentence-transformers itself: by the names that releases up to 5, and from there on, write."""

_DEEPEST = 4
"""Folders between modules.json and the Transformer that are looked through."""


@dataclass(frozen=True)
class Entry:
    """One entry of modules.json.

    Attributes:
        kind: as `module_kind` has it; empty where the entry names no class.
        folder: of its files, relative to modules.json; "" for that directory itself.
    """

    kind: str
    folder: str


def module_kind(name: str) -> str:
    """The class of a module: its last name if it is one of sentence-transformers' own, else the full name in quotes."""
    own = _OWN_CLASS.fullmatch(name)
    return own["name"] if own else repr(name)


def read_listing(root: Path) -> tuple[Entry, ...]:
    """The modules of a sentence-transformers directory, in order; none where it has no modules.json.

    Raises:
        InputError: modules.json cannot be read, is no list of modules, or names a folder outside the directory.
    """
    path = root / MODULES_FILE
    if not path.is_file():
        return ()
    try:
        entries = parse_json(path)
        if not isinstance(entries, list):
            raise ValueError("it must hold a list")
        modules = tuple(_entry(entry, index) for index, entry in enumerate(entries))
    except ValueError as error:
        raise InputError(f"{path} is not a valid list of modules: {error}. Mend or remove it.") from error
    for module in modules:
        folder = PurePosixPath(module.folder)
        if folder.is_absolute() or ".." in folder.parts:
            raise InputError(f"{path} names the folder {module.folder!r}, which is outside the checkpoint. Mend it.")
    return modules


def _entry(entry: object, index: int) -> Entry:
    if not isinstance(entry, dict):
        raise ValueError(f"entry {index} is no object")
    name, folder = entry.get("type", ""), entry.get("path")
    if not isinstance(folder, str):
        raise ValueError(f"the path of entry {index} is no text")
    if not isinstance(name, str):
        raise ValueError(f"the type of entry {index} is no text")
    normal = PurePosixPath(folder).as_posix()
    return Entry(module_kind(name) if name else "", "" if normal == "." else normal)


def flat_listing(root: Path) -> list[dict[str, Any]]:
    """What modules.json has to say where the Transformer's files lie beside it.

    Raises:
        InputError: as `read_listing`.
    """
    folder = _transformer(read_listing(root))
    entries: list[dict[str, Any]] = parse_json(root / MODULES_FILE)
    return [{**entry, "path": ""} if _entry(entry, 0).folder == folder else entry for entry in entries]


def transformer_folder(root: Path) -> Path:
    """The directory with configuration, weights and tokenizer: `root` itself, or the folder that modules.json names.

    Raises:
        InputError: as `read_listing`.
    """
    return root / (_transformer(read_listing(root)) or "")


def _transformer(modules: tuple[Entry, ...]) -> str | None:
    """The folder of the Transformer, else of whatever comes first; None where there are no modules."""
    named = [module for module in modules if module.kind == "Transformer"] or list(modules)
    return named[0].folder if named else None


def sentence_root(directory: Path) -> Path:
    """The directory with sentence-transformers' files, modules.json above all, of the one that `locate` gave.

    Args:
        directory: with the configuration of the Transformer.

    Returns:
        The directory above it whose modules.json names it as its Transformer; else `directory`.

    Raises:
        InputError: as `read_listing`, of a directory that is the checkpoint's.
    """
    if (directory / MODULES_FILE).is_file():
        return directory
    for start in dict.fromkeys((directory.absolute(), directory.resolve())):
        for root in start.parents[:_DEEPEST]:
            try:
                named = _transformer(read_listing(root))
            except InputError:
                if root != start.parent or not re.match(r"\d+_", start.name):
                    continue  # a file of that name, but not of this checkpoint
                raise
            if start.relative_to(root).as_posix() == named:
                return _as_given(directory, root)
    return directory


def _as_given(directory: Path, root: Path) -> Path:
    """`root`, written as the user wrote `directory` where that is possible: messages name what they know."""
    return next((parent for parent in directory.parents if parent.absolute() == root), root)
