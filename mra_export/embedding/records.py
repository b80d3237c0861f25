"""Lines of the journal of `embed`: what of the output is on the disk."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mra_export.embedding.chunks import Source

__all__ = ["Done", "Record", "read_journal", "runs_of"]


@dataclass(frozen=True)
class Record:
    """A line of the journal: rows of a chunk whose vectors are on the disk.

    Attributes:
        chunk: its index.
        of: rows of the output that the whole chunk has.
        at: where the first of them is, in rows of the file.
        places: which of them these are, ascending; None for all.
        crc32: of their vectors' bytes, and then of those of their facts.
        truncated: texts that were longer than the maximum length and were cut.
        tokens: of the texts, after that.
        computed: tokens that the model ran, padding included.
    """

    chunk: int
    of: int
    at: int
    places: list[int] | None
    crc32: int
    truncated: int
    tokens: int
    computed: int

    @property
    def rows(self) -> range | list[int]:
        """Its places."""
        return range(self.of) if self.places is None else self.places


class Done:
    """Which rows of which chunks are done; of chunks that are done wholly nothing but their number is kept.

    Attributes:
        rows: that are done.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._whole: set[int] = set()
        self._partly: dict[int, set[int]] = {}

    def add(self, record: Record) -> None:
        """The rows of a record, none of which is done."""
        self.rows += len(record.rows)
        have = self._partly.setdefault(record.chunk, set())
        have.update(record.rows)
        if len(have) == record.of:
            del self._partly[record.chunk]
            self._whole.add(record.chunk)

    def has_any(self, record: Record) -> bool:
        """Whether rows of a record are done."""
        return record.chunk in self._whole or not self._partly.get(record.chunk, set()).isdisjoint(record.rows)

    def whole(self, chunk: int) -> bool:
        """Whether all rows of a chunk are done."""
        return chunk in self._whole

    def places(self, chunk: int) -> frozenset[int]:
        """Places that are done of a chunk that is not done wholly."""
        return frozenset(self._partly.get(chunk, ()))


def read_journal(path: Path, source: Source) -> Iterator[tuple[Record | None, int]]:
    """The records of a journal, and the bytes up to the end of each line; a torn last line is left out.

    What is no record of this input is None.
    """
    end = 0
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            end += len(line)
            yield _record(line, source), end


def _record(line: bytes, source: Source) -> Record | None:
    try:
        record = Record(**json.loads(line))
        rows = record.rows
        fits = 0 <= record.chunk < len(source.chunks) and len(rows) and 0 <= rows[0] <= rows[-1] < record.of
    except (ValueError, TypeError):
        return None
    return record if fits else None


def runs_of(places: np.ndarray[Any, Any]) -> Iterator[tuple[int, int]]:
    """First and last (excluded) index of each run of places that follow one another."""
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    edges = [0, *breaks.tolist(), len(places)]
    yield from itertools.pairwise(edges)
