"""`mra-export bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mra_export.cli.options import force_option, int8_options, model_options, output_options
from mra_export.cli.output import print_json
from mra_export.native.libraries import checking_library

if TYPE_CHECKING:
    from mra_export.export.onnx_model import OnnxModel

__all__ = ["bench_command"]


@click.command("bench")
@click.argument("source")
@model_options
@click.option("--batch", metavar="MIN:OPT:MAX", default="1", show_default=True, help="Sizes of a batch to time.")
@click.option(
    "--seq-len", metavar="MIN:OPT:MAX", help="Lengths to time.  [default: 128, 512, ... to the model's maximum]"
)
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Of each engine.  [default: its own choice]")
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    type=click.Choice(["onnxruntime", "openvino"]),
    help="What to run it in; openvino in fp32 and in bf16. May be repeated.  [default: all that are installed]",
)
@int8_options
@click.option("--plugin-lib", type=click.Path(path_type=Path), help="libmra_onnxruntime.so.  [default: found]")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE.png", help="Write a picture of it.")
@force_option
@output_options
def bench_command(
    source: str,
    task: str,
    random_init: int | None,
    family_options: dict[str, str],
    batch: str,
    seq_len: str | None,
    threads: int,
    runtimes: tuple[str, ...],
    int8: Any,
    plugin_lib: Path | None,
    plot: Path | None,
    force: bool,
    **shown: Any,
) -> None:
    """Times a model on the CPU by engine, precision and length, side by side with the same model with dense attention.

    SOURCE is an ONNX directory, an .onnx file, or a checkpoint that is exported first.

    Ratios are to dense attention in ONNX Runtime and fp32. Threads of ONNX Runtime do not spin here; those of OpenVINO do as ever,
    which its processor time has in it.

    \b
    Example:
      mra-export bench ./minilm-onnx --seq-len 128:256:512
    """
    from mra_export.outputs import check_target

    if plot is not None:
        from mra_export.pipeline.bench_plot import check_plot, write_plot

        check_plot(plot)
        check_target(plot, force=force, sources=[Path(source)])
    from dataclasses import asdict

    from mra_export.cli.console import progress
    from mra_export.cli.tables import print_bench
    from mra_export.pipeline.bench import bench, fastest
    from mra_export.pipeline.source import ExportRequest, open_source

    request = ExportRequest(task, random_init, family_options)
    with progress(quiet=shown["quiet"]) as step, open_source(source, request, progress=step) as model:
        result = bench(
            model,
            batches=_sizes(batch, "--batch"),
            seq_lens=_lengths(seq_len, model),
            int8=int8,
            random_ids=random_init is not None,
            runtimes=runtimes,
            library=checking_library(plugin_lib),
            threads=threads,
            progress=step,
        )
    if plot is not None:
        sizes = dict.fromkeys(row.batch for row in result.rows)
        panels = {f"batch {size}": [row for row in result.rows if row.batch == size] for size in sizes}
        write_plot(plot, panels, title=Path(source).name, force=force)
    if not shown["as_json"]:
        print_bench(result)
        return
    print_json(
        ok=True,
        command="bench",
        outputs=[str(plot)] if plot is not None else [],
        rows=[asdict(row) for row in result.rows],
        fastest=[
            {name: getattr(row, name) for name in ("batch", "seq_len", "backend")} for row in fastest(result.rows)
        ],
        notes=result.notes,
    )


def _sizes(text: str, name: str) -> list[int]:
    """The different sizes of MIN:OPT:MAX."""
    from mra_export.engine.ranges import parse_range

    sizes = parse_range(text, name)
    return sorted({sizes.min, sizes.opt, sizes.max})


def _lengths(text: str | None, model: OnnxModel) -> list[int]:
    """The lengths to time: those asked for, or 128 times 4 again and again and the longest."""
    from mra_export.engine.ranges import check_ranges, parse_range

    limit = model.position_limit
    if text is not None:
        check_ranges({"sequence": parse_range(text, "--seq-len")}, limit)
        return _sizes(text, "--seq-len")
    longest = limit or 512
    return sorted({n for n in (128, 512, 2048, 8192) if n < longest} | {longest})
