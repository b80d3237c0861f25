"""The work of `embed` in progress: vectors in a hidden directory beside the output, and a journal of what is in them.

A chunk's vectors are on the disk before the journal says so, and the journal says it with their checksum. What is left after
a kill or a power cut is therefore either whole or not in the journal.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mra_export.embedding.chunks import Chunk, InputFile
    from mra_export.embedding.encoder import Encoded

__all__ = ["Partial", "Record", "npy_header", "partial_path", "rows_kept", "sync_directory"]

FORMAT = 1
VECTORS = "vectors.npy"
JOURNAL = "journal.jsonl"
STATE = "state.json"
LOCK = "lock"


@dataclass(frozen=True)
class Record:
    """A line of the journal: a chunk whose vectors are on the disk.

    Attributes:
        chunk: its index.
        crc32: of its vectors' bytes.
        truncated: as in `Encoded`.
        tokens: as in `Encoded`.
        computed: as in `Encoded`.
    """

    chunk: int
    crc32: int
    truncated: int
    tokens: int
    computed: int


def partial_path(output: Path) -> Path:
    """Where the work on `output` is kept: OUT.npy -> .OUT.npy.partial beside it."""
    return output.absolute().with_name(f".{output.name}.partial")


def rows_kept(output: Path, source: InputFile) -> int:
    """Rows that the journal on the disk says are done. After an interruption it knows better than the process."""
    records, _ = _read_journal(partial_path(output) / JOURNAL, source)
    return sum(source.chunks[index].rows for index in {record.chunk for record in records})


def npy_header(rows: int, columns: int) -> bytes:
    """The header of a float32 .npy file of that shape, as NumPy writes it."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (rows, columns)})
    return buffer.getvalue()


class Partial:
    """The partial directory of an output; make it with `Partial.open`.

    Attributes:
        path: the directory.
        records: of the chunks that are done, by index.
        found: rows that an earlier run left.
        published: whether the output is in its place.
        fresh: whether this run began it, so that nothing is lost with it while no chunk is done.
    """

    def __init__(self, output: Path, source: InputFile, hidden_size: int) -> None:
        self.output = output
        self.path = partial_path(output)
        self.records: dict[int, Record] = {}
        self.found = 0
        self.published = False
        self.fresh = False
        self._source = source
        self._hidden_size = hidden_size
        self._header = npy_header(source.rows, hidden_size)
        self._vectors = self._journal = -1

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, output: Path, source: InputFile, hidden_size: int, settings: dict[str, Any], *, force: bool
    ) -> Iterator[Partial]:
        """The partial directory of `output`: the one that an earlier run left, or a new one.

        Args:
            output: the file to be made.
            source: the input.
            hidden_size: length of a vector.
            settings: what else decides the vectors, as plain JSON values; a run with others is not continued.
            force: whether what does not fit is thrown away.

        Yields:
            It, locked. It is left on the disk if the block raises, unless no chunk is done.

        Raises:
            InputError: another run is at it, what is there is of another job, or the disk is full.
        """
        partial = cls(output, source, hidden_size)
        state = {
            "format": FORMAT,
            "input": {"sha256": source.sha256, "bytes": source.bytes, "rows": source.rows},
            "chunks": len(source.chunks),
            "hidden_size": hidden_size,
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
        return sum(self._source.chunks[index].rows for index in self.records)

    @property
    def vectors(self) -> Path:
        """The .npy file; rows that are not done are zeros."""
        return self.path / VECTORS

    def write(self, chunk: Chunk, encoded: Encoded) -> None:
        """Puts the vectors of a chunk on the disk, then into the journal.

        Raises:
            InputError: a vector is not finite.
        """
        finite = np.isfinite(encoded.vectors).all(axis=1)
        if not finite.all():
            row = chunk.first_row + int(np.flatnonzero(~finite)[0])
            raise InputError(
                f"The vector of row {row} has values that are not finite. Run `mra-export check` on the bundle's model; "
                "in fp16 it may overflow where fp32 does not."
            )
        data = np.ascontiguousarray(encoded.vectors, dtype="<f4").tobytes()
        record = Record(chunk.index, zlib.crc32(data), encoded.truncated, encoded.tokens, encoded.computed)
        with _os_errors(self.output):
            _write_at(self._vectors, data, self._offset(chunk.first_row))
            os.fdatasync(self._vectors)
            line = (json.dumps(asdict(record)) + "\n").encode()
            while line:
                line = line[os.write(self._journal, line) :]
            os.fdatasync(self._journal)
        self.records[chunk.index] = record

    def read(self, row: int, rows: int) -> np.ndarray[Any, Any]:
        """Vectors of finished rows, float32 [rows, hidden_size]."""
        data = os.pread(self._vectors, rows * self._hidden_size * 4, self._offset(row))
        return np.frombuffer(data, "<f4").reshape(rows, self._hidden_size)

    def publish(self, file: Path) -> None:
        """Makes a finished file of this directory the output, and removes the rest."""
        with _os_errors(self.output):
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            file.replace(self.output)
            self.published = True
            sync_directory(self.path.parent)
        shutil.rmtree(self.path, ignore_errors=True)

    def _offset(self, row: int) -> int:
        return len(self._header) + row * self._hidden_size * 4

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
        self._vectors = os.open(self.vectors, os.O_RDWR)
        self._journal = os.open(self.path / JOURNAL, os.O_RDWR | os.O_APPEND)
        self._recover()

    def _is_whole(self) -> bool:
        """Whether the files have the shape that this job gives them."""
        if not (self.path / JOURNAL).is_file() or not self.vectors.is_file():
            return False
        with self.vectors.open("rb") as file:
            right = file.read(len(self._header)) == self._header
        return right and self.vectors.stat().st_size == self._offset(self._source.rows)

    def _create(self) -> None:
        with self.vectors.open("wb") as file:
            # The space is taken at once: a disk that is too small says so now and not after hours.
            os.posix_fallocate(file.fileno(), 0, self._offset(self._source.rows))
            file.write(self._header)
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
        records, whole = _read_journal(self.path / JOURNAL, self._source)
        if whole < os.fstat(self._journal).st_size:
            os.ftruncate(self._journal, whole)
        for record in records:  # a chunk without a record is computed again
            chunk = self._source.chunks[record.chunk]
            kept = os.pread(self._vectors, chunk.rows * self._hidden_size * 4, self._offset(chunk.first_row))
            if zlib.crc32(kept) == record.crc32:
                self.records[record.chunk] = record
        self.found = self.rows

    def _close(self) -> None:
        for descriptor in (self._vectors, self._journal):
            if descriptor >= 0:
                os.close(descriptor)


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


def _read_journal(path: Path, source: InputFile) -> tuple[list[Record], int]:
    """The records of a journal, and the bytes of its whole lines; what is no record of this input is left out."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    whole = data.rfind(b"\n") + 1
    records = []
    for line in data[:whole].splitlines():
        try:
            record = Record(**json.loads(line))
            if 0 <= record.chunk < len(source.chunks):
                records.append(record)
        except (ValueError, TypeError):
            continue
    return records, whole


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
