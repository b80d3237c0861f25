"""Progress on standard error."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.progress import Progress, TaskID

__all__ = ["progress"]


@contextmanager
def progress(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Shows what is being done, on standard error: a moving line on a terminal, one line a step elsewhere.

    Args:
        quiet: show nothing.

    Yields:
        A function that takes the text of the step that begins.
    """
    if quiet:
        yield lambda text: None
        return
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        with console.status("") as status:
            yield lambda text: status.update(text)
    else:
        yield lambda text: print(text, file=sys.stderr, flush=True)


class _Rows:
    """Progress over the rows of a file, for `rows_progress`: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console | None, every: float) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._console = console
        self._every = every
        self._told = 0.0
        self._begun = 0.0
        self._rows = self._size = self._all_rows = self._all_size = self._first = 0

    def step(self, text: str) -> None:
        """Something begins."""
        self.stop()
        if self._console is not None:
            self._console.print(text, soft_wrap=True, markup=False)

    def start(self, rows: int, size: int, *, rows_done: int, size_done: int) -> None:
        """The rows begin: how many, of how many bytes, and what an earlier run did of both."""
        self._rows, self._size, self._all_rows, self._all_size = rows_done, size_done, rows, size
        self._first = rows_done
        self._begun = self._told = time.monotonic()
        if self._console is None or not self._console.is_terminal:
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            BarColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=size or None, completed=size_done, shown=self._shown())

    def advance(self, rows: int, size: int) -> None:
        """So many rows and bytes more."""
        self._rows += rows
        self._size += size
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._size, shown=self._shown())
        elif self._console is not None and time.monotonic() - self._told >= self._every:
            self._told = time.monotonic()
            self._console.print(self._shown(), soft_wrap=True)

    def stop(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _shown(self) -> str:
        seconds = time.monotonic() - self._begun
        speed = (self._rows - self._first) / seconds if seconds > 0 else 0.0
        read = f"{self._size / 2**20:,.1f} of {self._all_size / 2**20:,.1f} MiB"
        return f"{self._rows:,} of {self._all_rows:,} rows, {speed:,.0f} rows/s, {read}"


@contextmanager
def rows_progress(*, quiet: bool, every: float = 30.0) -> Iterator[_Rows]:
    """As `progress`, for work that goes over the rows of a file: rows, rows a second, bytes read, time left.

    Args:
        quiet: show nothing.
        every: seconds between two lines where standard error is no terminal.

    Yields:
        What `embed` takes as its watcher.
    """
    from rich.console import Console

    shown = _Rows(None if quiet else Console(stderr=True, highlight=False), every)
    try:
        yield shown
    finally:
        shown.stop()
