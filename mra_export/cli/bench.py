"""`mra-export bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mra_export.cli.options import model_options, output_options
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
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, help="Of a session.  [default: ONNX Runtime's choice]"
)
@click.option("--plugin-lib", type=click.Path(path_type=Path), help="libmra_onnxruntime.so.  [default: found]")
@output_options
def bench_command(
    source: str,
    task: str,
    random_init: int | None,
    family_options: dict[str, str],
    batch: str,
    seq_len: str | None,
    threads: int,
    plugin_lib: Path | None,
    **shown: Any,
) -> None:
    """Times a model on the CPU by backend and length, side by side with the same model with dense attention.

    SOURCE is an ONNX directory, an .onnx file, or a checkpoint that is exported first.

    \b
    Example:
      mra-export bench ./minilm-onnx --seq-len 128:256:512
    """
    from dataclasses import asdict

    from mra_export.cli.console import progress
    from mra_export.cli.tables import print_bench
    from mra_export.pipeline.bench import bench
    from mra_export.pipeline.source import ExportRequest, open_source

    request = ExportRequest(task, random_init, family_options)
    with progress(quiet=shown["quiet"]) as step, open_source(source, request, progress=step) as model:
        rows = bench(
            model,
            batches=_sizes(batch, "--batch"),
            seq_lens=_lengths(seq_len, model),
            library=checking_library(plugin_lib),
            threads=threads,
            progress=step,
        )
    if not shown["as_json"]:
        print_bench(rows)
    else:
        print_json(ok=True, command="bench", outputs=[], rows=[asdict(row) for row in rows])


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
