"""Text that every Python brings: the documentation in its standard library, as long texts and as a set for retrieval.

The sources are read and parsed, not imported. Another release of Python has somewhat other texts, the same one the same.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sysconfig
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from mra_export.fidelity.retrieval import Queries

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["builtin_texts", "retrieval_set"]

_LEFT_OUT = (
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "ensurepip",
)
_LEAST_QUERY, _LEAST_DOCUMENT = 15, 200
"""Characters of a first line and of what follows it."""
_PARTS = {"train": (0, 1), "held-out": (2,), "all": (0, 1, 2)}
"""Name -> remainders of a module's hash that belong to it."""


def builtin_texts() -> list[str]:
    """A text for each module of the part "train": its docstrings one after the other, from some words to many thousand."""
    return ["\n\n".join(text for _, text in found) for _, found in _part("train", ())]


def retrieval_set(
    part: str = "all", *, roots: Sequence[Path] = (), whole_modules: bool = False, least: int = _LEAST_DOCUMENT
) -> tuple[dict[str, str], Queries]:
    """Docstrings with their first line as the query and the rest as the document that it is to find.

    A docstring counts if its first line has 15 characters and the rest enough, and no other has the same first line or rest.

    Args:
        part: "train", "held-out" or "all". The two share no document and no module: which one a module belongs to follows from its
            name.
        roots: folders with Python sources; empty for the standard library.
        whole_modules: whether a document is what is left of all docstrings of a module, so that documents are long.
        least: characters that a document has.

    Returns:
        The documents by their names, and the queries, which have the names of their documents.
    """
    pairs: list[tuple[str, str, str]] = []
    for module, found in _part(part, roots):
        if whole_modules:
            found = (("", "\n\n".join(text for _, text in found)),) if found[0][0] == "" else ()
        for name, text in found:
            first, _, rest = text.partition("\n")
            if len(first.strip()) >= _LEAST_QUERY and len(rest.strip()) >= least:
                pairs.append((f"{module}.{name}".rstrip("."), first.strip(), rest.strip()))
    names, queries, texts = (Counter(each) for each in zip(*pairs, strict=True)) if pairs else [Counter()] * 3
    kept = [(n, q, t) for n, q, t in pairs if names[n] == queries[q] == texts[t] == 1]
    asked = Queries({name: query for name, query, _ in kept}, {name: {name: 1} for name, _, _ in kept})
    return {name: text for name, _, text in kept}, asked


def _part(part: str, roots: Sequence[Path]) -> Iterator[tuple[str, tuple[tuple[str, str], ...]]]:
    """The modules that belong to a part, as `_modules` has them."""
    for root in roots or (_standard_library(),):
        for module, found in _modules(root):
            if hashlib.sha256(module.encode()).digest()[0] % 3 in _PARTS[part]:
                yield module, found


def _standard_library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


@functools.cache
def _modules(root: Path) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """Name of each module in a folder with documentation, and (name within it, docstring)."""
    read = []
    for path in _sources(root):
        parts = path.relative_to(root).with_suffix("").parts
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escapes in old sources
                tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        if found := tuple(_docstrings(tree)):
            read.append((".".join(parts).removesuffix(".__init__"), found))
    return tuple(read)


def _sources(folder: Path) -> Iterator[Path]:
    """The sources in a folder and those within it, but tests and what was installed beside a library."""
    for path in sorted(folder.iterdir()):
        if path.name in _LEFT_OUT or path.stem.startswith("test_") or path.is_symlink():
            continue
        if path.is_dir():
            yield from _sources(path)
        elif path.suffix == ".py":
            yield path


def _docstrings(node: ast.AST, name: str = "") -> Iterator[tuple[str, str]]:
    """The docstrings of a module, and of its classes and functions that are not in a function."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if text := ast.get_docstring(node):
            yield name, text
        for each in () if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else node.body:
            if isinstance(each, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _docstrings(each, f"{name}.{each.name}".lstrip("."))
