"""Which files an input has: those that are named, those of a pattern or a folder, and what folders say of their rows."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from mra_export.embedding.chunks import InputFile
from mra_export.embedding.compressed import COMPRESSIONS, compression_of
from mra_export.embedding.delimited import DELIMITERS
from mra_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["INPUT_FORMATS", "INPUT_KINDS", "STANDARD_INPUT", "find_files"]

INPUT_KINDS = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
"""Suffix -> kind of file."""

INPUT_FORMATS = tuple(dict.fromkeys(INPUT_KINDS.values()))

STANDARD_INPUT = "-"

_TABLES = {"_delta_log": "Delta Lake", ".hoodie": "Hudi"}
"""Folder within the folder of a table -> format."""

_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


def find_files(
    sources: Sequence[Path | str],
    *,
    input_format: str | None = None,
    delimiter: str | None = None,
    spooled: Path | None = None,
) -> tuple[tuple[InputFile, ...], bool]:
    """The files of an input, in their order, not yet read.

    Several are taken as they are named. Those of a pattern or a folder are sorted; a folder is searched with all folders in it,
    but for names that begin with a dot or an underscore, which pyarrow.dataset, Spark and Hive pass over too; so do patterns,
    unless they name them. Names `key=value` of folders, below a folder that is given or in the path of a file, are columns:
    integers where all values are, else strings.

    Args:
        sources: files, patterns with `*`, `?` or `[...]`, folders; "-" for standard input.
        input_format: kind of all files, one of `INPUT_FORMATS`; None for what their names say.
        delimiter: of csv and tsv, a tab also as a backslash and a t; None for comma and tab.
        spooled: the file that holds standard input.

    Returns:
        The files, and whether they are more than one file by its name.

    Raises:
        InputError: a file is not there or of no known kind, or nothing fits a pattern.
    """
    if input_format is not None and input_format not in INPUT_FORMATS:
        raise InputError(f"input_format={input_format!r} must be one of {', '.join(INPUT_FORMATS)}.")
    delimiter = "\t" if delimiter == r"\t" else delimiter  # as it comes from a shell
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n' or not delimiter.isascii()):
        raise InputError(f"delimiter={delimiter!r} must be one ASCII character, and no quotation mark or line feed.")
    if not sources:
        raise InputError("No INPUT is given. Name a file, a pattern, a folder, or - for standard input.")
    found: list[tuple[Path, Path | None]] = []
    for source in sources:
        found += _expand(Path(source))
    named = len(sources) > 1 or any(base is not None for _, base in found)
    partitions = _partitions(found)
    files = []
    for (path, _), partition in zip(found, partitions, strict=True):
        if str(path) == STANDARD_INPUT and spooled is not None:
            files.append(_file(spooled, "standard input", input_format, delimiter, partition))
        else:
            files.append(_file(path, str(path), input_format, delimiter, partition))
    return tuple(files), named


def _expand(source: Path) -> list[tuple[Path, Path | None]]:
    """Files, and the folder below which their folders' names count."""
    text = str(source)
    if text == STANDARD_INPUT:
        return [(source, None)]
    if source.is_dir():
        for name, what in _TABLES.items():
            if (source / name).is_dir():
                raise InputError(
                    f"{source} is a table of {what}, whose files also hold rows that were deleted or changed. Write it out as "
                    "plain parquet with the program that it is from."
                )
        inside = sorted(_walk(source))
        if not inside:
            raise InputError(f"{source} is a folder without files.")
        return [(path, source) for path in inside]
    if not source.exists() and glob.has_magic(text):
        matched = sorted(Path(name) for name in glob.glob(text, recursive=True))
        fixed = re.split(r"[*?[]", text, maxsplit=1)[0]
        fixed = fixed[: fixed.rfind("/") + 1]
        base = Path(fixed or ".")
        if not re.search("(^|/)_", text[len(fixed) :]):
            matched = [path for path in matched if not any(x.startswith("_") for x in path.relative_to(base).parts)]
        if files := [path for path in matched if not path.is_dir()]:
            return [(path, base) for path in files]
        raise InputError(f"No file fits the pattern {text}." + (" It fits folders; end it in /*." if matched else ""))
    return [(source, None)]


def _walk(folder: Path) -> list[Path]:
    paths = []
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        paths += [Path(here, name) for name in names if not name.startswith((".", "_"))]
    return paths


def _file(
    path: Path,
    name: str,
    input_format: str | None,
    delimiter: str | None,
    partition: tuple[tuple[str, str | int | None], ...],
) -> InputFile:
    if not path.exists():
        raise InputError(f"{name} does not exist.")
    if not path.is_file():
        raise InputError(
            f"{name} is not a regular file. It is read twice: save it as a file first, or pipe it in: `… | mra-export embed "
            "BUNDLE - --input-format FORMAT`."
        )
    inner, suffix = os.path.splitext(path.name.lower())
    said = COMPRESSIONS.get(suffix, "")
    if said:
        suffix = os.path.splitext(inner)[1]
    kind = input_format or INPUT_KINDS.get(suffix)
    if kind is None:
        raise InputError(
            f"{name} is of a kind that embed does not read. Give a {', '.join(INPUT_KINDS)} file, each but .parquet also with "
            f"{', '.join(COMPRESSIONS)} at the end, or say what it is with --input-format; of a folder take some by a pattern."
        )
    if kind == "parquet":
        if said:
            raise InputError(f"{name} is packed once more; a parquet file packs its columns itself. Unpack it.")
        return InputFile(path.absolute(), name, kind, partition=partition)
    try:
        compression = compression_of(path)
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}.") from error
    if said and not compression:
        raise InputError(
            f"{name} is not compressed, though its name ends in {suffix_of(path)}. Rename it, or copy it again."
        )
    delimiter = (delimiter or DELIMITERS[kind]) if kind in DELIMITERS else ""
    return InputFile(path.absolute(), name, kind, compression, delimiter, partition)


def suffix_of(path: Path) -> str:
    """The last suffix of a name."""
    return path.suffix.lower()


def _partitions(found: list[tuple[Path, Path | None]]) -> list[tuple[tuple[str, str | int | None], ...]]:
    texts: list[dict[str, str | None]] = []
    for path, base in found:
        parts = (path if base is None else path.relative_to(base)).parent.parts
        pairs = [part.split("=", 1) for part in parts if "=" in part]
        texts.append({key: None if value == _NO_VALUE else unquote(value) for key, value in pairs if key})
    given = {key: [each[key] for each in texts if each.get(key) is not None] for each in texts for key in each}
    whole = {key: all(re.fullmatch(r"-?\d{1,18}", str(value)) for value in values) for key, values in given.items()}
    return [
        tuple((key, int(value) if value is not None and whole[key] else value) for key, value in each.items())
        for each in texts
    ]
