"""What a search has measured, on the disk beside its output: after a kill the same command goes on where it was."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from typing import TYPE_CHECKING, Any, BinaryIO

from mra_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

__all__ = ["Memory", "memory_path"]

FORMAT = 1
_MEASURED = "measured.jsonl"
_LOCK = "lock"


def memory_path(output: Path) -> Path:
    """Where the search for `output` keeps what it measured: OUT -> .OUT.search beside it."""
    return output.absolute().with_name(f".{output.name}.search")


class Memory:
    """The directory of a search; make it with `Memory.open`.

    Attributes:
        path: the directory; others may put files of theirs there.
        found: measurements that an earlier run left.
    """

    def __init__(self, output: Path, role: str) -> None:
        self.path = memory_path(output)
        self.found = 0
        self._output = output
        self._role = role
        self._values: dict[str, list[float]] = {}

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, output: Path, settings: dict[str, Any], role: str = "the search keeps what it measured"
    ) -> Iterator[Memory]:
        """The directory that an earlier run of the same search left, or a new one.

        Args:
            output: what the search is for.
            settings: what decides the measurements, as plain JSON values; what other settings left is thrown away.
            role: of the directory, for a message: it is where this happens.

        Yields:
            It, locked. It is removed where the block ends without an error, or nothing was measured.

        Raises:
            InputError: another run is at it, or it cannot be written.
        """
        memory = cls(output, role)
        with memory._os_errors():
            memory.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(memory.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(
                    f"Another run is working on {output} at this moment ({memory.path} is locked). Wait for it, or choose another "
                    "output."
                ) from error
            with memory._os_errors():
                memory._begin({"format": FORMAT, **settings})
            try:
                yield memory
            except BaseException as error:
                if not memory._values:
                    shutil.rmtree(memory.path, ignore_errors=True)
                elif isinstance(error, KeyboardInterrupt) and not str(error):
                    kept = f"Interrupted; {len(memory._values)} measurements are kept in {memory.path}: the same command goes on."
                    raise KeyboardInterrupt(kept) from error
                raise
            shutil.rmtree(memory.path, ignore_errors=True)
        finally:
            os.close(lock)

    def get(self, name: str) -> list[float] | None:
        """What was measured under a name, None where nothing was."""
        return self._values.get(name)

    def put(self, measured: Sequence[tuple[str, list[float]]]) -> None:
        """Keeps measurements; they are on the disk when it returns.

        Raises:
            InputError: they cannot be written.
        """
        self._values |= dict(measured)
        with self._os_errors(), (self.path / _MEASURED).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(each) + "\n" for each in measured)
            file.flush()
            os.fsync(file.fileno())

    def write(self, name: str, write: Callable[[BinaryIO], object], what: str) -> None:
        """Keeps a file, whole or not at all; it is on the disk when it returns.

        Args:
            name: of the file.
            write: given the file, open; writes it.
            what: it stands for, as a measurement's name.

        Raises:
            InputError: it cannot be written.
        """
        path = self.path / name
        with self._os_errors():
            with path.with_suffix(".new").open("wb") as file:
                try:
                    write(file)
                except RuntimeError as error:  # torch makes one of its own of what the system says
                    raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
                file.flush()
                os.fsync(file.fileno())
            path.with_suffix(".new").replace(path)
        if what not in self._values:
            self.put([(what, [])])

    def _begin(self, settings: dict[str, Any]) -> None:
        path = self.path / _MEASURED
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        head = json.dumps(settings, sort_keys=True)
        if lines[:1] == [head]:
            for line in lines[1:]:
                with contextlib.suppress(ValueError, TypeError):  # the last one may have been cut off by a kill
                    name, values = json.loads(line)
                    self._values[name] = values
            self.found = len(self._values)
        else:
            for entry in self.path.iterdir():
                if entry.name != _LOCK:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        kept = "".join(json.dumps(each) + "\n" for each in self._values.items())
        path.with_suffix(".new").write_text(f"{head}\n{kept}", encoding="utf-8")
        path.with_suffix(".new").replace(path)

    @contextlib.contextmanager
    def _os_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self.path}, where {self._role}, could not be written: {error.strerror or error}. Free some "
                "space, or choose another output; the same command goes on."
            ) from error
