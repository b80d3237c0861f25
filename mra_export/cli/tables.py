"""Results as people read them: tables and lines on standard output."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mra_export.bundle.manifest import Bundle
    from mra_export.parity.comparison import Comparison
    from mra_export.pipeline.bench import BenchResult, BenchRow
    from mra_export.pipeline.doctor import Diagnosis

__all__ = [
    "describe_bundle",
    "describe_fastest",
    "print_bench",
    "print_comparisons",
    "print_diagnosis",
    "print_recorded",
]


def print_comparisons(comparisons: list[Comparison]) -> None:
    """A verdict a comparison, then its numbers; layers and cases only where something failed."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    for comparison in comparisons:
        verdict = {True: "[green]PASSED[/]", False: "[bold red]FAILED[/]", None: "[yellow]NOT JUDGED[/]"}[comparison.ok]
        console.print(
            f"{verdict} {escape(comparison.candidate)} [dim]against[/] {escape(comparison.reference)}", soft_wrap=True
        )
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
            console.print(f"  note: {note}", soft_wrap=True, markup=False)
        if comparison.ranges:
            each = (f"{layer.name} {layer.largest:.4g} ({layer.tensor})" for layer in comparison.ranges)
            console.print(f"  largest values: {', '.join(each)}", soft_wrap=True, markup=False)
        if comparison.ok is False and comparison.layers:
            table = Table("layer", "input error", "operator error", "same choice", "largest gap swapped", "problem")
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
    runs += [f"{v.file.name} {v.precision} ({v.backend} {v.backend_version}, {v.gpu})" for v in bundle.engines]
    if (v := bundle.openvino) is not None:
        runs.append(f"OpenVINO {v.precision} ({v.backend_version}{'' if v.library else ', function body'})")
    count = len(bundle.manifest["files"])
    text = f"{bundle.path}: {bundle.task}, {', '.join(runs)}; {count} files, {size / 2**20:.1f} MiB"
    notes = []
    if bundle.library is None and not is_standard:
        notes.append(
            "no libmra_onnxruntime.so: ONNX Runtime runs it slower. Run `mra-export build` and write the bundle again."
        )
    if bundle.tokenizer_file is None:
        notes.append("no tokenizer.json: clients have to bring token ids.")
    if bundle.task == "feature-extraction" and not bundle.modules:
        notes.append("no pooling: it gives token vectors only. Export the checkpoint with --pooling mean.")
    if before := bundle.prompt():
        notes.append(
            f"the prompt {bundle.default_prompt!r}, {before!r}, comes before each text, unless another is asked for."
        )
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
            if value is not None
            and name in ("relative_error", "max_abs_error", "cosine_min", "operator_error", "largest_value")
        ]
        text = f"RECORDED {verdict}: {made['candidate']} against {made['reference']}: {', '.join(numbers)}"
        console.print(text, soft_wrap=True, markup=False)


def print_bench(result: BenchResult) -> None:
    """A table for each size, a line an engine; then what to know of them, and the fastest and what it loses."""
    from itertools import groupby

    from rich.console import Console
    from rich.table import Table

    from mra_export.pipeline.bench_engines import DENSE

    console = Console(highlight=False)
    for (batch, seq_len), group in groupby(result.rows, key=lambda row: (row.batch, row.seq_len)):
        rows = list(group)
        budget = next((f", {row.blocks_per_row:g} of {row.blocks} blocks per row" for row in rows if row.blocks), "")
        console.print(f"\n{batch} x {seq_len} tokens{budget}")
        table = Table("", "ms", "CPU ms", "tokens/s", "faster", "CPU", "cosine", box=None, padding=(0, 1, 0, 0))
        table.columns[0].no_wrap = True
        for column in table.columns[1:]:
            column.justify, column.no_wrap = "right", True
        for row in rows:
            table.add_row(
                row.backend.replace(DENSE, "dense"),
                f"{row.latency_ms:.1f}",
                f"{row.cpu_ms:.1f}",
                f"{row.tokens_per_second:,.0f}",
                f"{row.faster_than_dense:.2f}x",
                f"{row.faster_than_dense_cpu:.2f}x",
                "-" if row.cosine_min is None else f"{row.cosine_min:.5f}",
            )
        console.print(table)
    reference = f"{DENSE} in ONNX Runtime {result.rows[0].precision}"
    notes = [
        f"faster: than {reference}, by the clock and in processor time (CPU) of the same turns.",
        "cosine: the least with the vectors of the same attention in fp32.",
        *result.notes,
    ]
    console.print()
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False)
    console.print(describe_fastest(result.rows), soft_wrap=True, markup=False)


def describe_fastest(rows: list[BenchRow]) -> str:
    """The fastest engine of each size, by processor time, and what it loses, on one line."""
    from mra_export.pipeline.bench import fastest

    best = fastest(rows)
    texts = []
    for name in dict.fromkeys(row.backend for row in best):
        own = [row for row in best if row.backend == name]
        sizes = "" if len(own) == len(best) else f" at {', '.join(f'{r.batch} x {r.seq_len}' for r in own)}"
        speeds = sorted(row.faster_than_dense_cpu for row in own)
        speed = f"{speeds[0]:.2f}x" if len(own) == 1 else f"{speeds[0]:.2f}x to {speeds[-1]:.2f}x"
        means = [row.cosine_mean for row in own if row.cosine_mean is not None]
        least = [row.cosine_min for row in own if row.cosine_min is not None]
        if own[0].precision == rows[0].precision:
            loses = "which loses nothing"
        elif means:
            loses = f"which loses: cosine with its fp32 {min(means):.5f} on average, {min(least):.5f} at least"
        else:
            loses = "what it loses is not known, since its fp32 did not run"
        texts.append(f"{name}{sizes}, {speed}, {loses}")
    return f"FASTEST in processor time: {'; '.join(texts)}."


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
    for kind, instructions in diagnosis.processor.items():
        table.add_row(f"{kind} on this CPU", instructions or "[dim]no instructions for it: works, but slower[/]")
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
    if name == "largest_value":
        return f"{value:.6g}"
    return f"{value:.2%}" if name.endswith("agreement") else f"{value:.1e}"
