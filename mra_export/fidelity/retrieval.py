"""Queries with the documents that they are to find, and how well vectors find them, as ir-measures counts it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.errors import InputError
from mra_export.optional import require
from mra_export.schema import shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mra_export.trace import Array

__all__ = ["Queries", "read_identified", "read_queries", "read_set", "require_measures", "scores"]

DEPTH = 100
"""Documents of a query that are ranked."""
_ID_FIELDS = ("_id", "id")


@dataclass(frozen=True)
class Queries:
    """Queries of which it is known what they are to find.

    Attributes:
        texts: id -> text.
        relevant: id of a query -> id of a document -> how relevant it is, at least 1.
    """

    texts: dict[str, str]
    relevant: dict[str, dict[str, int]]


def require_measures() -> Any:
    """The module ir_measures.

    Raises:
        DependencyError: it is not installed.
    """
    text = "Retrieval is measured by ir-measures, which is not installed. Install it with `pip install 'mra-export[retrieval]'`."
    return require("ir_measures", text)


def read_identified(path: Path) -> dict[str, str]:
    """Texts by their ids, of a .jsonl file as BEIR has it: objects with `_id` (or `id`), `text`, and perhaps a `title` before it.

    Raises:
        InputError: the file cannot be read, or a line is not such an object; the message names the line.
    """
    found: dict[str, str] = {}
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where} is not JSON: {error}. With queries the texts are a .jsonl file.") from error
        name = next((entry[key] for key in _ID_FIELDS if key in entry), None) if isinstance(entry, dict) else None
        if not isinstance(name, str | int) or isinstance(name, bool) or not isinstance(entry.get("text"), str):
            raise InputError(f"{where}: {shown(entry)} must be an object with `_id` and `text`, both texts.")
        if str(name) in found:
            raise InputError(f"{where}: the id {str(name)!r} is there twice. Give each text its own.")
        title = entry.get("title")
        found[str(name)] = f"{title} {entry['text']}" if isinstance(title, str) and title else entry["text"]
    if not found:
        raise InputError(f"{path} is empty.")
    return found


def read_queries(queries: Path, qrels: Path, documents: Mapping[str, str]) -> Queries:
    """Queries and what they are to find.

    Args:
        queries: as for `read_identified`.
        qrels: lines of query, document and score with tabs between them, below a heading (BEIR), or of query, a number, document
            and score with blanks (TREC). A score of 0 or less is not relevant.
        documents: id -> text.

    Returns:
        The queries that have a document among these.

    Raises:
        InputError: a file cannot be read, or names what is not there; the message names the line.
    """
    texts = read_identified(queries)
    relevant: dict[str, dict[str, int]] = {}
    for number, line in _lines(qrels):
        parts = line.split("\t") if "\t" in line else line.split()
        try:
            query, document, score = parts if len(parts) == 3 else (parts[0], parts[2], parts[3])
            value = int(float(score))
        except (ValueError, IndexError) as error:
            if number == 1 and len(parts) == 3:
                continue  # the heading
            raise InputError(
                f"{qrels}, line {number}: {line[:60]!r} must be query, document and score with tabs, or TREC's four columns."
            ) from error
        for name, known, path in ((query, texts, queries), (document, documents, "the texts")):
            if name not in known:
                raise InputError(
                    f"{qrels}, line {number}: there is no {name!r} in {path}. Give files that belong together."
                )
        if value > 0:
            relevant.setdefault(query, {})[document] = value
    if not relevant:
        raise InputError(f"{qrels} has no query with a relevant document, so nothing can be found.")
    return Queries({name: text for name, text in texts.items() if name in relevant}, relevant)


def read_set(texts: Path, queries: Path | None, qrels: Path | None) -> tuple[dict[str, str], Queries] | None:
    """Texts by their ids, and the queries that are to find them; None where no file of queries is given.

    Raises:
        InputError: as `read_identified` and `read_queries`, or only one of the two files is given.
    """
    if (queries is None) != (qrels is None):
        raise InputError("Queries go with what they are to find: give both --queries and --qrels, or neither.")
    if queries is None or qrels is None:
        return None
    documents = read_identified(texts)
    return documents, read_queries(queries, qrels, documents)


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines with something in them, by their numbers from 1."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}. It is to be a text file in UTF-8.") from error
    return [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def scores(queries: Queries, query_vectors: Array, names: list[str], vectors: Array) -> dict[str, float]:
    """How well queries find their documents by the cosine.

    Args:
        queries: in the order of their vectors.
        query_vectors: [queries, width], of length 1.
        names: ids of the documents.
        vectors: [documents, width], of length 1.

    Returns:
        Measure -> mean over the queries: "nDCG@10", "RR@10", "R@10" and "R@100" of ir-measures.

    Raises:
        DependencyError: ir-measures is not installed.
    """
    measures = require_measures()
    run: dict[str, dict[str, float]] = {}
    at_once = 256
    order = list(queries.texts)
    for first in range(0, len(order), at_once):
        near = query_vectors[first : first + at_once] @ vectors.T
        for row, query in zip(near, order[first : first + at_once], strict=True):
            best = np.argsort(-row, kind="stable")[:DEPTH]
            run[query] = {names[place]: float(row[place]) for place in best}
    wanted = [measures.nDCG @ 10, measures.RR @ 10, measures.R @ 10, measures.R @ 100]
    found = measures.calc_aggregate(wanted, queries.relevant, run)
    return {str(each): float(found[each]) for each in wanted}
