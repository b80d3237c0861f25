"""`mra-export trt`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mra_export.cli.options import (
    dtype_options,
    force_option,
    int8_options,
    model_options,
    output_option,
    output_options,
    source_options,
)
from mra_export.cli.output import fail_parity, plain, print_result
from mra_export.errors import ParityError

__all__ = ["trt_command"]


@click.command("trt")
@click.argument("source")
@output_option("The engine file to write; its manifest gets the same name with .json appended.")
@model_options
@dtype_options(None, "as SOURCE, fp32 for a checkpoint")
@int8_options
@click.option("--backend", type=click.Choice(["auto", "tensorrt", "rtx"]), default="auto", show_default=True)
@click.option("--batch", metavar="MIN:OPT:MAX", help="Sizes of a batch.  [default: 1:8:32]")
@click.option("--seq-len", metavar="MIN:OPT:MAX", help="Tokens of a sequence.  [default: 1:128:(the model's maximum)]")
@click.option("--choices", metavar="MIN:OPT:MAX", help="Choices, for multiple choice.  [default: 1:4:8]")
@click.option("--plugin-lib", type=click.Path(path_type=Path), help="libmra_tensorrt.so.  [default: found]")
@click.option("--timing-cache", type=click.Path(path_type=Path), help="A file that speeds up later builds.")
@click.option("--version-compatible", is_flag=True, help="Newer TensorRTs may run the engine. Not with rtx.")
@click.option("--hardware-compatible", is_flag=True, help="All GPUs from Ampere on may run it. With rtx always so.")
@click.option("--strip-weights", is_flag=True, help="Leave out the weights, to be refitted from the ONNX file.")
@click.option("--embed-plugin", is_flag=True, help="Put the plugin library into the engine.")
@click.option("--layer-outputs", is_flag=True, help="Make what goes into and out of attention outputs, for check.")
@source_options
@click.option("--no-check", is_flag=True, help="Skip the parity check of what is exported or converted.")
@force_option
@output_options
def trt_command(
    source: str,
    output: Path,
    task: str,
    random_init: int | None,
    family_options: dict[str, str],
    dtype: str | None,
    int8: Any,
    backend: str,
    opset: int | None,
    pooling: str | None,
    normalize: bool | None,
    no_check: bool,
    plugin_lib: Path | None,
    force: bool,
    **options: Any,
) -> None:
    """Builds a TensorRT engine with its manifest, and proves that the operator and the precision are in it.

    SOURCE is an ONNX directory, an .onnx file, or a checkpoint that is exported and checked first. The backend rtx
    (TensorRT-RTX) builds ahead of time, without a GPU.

    \b
    Example:
      mra-export trt ./minilm-onnx -o ./minilm.engine --backend rtx --batch 1:8:64
    """
    from mra_export.cli.console import progress
    from mra_export.cli.tables import print_comparisons
    from mra_export.engine.ranges import RANGES, parse_range
    from mra_export.pipeline.build_engine import build_engine
    from mra_export.pipeline.source import ExportRequest

    shown = {name: options.pop(name) for name in ("as_json", "verbose", "quiet")}
    ranges: dict[str, Any] = {
        name: None if (text := options.pop(name)) is None else parse_range(text, f"--{name.replace('_', '-')}")
        for name in RANGES
    }
    request = ExportRequest(task, random_init, family_options, None, opset, pooling, normalize, int8=int8)
    comparisons: list[Any] = []
    with progress(quiet=shown["quiet"]) as report:
        try:
            result = build_engine(
                source, output, request=request, dtype=dtype, backend=backend, library=plugin_lib, prove=not no_check,
                comparisons=comparisons,
                force=force, progress=report, **ranges, **options,
            )  # fmt: skip
        except ParityError as error:
            fail_parity("trt", error, comparisons, shown["as_json"])
    if not shown["as_json"]:
        print_comparisons(comparisons)
    made = result.manifest
    sizes = {axis: f"{r['min']}:{r['opt']}:{r['max']}" for axis, r in result.profiles.items()}
    notes = "".join(f"\n  note: {note}" for note in result.notes)
    print_result(
        "trt",
        f"{result.engine}: {made.task or 'model'}, {made.precision}, {made.plugin_layers} plugin layers, {result.backend} "
        f"({made.gpu}), {made.engine_bytes / 2**20:.1f} MiB in {result.seconds:.1f} s\n  "
        + ", ".join(f"{axis} {text}" for axis, text in sizes.items())
        + f"\n  {made.precision_proof}{notes}",
        shown["as_json"],
        outputs=[str(result.engine), str(result.manifest_path)],
        backend=made.backend,
        backend_version=made.backend_version,
        gpu=made.gpu,
        plugin_layers=made.plugin_layers,
        precision=made.precision,
        precision_proof=made.precision_proof,
        tensor_types=made.tensor_types,
        profiles=result.profiles,
        model_inputs=list(made.inputs),
        model_outputs=made.outputs,
        size_bytes=made.engine_bytes,
        seconds=result.seconds,
        notes=list(result.notes),
        comparisons=plain(comparisons),
    )
