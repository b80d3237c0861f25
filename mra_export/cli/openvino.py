"""`mra-export openvino`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import click

from mra_export.cli.options import (
    force_option,
    int8_options,
    model_options,
    options,
    output_option,
    output_options,
    source_options,
)
from mra_export.cli.output import fail_parity, plain, print_notes, print_result
from mra_export.errors import ParityError

__all__ = ["openvino_command"]


def _precision_options(function: Any) -> Any:
    """The types of the weights that need no calibration; the command gets `dtype`."""

    @functools.wraps(function)
    def wrapper(*args: Any, fp32: bool, bf16: bool, int8_weights: bool, **kwargs: Any) -> Any:
        asked = [name for name, on in (("fp32", fp32), ("bf16", bf16), ("int8-weights", int8_weights)) if on]
        if len(asked) > 1:
            raise click.UsageError(f"--{' and --'.join(asked)} exclude each other; give one.")
        return function(*args, dtype=asked[0] if asked else None, **kwargs)

    return options(
        click.option("--fp32", is_flag=True, help="Weights and arithmetic in float32.  [default: as SOURCE]"),
        click.option("--bf16", is_flag=True, help="Weights in bfloat16, for arithmetic in it: half the size."),
        click.option("--int8-weights", is_flag=True, help="Linear layers in int8, without calibration."),
    )(wrapper)


@click.command("openvino")
@click.argument("source")
@output_option("The directory to write.")
@model_options
@_precision_options
@int8_options
@click.option("--portable", is_flag=True, help="For stock OpenVINO, without our library: slower.")
@source_options
@click.option("--no-check", is_flag=True, help="Skip the parity check.")
@click.option("--plugin-lib", type=click.Path(path_type=Path), help="libmra_openvino.so.  [default: found]")
@force_option
@output_options
def openvino_command(
    source: str,
    output: Path,
    task: str,
    random_init: int | None,
    family_options: dict[str, str],
    dtype: str | None,
    int8: Any,
    portable: bool,
    opset: int | None,
    pooling: str | None,
    normalize: bool | None,
    no_check: bool,
    plugin_lib: Path | None,
    force: bool,
    **shown: Any,
) -> None:
    """Writes a model for OpenVINO and proves that it is the same model.

    SOURCE is an ONNX directory, an .onnx file, or a checkpoint that is exported and checked first. The directory is laid out as
    sentence-transformers and optimum-intel load it. What precision the file is meant for is written into it.

    \b
    Example:
      mra-export openvino ./minilm-onnx -o ./minilm-openvino --bf16
    """
    from mra_export.cli.console import progress
    from mra_export.cli.tables import print_comparisons
    from mra_export.pipeline.export_openvino import export_openvino
    from mra_export.pipeline.source import ExportRequest

    request = ExportRequest(task, random_init, family_options, None, opset, pooling, normalize, int8=int8)
    comparisons: list[Any] = []
    with progress(quiet=shown["quiet"]) as report:
        try:
            result = export_openvino(
                source, output, request=request, precision=None if int8 else dtype, portable=portable, library=plugin_lib,
                prove=not no_check, comparisons=comparisons, force=force, progress=report,
            )  # fmt: skip
        except ParityError as error:
            fail_parity("openvino", error, comparisons, shown["as_json"])
    if not shown["as_json"]:
        print_comparisons(comparisons)
        print_notes(result.notes)
    how = "for stock OpenVINO" if result.portable else "for OpenVINO with the native operator"
    print_result(
        "openvino",
        f"{result.model}: {result.task}, {result.precision}, {how}, {result.release}, {result.attention_nodes} attention nodes, "
        f"{result.size_bytes / 2**20:.1f} MiB" + (" (not checked)" if no_check else ""),
        shown["as_json"],
        outputs=[str(result.directory)],
        model=str(result.model),
        task=result.task,
        precision=result.precision,
        portable=result.portable,
        openvino=result.release,
        attention_nodes=result.attention_nodes,
        size_bytes=result.size_bytes,
        notes=list(result.notes),
        comparisons=plain(comparisons),
    )
