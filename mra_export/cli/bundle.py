"""`mra-export bundle`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import click

from mra_export.checkpoint.modules import POOLING_MODES
from mra_export.cli.options import (
    POOLING_NAMES,
    dtype_options,
    force_option,
    model_options,
    options,
    output_option,
    output_options,
)
from mra_export.cli.output import fail_parity, plain, print_notes, print_result
from mra_export.errors import ParityError
from mra_export.native.libraries import LIBRARY_FILES, named_plugin

__all__ = ["bundle_command"]


def _triton_options(function: Any) -> Any:
    """The options of a model repository; the command gets them as one dictionary, `triton`."""
    names = ("tokenizer", "pooling", "normalize", "device", "instances", "queue_delay", "name", "library")

    @functools.wraps(function)
    def wrapper(*args: Any, triton: bool, batch: str | None, seq_len: str | None, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(f"triton_{name}") for name in names}
        return function(*args, triton={"enabled": triton, "batch": batch, "seq_len": seq_len, **given}, **kwargs)

    return options(
        click.option("--triton", is_flag=True, help="Also write a model repository for Triton Inference Server."),
        click.option(
            "--batch", metavar="1:OPT:MAX", help="Sizes that Triton batches to.  [default: 1:8:32; of an engine]"
        ),
        click.option(
            "--seq-len", metavar="MIN:OPT:MAX", help="Tokens that Triton serves.  [default: all; of an engine]"
        ),
        click.option(
            "--triton-tokenizer", is_flag=True, help="Models that take text: tokenizer and encoder as ensembles."
        ),
        click.option("--triton-pooling", type=click.Choice(POOLING_MODES), help="A step for a model without pooling."),
        click.option("--triton-normalize", is_flag=True, help="That step scales to length 1."),
        click.option("--triton-device", type=click.Choice(["cpu", "gpu"]), help="Of the ONNX file.  [default: cpu]"),
        click.option("--triton-instances", type=int, metavar="N", help="Of each model.  [default: 1]"),
        click.option(
            "--triton-queue-delay", type=int, metavar="MICROSECONDS", help="Wait for a batch.  [default: 500]"
        ),
        click.option("--triton-name", metavar="NAME", help="First part of the models' names.  [default: the family]"),
        click.option(
            "--triton-library", metavar="PATH", help="Where the server has libmra_onnxruntime.so, if elsewhere."
        ),
    )(wrapper)


@click.command("bundle")
@click.argument("source")
@output_option("The bundle directory to write.")
@click.option("--engine", "engines", type=click.Path(path_type=Path), multiple=True, metavar="FILE.engine",
              help="An engine that `mra-export trt` built from SOURCE; may be repeated.")  # fmt: skip
@click.option("--openvino", type=click.Path(path_type=Path), metavar="DIR",
              help="What `mra-export openvino` wrote of SOURCE, in any precision.")  # fmt: skip
@model_options
@dtype_options(None, "as SOURCE, fp32 for a checkpoint")
@click.option(
    "--pooling", type=click.Choice(POOLING_NAMES), metavar="MODE", help="Of a checkpoint.  [default: its own, or mean]"
)
@click.option("--normalize/--no-normalize", default=None, help="Of a checkpoint.  [default: as SOURCE]")
@click.option("--no-check", is_flag=True, help="Skip the parity check.")
@click.option("--plugin-lib", type=click.Path(path_type=Path), multiple=True,
              help="A native library to put in, instead of the one found; may be repeated.")  # fmt: skip
@_triton_options
@force_option
@output_options
def bundle_command(
    source: str,
    output: Path,
    engines: tuple[Path, ...],
    openvino: Path | None,
    no_check: bool,
    plugin_lib: tuple[Path, ...],
    family_options: dict[str, str],
    triton: dict[str, Any],
    force: bool,
    as_json: bool,
    verbose: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Writes one directory with what a C++ server needs: ONNX file, engines, OpenVINO's files, libraries, tokenizer, manifest.

    SOURCE is a checkpoint, which is exported and checked first, or an ONNX directory. The bundle works wherever it is copied
    to; `mra-export check DIR` verifies it.

    \b
    Example:
      mra-export bundle ./minilm-onnx --engine ./minilm.engine -o ./minilm-bundle
    """
    from mra_export.cli.console import progress
    from mra_export.cli.tables import describe_bundle, print_comparisons
    from mra_export.pipeline.create_bundle import create_bundle
    from mra_export.pipeline.source import ExportRequest
    from mra_export.triton.repository import MODEL_REPOSITORY, RepositoryWriter
    from mra_export.triton.settings import triton_settings

    settings = triton_settings(**triton)
    writer = None if settings is None else RepositoryWriter(settings)
    extension = next((path for path in plugin_lib if path.name == LIBRARY_FILES["openvino"]), None)
    plugins = [path for path in plugin_lib if named_plugin(path)]
    libraries = [path for path in plugin_lib if not named_plugin(path) and path != extension]
    comparisons: list[Any] = []
    notes: list[str] = []
    with progress(quiet=quiet) as report:
        try:
            bundle = create_bundle(
                source, output, engines=engines, openvino=openvino, check=not no_check, comparisons=comparisons, notes=notes,
                library=libraries[-1] if libraries else None, plugin=plugins[-1] if plugins else None, extension=extension,
                triton=writer, progress=report, request=ExportRequest(options=family_options, **options), force=force,
            )  # fmt: skip
        except ParityError as error:
            fail_parity("bundle", error, comparisons, as_json)
    if not as_json:
        print_comparisons(comparisons)
        print_notes(notes)
    made = bundle.manifest
    served = None if writer is None else writer.repository
    lines = [describe_bundle(bundle), f"  next: mra-export check {output}"]
    if served is not None:
        lines.append(served.describe(output / MODEL_REPOSITORY))
    print_result(
        "bundle",
        "\n".join(lines),
        as_json,
        outputs=[str(output)],
        triton=None if served is None else served.as_json(output / MODEL_REPOSITORY),
        files=made["files"],
        variants=made["variants"],
        model=made["model"],
        embedding=made["embedding"],
        prompts=bundle.prompts,
        default_prompt=bundle.default_prompt,
        manifest_sha256=made["manifest_sha256"],
        comparisons=plain(comparisons),
        notes=notes,
    )
