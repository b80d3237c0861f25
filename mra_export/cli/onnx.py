"""`mra-export onnx`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mra_export.cli.options import (
    POOLING_NAMES,
    dtype_options,
    force_option,
    int8_options,
    model_options,
    output_option,
    output_options,
)
from mra_export.cli.output import fail_parity, plain, print_notes, print_result
from mra_export.errors import ParityError
from mra_export.native.libraries import checking_library, not_built_note

__all__ = ["onnx_command"]


@click.command("onnx")
@click.argument("model")
@output_option("The ONNX directory to write.")
@model_options
@dtype_options("fp32", "fp32")
@int8_options
@click.option("--opset", type=int, help="Opset of the standard operators.  [default: 20, or 23 for standard attention]")
@click.option(
    "--pooling",
    type=click.Choice(POOLING_NAMES),
    metavar="MODE",
    help=f"Adds sentence_embedding: {', '.join(POOLING_NAMES)}.  [default: as MODEL]",
)
@click.option("--normalize/--no-normalize", default=None, help="Scales it to length 1.  [default: as MODEL]")
@click.option("--no-check", is_flag=True, help="Skip the parity check.")
@click.option("--plugin-lib", type=click.Path(path_type=Path), help="The native library to check with.")
@force_option
@output_options
def onnx_command(
    model: str,
    output: Path,
    task: str,
    random_init: int | None,
    family_options: dict[str, str],
    dtype: str,
    int8: Any,
    opset: int | None,
    pooling: str | None,
    normalize: bool | None,
    no_check: bool,
    plugin_lib: Path | None,
    force: bool,
    **shown: Any,
) -> None:
    """Exports a checkpoint to an ONNX directory and proves that it is the same model.

    MODEL is a checkpoint directory or a hub id. The directory loads in ONNX Runtime, optimum and sentence-transformers as it
    is. If the check fails, or float16 does not hold what the model computes, nothing is written.

    \b
    Example:
      mra-export onnx ./minilm-mra -o ./minilm-onnx --pooling mean --normalize
    """
    from mra_export.outputs import check_target

    check_target(output, force=force, sources=[Path(model)])
    from mra_export.cli.console import progress
    from mra_export.cli.tables import print_comparisons
    from mra_export.pipeline.source import ExportRequest, Proof, export_checkpoint

    request = ExportRequest(task, random_init, family_options, dtype, opset, pooling, normalize, int8=int8)
    proof = None if no_check else Proof(checking_library(plugin_lib))
    comparisons = [] if proof is None else proof.comparisons
    with progress(quiet=shown["quiet"]) as report:
        try:
            result = export_checkpoint(model, request, output, proof=proof, force=force, progress=report)
        except ParityError as error:
            fail_parity("onnx", error, comparisons, shown["as_json"])
    if not shown["as_json"]:
        print_comparisons(comparisons)
        print_notes(result.notes)
    precision = result.dtype if int8 is None else "int8"
    missing = not_built_note() if result.attention_nodes else None
    note = "" if missing is None else f"\n  note: {missing}"
    print_result(
        "onnx",
        f"{result.model}: {result.task}, {precision}, opset {result.opset}, {result.attention_nodes} attention nodes, "
        f"{result.size_bytes / 2**20:.1f} MiB" + (" (not checked)" if no_check else "") + note,
        shown["as_json"],
        outputs=[str(result.directory)],
        model=str(result.model),
        task=result.task,
        dtype=result.dtype,
        precision=precision,
        opset=result.opset,
        attention_nodes=result.attention_nodes,
        model_inputs=list(result.inputs),
        model_outputs=list(result.outputs),
        size_bytes=result.size_bytes,
        notes=list(result.notes),
        comparisons=plain(comparisons),
    )
