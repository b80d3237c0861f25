"""The work of `embed` in progress: vectors in a hidden directory beside the output, and a journal of what is in them.

Vectors are on the disk before the journal says so, and the journal says it with their checksum. What is left after a kill or a
power cut is therefore either whole or not in the journal.

Where the number of rows is known before, they lie where the output has them; pieces of texts lie in the order in which their
chunks were begun.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.embedding.layout import companion, npy_header
from mra_export.embedding.records import Done, Record, read_journal, runs_of
from mra_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mra_export.embedding.chunks import Source
    from mra_export.embedding.layout import Layout
    from mra_export.embedding.work import Part

__all__ = ["Partial", "partial_path", "rows_kept", "sync_directory"]

FORMAT = 2
VECTORS = "vectors.npy"
FACTS = "rows.npy"
JOURNAL = "journal.jsonl"
STATE = "state.json"
LOCK = "lock"

Array = np.ndarray[Any, Any]


def partial_path(output: Path) -> Path:
    """Where the work on `output` is kept: OUT.npy -> .OUT.npy.partial beside it."""
    return output.absolute().with_name(f".{output.name}.partial")


def rows_kept(output: Path, source: Source) -> int:
    """Rows that the journal on the disk says are done. After an interruption it knows better than the process."""
    done = Done()
    for record, _ in read_journal(partial_path(output) / JOURNAL, source):
        if record is not None and not done.has_any(record):
            done.add(record)
    return done.rows


class Partial:
    """The partial directory of an output; make it with `Partial.open`.

    Attributes:
        path: the directory.
        truncated: texts that were cut off, of the rows that are done.
        tokens: of these rows.
        computed: tokens that the model ran for them, padding included.
        found: rows that an earlier run left.
        published: whether the output is in its place.
        fresh: whether this run began it, so that nothing is lost with it while no row is done.
    """

    def __init__(self, output: Path, source: Source, layout: Layout) -> None:
        self.output = output
        self.path = partial_path(output)
        self.truncated = self.tokens = self.computed = 0
        self.found = 0
        self.published = False
        self.fresh = False
        self._source = source
        self._layout = layout
        self._done = Done()
        self._slots: dict[int, tuple[int, int]] = {}  # of pieces: chunk -> its first row in the file, its rows
        self._end = 0  # of the slots, in rows
        self._headers = self._header(VECTORS, source.rows), self._header(FACTS, source.rows)
        self._vectors = self._facts = self._journal = -1

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, output: Path, source: Source, layout: Layout, settings: dict[str, Any], *, force: bool
    ) -> Iterator[Partial]:
        """The partial directory of `output`: the one that an earlier run left, or a new one.

        Args:
            output: the file to be made.
            source: the input. It is the same if its files hold the same bytes, whatever their names.
            layout: of a row.
            settings: what else decides the vectors, as plain JSON values; a run with others is not continued.
            force: whether what does not fit is thrown away.

        Yields:
            It, locked. It is left on the disk if the block raises, unless no row is done.

        Raises:
            InputError: another run is at it, what is there is of another job, or the disk is full.
        """
        partial = cls(output, source, layout)
        state = {
            "format": FORMAT,
            "input": {"sha256": source.sha256, "bytes": source.bytes, "rows": source.rows},
            "chunks": len(source.chunks),
            "hidden_size": layout.hidden_size,
            "output_type": layout.output_type,
            **settings,
        }
        with contextlib.ExitStack() as stack:
            with _os_errors(output):
                partial.path.mkdir(parents=True, exist_ok=True)
                lock = os.open(partial.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            stack.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(
                    f"Another run is writing {output} at this moment ({partial.path} is locked). Wait for it, or choose "
                    "another output."
                ) from error
            stack.callback(partial._close)
            try:
                with _os_errors(output):
                    partial._begin(state, force=force)
                yield partial
            finally:
                if partial.fresh and not rows_kept(output, source):
                    shutil.rmtree(partial.path, ignore_errors=True)

    @property
    def rows(self) -> int:
        """Rows that are done."""
        return self._done.rows

    def done(self, chunk: int) -> frozenset[int]:
        """Places that are done of a chunk that is not done wholly."""
        return self._done.places(chunk)

    def is_done(self, chunk: int) -> bool:
        """Whether all rows of a chunk are done."""
        return self._done.whole(chunk)

    def write(self, part: Part) -> int:
        """Puts rows of a chunk on the disk, then into the journal; those that are done already are left out.

        Returns:
            How many were written.

        Raises:
            InputError: a vector is not finite, or not in the output's type.
        """
        if self.is_done(part.chunk) or not len((part := part.without(self.done(part.chunk))).places):
            return 0
        vectors, scales = self._layout.stored(part.vectors, part.facts[:, 0])
        pieces = [np.ascontiguousarray(vectors).view(np.uint8).reshape(len(vectors), -1)]
        if (facts := self._facts_of(part, scales)) is not None:
            pieces.append(facts.view(np.uint8).reshape(len(facts), -1))
        at, _ = self._slot(part.chunk) or (self._end, part.of)
        crc = 0
        for data in pieces:
            crc = zlib.crc32(data.tobytes(), crc)
        places = None if len(part.places) == part.of else part.places.tolist()
        counts = (int(part.cut.sum()), int(part.lengths.sum()), int(part.widths.sum()))
        record = Record(part.chunk, part.of, at, places, crc, *counts)
        with _os_errors(self.output):
            for name, data in zip((VECTORS, FACTS), pieces, strict=False):
                for first, last in runs_of(part.places):
                    block = data[first:last].tobytes()
                    _write_at(self._file(name), block, self._offset(name, at + int(part.places[first])))
                os.fdatasync(self._file(name))
            line = (json.dumps(asdict(record)) + "\n").encode()
            while line:
                line = line[os.write(self._journal, line) :]
            os.fdatasync(self._journal)
        self._keep(record)
        return len(part.places)

    def blocks(self, rows: int) -> Iterator[tuple[Array, Array | None]]:
        """The finished rows in their order, so many at a time: vectors in the output's type, and facts."""
        spans = (self._slot(chunk.index) or (0, 0) for chunk in self._source.chunks)
        held: list[tuple[int, int]] = []
        count = 0
        for at, length in _merged(spans):
            first = at
            while first < at + length:
                take = min(rows - count, at + length - first)
                held.append((first, take))
                count, first = count + take, first + take
                if count == rows:
                    yield self._rows_of(held)
                    held, count = [], 0
        if held:
            yield self._rows_of(held)

    def finish(self, rows: int) -> list[tuple[Path, Path]]:
        """The .npy files of the output, and where they belong: that of the vectors is the last.

        Args:
            rows: that are copied at a time, where they have to be brought into order.
        """
        files = [(VECTORS, self.output)]
        if self._layout.facts is not None:
            files.insert(0, (FACTS, companion(self.output)))
        if not self._layout.pieces:
            return [(self.path / name, target) for name, target in files]
        total = sum(length for _, length in self._slots.values())
        with _os_errors(self.output), contextlib.ExitStack() as stack:
            opened = {name: stack.enter_context((self.path / f"out.{name}").open("wb")) for name, _ in files}
            for name, file in opened.items():
                file.write(self._header(name, total, fixed=True))
            for vectors, facts in self.blocks(rows):
                opened[VECTORS].write(vectors.tobytes())
                if facts is not None:
                    opened[FACTS].write(facts.tobytes())
        return [(self.path / f"out.{name}", target) for name, target in files]

    def publish(self, files: list[tuple[Path, Path]]) -> None:
        """Makes finished files of this directory the output, the last one last, and removes the rest."""
        with _os_errors(self.output):
            for file, _ in files:
                descriptor = os.open(file, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            for file, target in files:
                file.replace(target)
            self.published = True
            sync_directory(self.path.parent)
        shutil.rmtree(self.path, ignore_errors=True)

    def _facts_of(self, part: Part, scales: Array | None) -> Array | None:
        if self._layout.facts is None:
            return None
        facts = np.zeros(len(part.places), self._layout.facts)
        for column, name in enumerate(("row", "chunk", "begin", "end")):
            if name in (self._layout.facts.names or ()):
                facts[name] = part.facts[:, column]
        if scales is not None:
            facts["scale"] = scales
        return facts

    def _slot(self, chunk: int) -> tuple[int, int] | None:
        """Where a chunk begins in the files, in rows, and how many it has; None for pieces that were not begun."""
        if self._layout.pieces:
            return self._slots.get(chunk)
        return self._source.chunks[chunk].first_row, self._source.chunks[chunk].rows

    def _keep(self, record: Record) -> None:
        self._done.add(record)
        self.truncated += record.truncated
        self.tokens += record.tokens
        self.computed += record.computed
        if self._layout.pieces:
            self._slots[record.chunk] = (record.at, record.of)
            self._end = max(self._end, record.at + record.of)

    def _header(self, name: str, rows: int, *, fixed: bool = False) -> bytes:
        """Of a file of the partial directory, empty where the number of rows is not known; or of the output itself."""
        if self._layout.pieces and not fixed:
            return b""
        if name == VECTORS:
            return npy_header(rows, self._layout.hidden_size, self._layout.dtype)
        return b"" if self._layout.facts is None else npy_header(rows, None, self._layout.facts)

    def _row_bytes(self, name: str) -> int:
        facts = self._layout.facts if name == FACTS else None
        return self._layout.row_bytes if facts is None else facts.itemsize

    def _names(self) -> tuple[str, ...]:
        return (VECTORS,) if self._layout.facts is None else (VECTORS, FACTS)

    def _file(self, name: str) -> int:
        return self._vectors if name == VECTORS else self._facts

    def _offset(self, name: str, row: int) -> int:
        return len(self._headers[name == FACTS]) + row * self._row_bytes(name)

    def _read(self, name: str, row: int, rows: int) -> bytes:
        return os.pread(self._file(name), rows * self._row_bytes(name), self._offset(name, row))

    def _rows_of(self, spans: list[tuple[int, int]]) -> tuple[Array, Array | None]:
        vectors = b"".join(self._read(VECTORS, at, rows) for at, rows in spans)
        matrix = np.frombuffer(vectors, self._layout.dtype).reshape(-1, self._layout.hidden_size)
        if self._layout.facts is None:
            return matrix, None
        return matrix, np.frombuffer(b"".join(self._read(FACTS, *span) for span in spans), self._layout.facts)

    def _begin(self, state: dict[str, Any], *, force: bool) -> None:
        old = _read_state(self.path / STATE)
        if old is not None and old != state:
            if not force:
                raise InputError(
                    f"{self.path} holds the work of another run: {_difference(old, state)}. Add --force to throw it away "
                    "and start anew, or run the command that it is from."
                )
            old = None
        if old is None or not self._is_whole():
            self.fresh = True
            (self.path / STATE).unlink(missing_ok=True)
            self._create()
            self._write_state(state)
        self._vectors = os.open(self.path / VECTORS, os.O_RDWR)
        if self._layout.facts is not None:
            self._facts = os.open(self.path / FACTS, os.O_RDWR)
        self._journal = os.open(self.path / JOURNAL, os.O_RDWR | os.O_APPEND)
        self._recover()

    def _is_whole(self) -> bool:
        """Whether the files have the shape that this job gives them."""
        if not (self.path / JOURNAL).is_file():
            return False
        for name in self._names():
            path, header = self.path / name, self._headers[name == FACTS]
            if not path.is_file():
                return False
            with path.open("rb") as file:
                right = file.read(len(header)) == header
            size = path.stat().st_size
            if not right or (size != self._offset(name, self._source.rows) and not self._layout.pieces):
                return False
        return True

    def _create(self) -> None:
        for name in self._names():
            with (self.path / name).open("wb") as file:
                if not self._layout.pieces:
                    # The space is taken at once: a disk that is too small says so now and not after hours.
                    os.posix_fallocate(file.fileno(), 0, self._offset(name, self._source.rows))
                file.write(self._headers[name == FACTS])
                file.flush()
                os.fsync(file.fileno())
        with (self.path / JOURNAL).open("wb") as file:
            os.fsync(file.fileno())

    def _write_state(self, state: dict[str, Any]) -> None:
        new = self.path / f"{STATE}.new"
        with new.open("w", encoding="utf-8") as file:
            json.dump(state, file, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path / STATE)
        for folder in (self.path, self.path.parent):
            sync_directory(folder)

    def _recover(self) -> None:
        """Reads the journal and keeps what the vectors' checksums confirm; its last line may be torn."""
        whole = 0
        for record, end in read_journal(self.path / JOURNAL, self._source):
            whole = end
            if record is None or not self._fits(record):
                continue
            crc = 0
            for name in self._names():
                for first, last in runs_of(np.array(record.rows)):
                    crc = zlib.crc32(self._read(name, record.at + record.rows[first], last - first), crc)
            if crc == record.crc32:  # rows without such a record are computed again
                self._keep(record)
        if whole < os.fstat(self._journal).st_size:
            os.ftruncate(self._journal, whole)
        self.found = self.rows

    def _fits(self, record: Record) -> bool:
        """Whether a record says where its rows are as this job has them, and nothing that another has said."""
        return self._slot(record.chunk) in (None, (record.at, record.of)) and not self._done.has_any(record)

    def _close(self) -> None:
        for descriptor in (self._vectors, self._facts, self._journal):
            if descriptor >= 0:
                os.close(descriptor)


def _merged(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Spans (at, length) where those that touch are one."""
    at = length = 0
    for begin, count in spans:
        if begin != at + length:
            yield at, length
            at, length = begin, 0
        length += count
    yield at, length


def sync_directory(path: Path) -> None:
    """Makes names in a directory last through a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _read_state(path: Path) -> dict[str, Any] | None:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs, in the words of the command line."""
    if old.get("input") != new["input"]:
        return "the input file was another one"
    if old.get("manifest_sha256") != new.get("manifest_sha256"):
        return "the bundle was another one"
    parts = [
        f"{key} was {json.dumps(old.get(key))}, now {json.dumps(new.get(key))}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    return "; ".join(parts)


@contextlib.contextmanager
def _os_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{output} could not be written: {reason}. What was done is kept; free some space and run the command again, or "
            "choose another path."
        ) from error
