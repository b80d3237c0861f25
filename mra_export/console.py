"""What people see: progress on standard error, tables on standard output."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.progress import Progress, TaskID

    from mra_export.bundle.manifest import Bundle
    from mra_export.parity.comparison import Comparison
    from mra_export.pipeline.bench import BenchRow
    from mra_export.pipeline.doctor import Diagnosis

__all__ = ["describe_bundle", "print_bench", "print_comparisons", "print_diagnosis", "print_recorded", "progress"]


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


def print_comparisons(comparisons: list[Comparison]) -> None:
    """A verdict a comparison, then its numbers; layers and cases only where something failed."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for comparison in comparisons:
        verdict = {True: "[green]PASSED[/]", False: "[bold red]FAILED[/]", None: "[yellow]NOT JUDGED[/]"}[comparison.ok]
        console.print(f"{verdict} {comparison.candidate} [dim]against[/] {comparison.reference}", soft_wrap=True)
        shown = []
        for name, value in comparison.metrics.items():
            if value is None or name in ("judged_rows", "rows"):
                continue
            limit = comparison.tolerance.get(name)
            sign = ">=" if name.startswith("cosine") else "<="
            bound = f" ({sign} {limit:g})" if limit is not None else ""
            shown.append(f"{name.replace('_', ' ')} {_number(name, value)}{bound}")
        if shown:
            console.print("  " + ", ".join(shown), soft_wrap=True)
        for note in comparison.notes:
            console.print(f"  note: {note}", soft_wrap=True)
        if comparison.ok is False and comparison.layers:
            table = Table("layer", "input error", "operator error", "same blocks", "largest gap swapped", "problem")
            for layer in comparison.layers:
                table.add_row(
                    layer.name,
                    f"{layer.input_error:.1e}",
                    f"{layer.operator_error:.1e}",
                    f"{layer.selection_agreement:.2%}",
                    f"{layer.swapped_gap:.1e}",
                    layer.problem or "",
                )
            console.print(table)


def describe_bundle(bundle: Bundle) -> str:
    """What is in a bundle, on one line, and what is missing of it."""
    size = sum(entry["bytes"] for entry in bundle.manifest["files"].values())
    is_standard = bundle.manifest["model"]["operator"]["nodes"] == 0
    how = "standard operators" if is_standard else "native operator" if bundle.library else "function body"
    runs = [f"ONNX Runtime {bundle.variants[0].precision} ({how})"]
    runs += [f"{v.file.name} {v.precision} ({v.backend} {v.backend_version}, {v.gpu})" for v in bundle.variants[1:]]
    count = len(bundle.manifest["files"])
    text = f"{bundle.path}: {bundle.task}, {', '.join(runs)}; {count} files, {size / 2**20:.1f} MiB"
    notes = []
    if bundle.library is None and not is_standard:
        notes.append(
            "no libmra_onnxruntime.so: ONNX Runtime runs it slower. Run `mra-export build` and write it again."
        )
    if bundle.tokenizer_file is None:
        notes.append("no tokenizer.json: clients have to bring token ids.")
    if bundle.task == "feature-extraction" and bundle.pooling is None:
        notes.append("no pooling: it gives token vectors only. Export the checkpoint with --pooling mean.")
    return text + "".join(f"\n  note: {note}" for note in notes)


def print_recorded(bundle: Bundle) -> None:
    """The parity figures that a bundle's manifest has from its making."""
    from rich.console import Console

    console = Console(highlight=False)
    if bundle.manifest["parity"] is None:
        console.print("RECORDED nothing: the bundle was written without a check.")
    for made in bundle.manifest["parity"] or []:
        verdict = {True: "passed", False: "failed", None: "not judged"}[made["ok"]]
        numbers = [
            f"{name.replace('_', ' ')} {_number(name, value)}"
            for name, value in sorted(made["metrics"].items())
            if value is not None and name in ("relative_error", "max_abs_error", "cosine_min", "operator_error")
        ]
        text = f"RECORDED {verdict}: {made['candidate']} against {made['reference']}: {', '.join(numbers)}"
        console.print(text, soft_wrap=True, markup=False)


def print_bench(rows: list[BenchRow]) -> None:
    """Latency and throughput, a line a backend and size."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table("batch", "tokens", "backend", "ms", "ms, 90 %", "tokens/s", "vs dense", box=SIMPLE)
    table.columns[2].no_wrap = True
    for index, row in enumerate(rows):
        table.add_row(
            str(row.batch),
            str(row.seq_len),
            row.backend,
            f"{row.latency_ms:.1f}",
            f"{row.latency_p90_ms:.1f}",
            f"{row.tokens_per_second:,.0f}",
            f"{row.faster_than_dense:.2f}x",
            end_section=index + 1 == len(rows)
            or (rows[index + 1].batch, rows[index + 1].seq_len) != (row.batch, row.seq_len),
        )
    Console(highlight=False).print(table)


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """What `doctor` found."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    table = Table("", "found", box=None, pad_edge=False)
    for name, version in diagnosis.versions.items():
        table.add_row(name, version or "[dim]not installed[/]")
    for name, path in diagnosis.libraries.items():
        table.add_row(f"library for {name}", path or "[dim]not built[/]")
    if diagnosis.plugin is not None:
        table.add_row(
            "TensorRT plugin",
            "version {version} for GPUs {architectures}; headers of TensorRT {tensorrt_headers}, CUDA {cuda_runtime}; "
            "exports {exports}".format(**diagnosis.plugin),
        )
    for name, family in diagnosis.families.items():
        options = "".join(f"\n--option {key}=...: {text}" for key, text in family["options"].items())
        table.add_row(f"models of type {name}", escape(family["title"] + options))
    table.add_row("GPU", ", ".join(diagnosis.gpus) or "[dim]none[/]")
    console.print(table)
    for problem in diagnosis.problems:
        kind = "[bold red]missing[/]" if problem.essential else "[yellow]optional[/]"
        console.print(f"{kind} {problem.text}\n  fix: {problem.fix}", soft_wrap=True)
    if not diagnosis.problems:
        console.print("[green]Nothing is missing.[/]")


def _number(name: str, value: float) -> str:
    if name.startswith("cosine"):
        return f"{value:.6f}"
    return f"{value:.2%}" if name.endswith("agreement") else f"{value:.1e}"
