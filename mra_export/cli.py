"""The command line. Translates options to calls and results to output; no logic of its own."""

from __future__ import annotations

import functools
import json
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mra_export.errors import MraExportError, ParityError
from mra_export.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from mra_export.export.onnx_model import OnnxModel

__all__ = ["cli", "main"]

TASK_NAMES = (
    "auto",
    "feature-extraction",
    "fill-mask",
    "text-generation",
    "text-classification",
    "multiple-choice",
    "token-classification",
    "question-answering",
)


class Group(click.Group):
    """Lists the commands in the order in which they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, as declared."""
        return list(self.commands)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="mra-export")
def cli() -> None:
    """Puts MRA encoders into production: ONNX files and engines that are proven to be the PyTorch model.

    \b
    Example, from a dense model to a checked ONNX directory:
      mra-export from-dense ./all-MiniLM-L6-v2 -o ./minilm-mra
      mra-export onnx ./minilm-mra -o ./minilm-onnx
    """


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several option decorators as one, in the order in which help shows them."""
    return lambda function: functools.reduce(lambda f, option: option(f), reversed(options), function)


_output_options = _options(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text."),
    click.option("-v", "--verbose", is_flag=True, help="Show the traceback of an error."),
    click.option("-q", "--quiet", is_flag=True, help="Show no progress."),
)


def _named_values(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE, each, as a dictionary."""
    for text in given:
        if "=" not in text:
            raise click.BadParameter(f"{text!r} must be NAME=VALUE.")
    return dict(text.split("=", 1) for text in given)


_model_options = _options(
    click.option("--task", type=click.Choice(TASK_NAMES), default="auto", show_default=True, help="The model's head."),
    click.option(
        "--random-init",
        type=click.IntRange(0, 2**63 - 1),
        metavar="SEED",
        help="Random weights; MODEL needs only a config.json.",
    ),
    click.option(
        "--option",
        "family_options",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_named_values,
        help="A choice that the kind of model leaves open; `doctor` lists them. May be repeated.",
    ),
)
_force = click.option("--force", is_flag=True, help="Replace an existing output.")


def _output(what: str) -> Callable[[Any], Any]:
    return click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help=what)


def _dtype_options(default: str | None, shown: str) -> Callable[[Any], Any]:
    """`--dtype` with its short forms; the command gets `dtype`."""

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, dtype: str | None, fp16: bool, bf16: bool, **kwargs: Any) -> Any:
            asked = {name for name, on in ((dtype, dtype), ("fp16", fp16), ("bf16", bf16)) if on}
            if len(asked) > 1:
                raise click.UsageError(f"{' and '.join(sorted(map(str, asked)))} exclude each other; give one type.")
            return function(*args, dtype=asked.pop() if asked else default, **kwargs)

        return _options(
            click.option(
                "--dtype", type=click.Choice(["fp32", "fp16", "bf16"]), help=f"Type of the weights.  [default: {shown}]"
            ),
            click.option("--fp16", is_flag=True, help="Short for --dtype fp16."),
            click.option("--bf16", is_flag=True, help="Short for --dtype bf16."),
        )(wrapper)

    return decorate


@cli.command("from-dense")
@click.argument("source", metavar="SRC")
@_output("The checkpoint directory to write.")
@click.option("--block-per-row", type=int, default=4, show_default=True, help="Full-resolution blocks per 32 tokens.")
@click.option("--max-position", type=int, help="Longest sequence, in tokens.  [default: as SRC]")
@click.option("--task", type=click.Choice(TASK_NAMES), default="auto", show_default=True, help="The head to convert.")
@_force
@_output_options
def from_dense_command(
    source: str, output: Path, block_per_row: int, max_position: int | None, task: str, force: bool, **shown: Any
) -> None:
    """A BERT, RoBERTa or XLM-R checkpoint with its attention replaced by MRA: same weights, same names.

    \b
    Example:
      mra-export from-dense ./all-MiniLM-L6-v2 -o ./minilm-mra --block-per-row 8
    """
    from mra_export.checkpoint.from_dense.convert import from_dense
    from mra_export.console import progress

    with progress(quiet=shown["quiet"]) as report:
        report(f"converting {source}")
        result = from_dense(
            source, output, task=task, block_per_row=block_per_row, max_position=max_position, force=force
        )
    text = f"{output}: {result.architecture}, {result.num_layers} layers, {result.num_blocks} blocks per head"
    notes = "".join(f"\n  note: {note}" for note in result.notes)
    _print_result("from-dense", text + notes, shown["as_json"], outputs=[str(output)], notes=list(result.notes))


@cli.command("onnx")
@click.argument("model")
@_output("The ONNX directory to write.")
@_model_options
@_dtype_options("fp32", "fp32")
@click.option("--opset", type=int, help="Opset of the standard operators.  [default: 20, or 23 for standard attention]")
@click.option(
    "--pooling", type=click.Choice(["none", "cls", "mean"]), help="Adds sentence_embedding.  [default: as MODEL]"
)
@click.option("--normalize/--no-normalize", default=None, help="Scales it to length 1.  [default: as MODEL]")
@click.option("--no-check", is_flag=True, help="Skip the parity check.")
@click.option("--plugin-lib", type=click.Path(path_type=Path), help="The native library to check with.")
@_force
@_output_options
def onnx_command(
    model: str,
    output: Path,
    task: str,
    random_init: int | None,
    family_options: dict[str, str],
    dtype: str,
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
    is. If the check fails, nothing is written.

    \b
    Example:
      mra-export onnx ./minilm-mra -o ./minilm-onnx --pooling mean --normalize
    """
    from mra_export.outputs import check_target

    check_target(output, force=force, sources=[Path(model)])
    from mra_export.console import print_comparisons, progress
    from mra_export.pipeline.source import ExportRequest, Proof, export_checkpoint

    request = ExportRequest(task, random_init, family_options, dtype, opset, pooling, normalize)
    proof = None if no_check else Proof(_library(plugin_lib))
    comparisons = [] if proof is None else proof.comparisons
    with progress(quiet=shown["quiet"]) as report:
        try:
            result = export_checkpoint(model, request, output, proof=proof, force=force, progress=report)
        except ParityError as error:
            _fail_parity("onnx", error, comparisons, shown["as_json"])
    if not shown["as_json"]:
        print_comparisons(comparisons)
    _print_result(
        "onnx",
        f"{result.model}: {result.task}, {result.dtype}, opset {result.opset}, {result.attention_nodes} attention nodes, "
        f"{result.size_bytes / 2**20:.1f} MiB" + (" (not checked)" if no_check else ""),
        shown["as_json"],
        outputs=[str(result.directory)],
        model=str(result.model),
        task=result.task,
        dtype=result.dtype,
        opset=result.opset,
        attention_nodes=result.attention_nodes,
        model_inputs=list(result.inputs),
        model_outputs=list(result.outputs),
        size_bytes=result.size_bytes,
        comparisons=_plain(comparisons),
    )


@cli.command("trt")
@click.argument("source")
@_output("The engine file to write; its manifest gets the same name with .json appended.")
@_model_options
@_dtype_options(None, "as SOURCE, fp32 for a checkpoint")
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
@click.option("--opset", type=int, help="As for onnx; SOURCE is a checkpoint.")
@click.option("--pooling", type=click.Choice(["none", "cls", "mean"]), help="As for onnx; SOURCE is a checkpoint.")
@click.option("--normalize/--no-normalize", default=None, help="As for onnx; SOURCE is a checkpoint.")
@click.option("--no-check", is_flag=True, help="Skip the parity check of what is exported or converted.")
@_force
@_output_options
def trt_command(
    source: str,
    output: Path,
    task: str,
    random_init: int | None,
    family_options: dict[str, str],
    dtype: str | None,
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
    from mra_export.console import print_comparisons, progress
    from mra_export.engine.ranges import RANGES, parse_range
    from mra_export.pipeline.build_engine import build_engine
    from mra_export.pipeline.source import ExportRequest

    shown = {name: options.pop(name) for name in ("as_json", "verbose", "quiet")}
    ranges: dict[str, Any] = {
        name: None if (text := options.pop(name)) is None else parse_range(text, f"--{name.replace('_', '-')}")
        for name in RANGES
    }
    comparisons: list[Any] = []
    with progress(quiet=shown["quiet"]) as report:
        try:
            result = build_engine(
                source, output, request=ExportRequest(task, random_init, family_options, None, opset, pooling, normalize),
                dtype=dtype, backend=backend, library=plugin_lib, prove=not no_check, comparisons=comparisons,
                force=force, progress=report, **ranges, **options,
            )  # fmt: skip
        except ParityError as error:
            _fail_parity("trt", error, comparisons, shown["as_json"])
    if not shown["as_json"]:
        print_comparisons(comparisons)
    made = result.manifest
    sizes = {axis: f"{r['min']}:{r['opt']}:{r['max']}" for axis, r in result.profiles.items()}
    notes = "".join(f"\n  note: {note}" for note in result.notes)
    _print_result(
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
        comparisons=_plain(comparisons),
    )


@cli.command("check")
@click.argument("source")
@click.argument("artifacts", nargs=-1, type=click.Path(path_type=Path))
@_model_options
@click.option("--max-seq-len", type=click.IntRange(min=1), help="Longest length to run.  [default: the model's]")
@click.option("--plugin-lib", type=click.Path(path_type=Path), help="The native library to check with.")
@click.option("--kernel-sources", type=click.Path(path_type=Path), help="MRA's CUDA sources, for PyTorch on a GPU.")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.html", help="Write a page with plots.")
@_force
@_output_options
def check_command(
    source: str,
    artifacts: tuple[Path, ...],
    task: str,
    random_init: int | None,
    family_options: dict[str, str],
    max_seq_len: int | None,
    plugin_lib: Path | None,
    kernel_sources: Path | None,
    report: Path | None,
    force: bool,
    **shown: Any,
) -> None:
    """Compares the PyTorch model SOURCE with .onnx and .engine files, or the directories that hold them.

    SOURCE may also be a bundle alone: its files are verified, and its operator is held against the specification.

    Selection of blocks and arithmetic are judged apart, layer by layer. Ends with exit code 3 if they differ.

    \b
    Example:
      mra-export check ./minilm-mra ./minilm-onnx --report parity.html
    """
    from mra_export.outputs import check_target

    if report is not None:
        check_target(report, force=force, sources=[Path(source), *artifacts])
    from mra_export.checkpoint.files import locate
    from mra_export.checkpoint.load import load_checkpoint
    from mra_export.console import describe_bundle, print_comparisons, print_recorded, progress
    from mra_export.pipeline.check import bundle_alone, check, check_bundle, find_artifacts

    unused = {"--task": None if task == "auto" else task, "--plugin-lib": plugin_lib, "--kernel-sources": kernel_sources,
              "--option": family_options or None}  # fmt: skip
    bundle = None if artifacts else bundle_alone(source, random_init=random_init, options=unused)
    with progress(quiet=shown["quiet"]) as step:
        if bundle is not None:
            verified, comparisons = check_bundle(bundle, max_seq_len=max_seq_len, progress=step)
        else:
            found = find_artifacts(list(artifacts) or [locate(source)])
            step(f"loading {source}")
            checkpoint = load_checkpoint(
                source, task=_task_of(task, found), random_init=random_init, options=family_options
            )
            comparisons = check(
                checkpoint,
                found,
                library=_library(plugin_lib),
                plugin=_plugin(plugin_lib),
                max_seq_len=max_seq_len,
                kernel_sources=kernel_sources,
                progress=step,
            )
    outputs = []
    if report is not None:
        from mra_export.parity.html_report import write_report

        write_report(report, comparisons, title=f"Parity of {source}", force=force)
        outputs.append(str(report))
    if any(c.ok is False for c in comparisons):
        if not shown["as_json"]:
            print_comparisons(comparisons)
        _fail_parity("check", ParityError(_failures(comparisons)), comparisons, shown["as_json"], outputs)
    if not shown["as_json"]:
        print_comparisons(comparisons)
    passed = sum(c.ok is True for c in comparisons)
    undecided = len(comparisons) - passed
    text = f"PASSED {passed} comparison(s)" + (f", {undecided} not judged" if undecided else "")
    fields: dict[str, Any] = {}
    if bundle is not None:
        if not shown["as_json"]:
            print_recorded(verified)
        text = f"{text}\nVERIFIED {describe_bundle(verified)}"
        fields = {name: verified.manifest[name] for name in ("files", "variants", "parity", "manifest_sha256")}
    _print_result("check", text, shown["as_json"], outputs=outputs, comparisons=_plain(comparisons), **fields)


@cli.command("bench")
@click.argument("source")
@_model_options
@click.option("--batch", metavar="MIN:OPT:MAX", default="1", show_default=True, help="Sizes of a batch to time.")
@click.option(
    "--seq-len", metavar="MIN:OPT:MAX", help="Lengths to time.  [default: 128, 512, ... to the model's maximum]"
)
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, help="Of a session.  [default: ONNX Runtime's choice]"
)
@click.option("--plugin-lib", type=click.Path(path_type=Path), help="libmra_onnxruntime.so.  [default: found]")
@_output_options
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

    from mra_export.console import print_bench, progress
    from mra_export.pipeline.bench import bench
    from mra_export.pipeline.source import ExportRequest, open_source

    request = ExportRequest(task, random_init, family_options)
    with progress(quiet=shown["quiet"]) as step, open_source(source, request, progress=step) as model:
        rows = bench(
            model,
            batches=_sizes(batch, "--batch"),
            seq_lens=_lengths(seq_len, model),
            library=_library(plugin_lib),
            threads=threads,
            progress=step,
        )
    if not shown["as_json"]:
        print_bench(rows)
    else:
        _print_json(ok=True, command="bench", outputs=[], rows=[asdict(row) for row in rows])


def _triton_options(function: Any) -> Any:
    """The options of a model repository; the command gets them as one dictionary, `triton`."""
    names = ("tokenizer", "pooling", "normalize", "device", "instances", "queue_delay", "name", "library")

    @functools.wraps(function)
    def wrapper(*args: Any, triton: bool, batch: str | None, seq_len: str | None, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(f"triton_{name}") for name in names}
        return function(*args, triton={"enabled": triton, "batch": batch, "seq_len": seq_len, **given}, **kwargs)

    return _options(
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
        click.option(
            "--triton-pooling", type=click.Choice(["cls", "mean"]), help="A step for a model without pooling."
        ),
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


@cli.command("bundle")
@click.argument("source")
@_output("The bundle directory to write.")
@click.option("--engine", "engines", type=click.Path(path_type=Path), multiple=True, metavar="FILE.engine",
              help="An engine that `mra-export trt` built from SOURCE; may be repeated.")  # fmt: skip
@_model_options
@_dtype_options(None, "as SOURCE, fp32 for a checkpoint")
@click.option(
    "--pooling", type=click.Choice(["none", "cls", "mean"]), help="Of a checkpoint.  [default: its own, or mean]"
)
@click.option("--normalize/--no-normalize", default=None, help="Of a checkpoint.  [default: as SOURCE]")
@click.option("--no-check", is_flag=True, help="Skip the parity check.")
@click.option("--plugin-lib", type=click.Path(path_type=Path), multiple=True,
              help="A native library to put in, instead of the one found; may be repeated.")  # fmt: skip
@_triton_options
@_force
@_output_options
def bundle_command(
    source: str,
    output: Path,
    engines: tuple[Path, ...],
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
    """Writes one directory with what a C++ server needs: ONNX file, engines, libraries, tokenizer, manifest.

    SOURCE is a checkpoint, which is exported and checked first, or an ONNX directory. The bundle works wherever it is copied
    to; `mra-export check DIR` verifies it.

    \b
    Example:
      mra-export bundle ./minilm-onnx --engine ./minilm.engine -o ./minilm-bundle
    """
    from mra_export.console import describe_bundle, print_comparisons, progress
    from mra_export.pipeline.create_bundle import create_bundle
    from mra_export.pipeline.source import ExportRequest
    from mra_export.triton.repository import MODEL_REPOSITORY, RepositoryWriter
    from mra_export.triton.settings import triton_settings

    settings = triton_settings(**triton)
    writer = None if settings is None else RepositoryWriter(settings)
    plugins = [path for path in plugin_lib if _plugin(path)]
    libraries = [path for path in plugin_lib if not _plugin(path)]
    comparisons: list[Any] = []
    with progress(quiet=quiet) as report:
        try:
            bundle = create_bundle(
                source, output, engines=engines, check=not no_check, comparisons=comparisons, progress=report,
                library=libraries[-1] if libraries else None, plugin=plugins[-1] if plugins else None,
                triton=writer, request=ExportRequest(options=family_options, **options), force=force,
            )  # fmt: skip
        except ParityError as error:
            _fail_parity("bundle", error, comparisons, as_json)
    if not as_json:
        print_comparisons(comparisons)
    made = bundle.manifest
    served = None if writer is None else writer.repository
    lines = [describe_bundle(bundle), f"  next: mra-export check {output}"]
    if served is not None:
        lines.append(served.describe(output / MODEL_REPOSITORY))
    _print_result(
        "bundle",
        "\n".join(lines),
        as_json,
        outputs=[str(output)],
        triton=None if served is None else served.as_json(output / MODEL_REPOSITORY),
        files=made["files"],
        variants=made["variants"],
        model=made["model"],
        pooling=made["pooling"],
        manifest_sha256=made["manifest_sha256"],
        comparisons=_plain(comparisons),
    )


@cli.command("embed")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@_output("The .npy or .parquet file to write.")
@click.option("--column", "--text-column", default="text", show_default=True, metavar="NAME",
              help="Where the texts are in .jsonl and .parquet.")  # fmt: skip
@click.option("--id-column", "id_columns", multiple=True, metavar="NAME",
              help="A column of INPUT to keep in a .parquet output; may be repeated.")  # fmt: skip
@click.option(
    "--batch-tokens", type=int, metavar="N", help="Most tokens of a batch, padding included.  [default: 2048]"
)
@click.option("--threads", type=int, default=0, metavar="N",
              help="Of a session.  [default: ONNX Runtime's choice; 1 with ray]")  # fmt: skip
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
              help="This process, or workers of Ray Data.")  # fmt: skip
@click.option("--workers", type=int, metavar="N", help="Of ray.  [default: as there are processors for]")
@click.option("--force", is_flag=True, help="Replace an existing output; drop unfinished work of another command.")
@_output_options
def embed_command(
    bundle: Path,
    source: Path,
    output: Path,
    column: str,
    id_columns: tuple[str, ...],
    batch_tokens: int | None,
    threads: int,
    engine: str,
    workers: int | None,
    force: bool,
    **shown: Any,
) -> None:
    """Embeds each text of INPUT, a .txt, .jsonl or .parquet file, with a bundle.

    Interrupted or killed, the same command goes on where it was. The bytes of the output do not depend on that, nor on
    threads, engine and workers.

    \b
    Example:
      mra-export embed ./minilm-bundle ./documents.jsonl -o ./vectors.npy
    """
    from mra_export.console import rows_progress
    from mra_export.embedding.encoder import DEFAULT_BATCH_TOKENS
    from mra_export.embedding.run import embed

    with rows_progress(quiet=shown["quiet"]) as watcher:
        result = embed(
            bundle, source, output, column=column, id_columns=id_columns, engine=engine, workers=workers, threads=threads,
            batch_tokens=DEFAULT_BATCH_TOKENS if batch_tokens is None else batch_tokens, force=force, watcher=watcher,
        )  # fmt: skip
    cut = f", {result.truncated} of them cut to {result.max_length} tokens" if result.truncated else ""
    resumed = f" (and {result.resumed_rows} before)" if result.resumed_rows else ""
    _print_result(
        "embed",
        f"{result.output}: {result.rows} rows of {result.hidden_size}{cut}\n  "
        f"{result.rows - result.resumed_rows} rows in {result.seconds:.1f} s{resumed}, {result.rows_per_second:,.0f} rows/s, "
        f"{result.padded_share:.0%} padding, {result.engine} ({result.workers} x {result.provider})",
        shown["as_json"],
        outputs=[str(result.output)],
        rows=result.rows,
        hidden_size=result.hidden_size,
        truncated=result.truncated,
        max_length=result.max_length,
        tokens=result.tokens,
        padded_share=result.padded_share,
        resumed_rows=result.resumed_rows,
        seconds=result.seconds,
        rows_per_second=result.rows_per_second,
        engine=result.engine,
        workers=result.workers,
        provider=result.provider,
    )


@cli.command("build")
@click.argument("kinds", nargs=-1, type=click.Choice(["onnxruntime", "tensorrt"]))
@click.option("--no-fetch", is_flag=True, help="Do not fetch missing headers.")
@_output_options
def build_command(kinds: tuple[str, ...], no_fetch: bool, **shown: Any) -> None:
    """Compiles the native libraries that this machine can compile, or only those named.

    \b
    Example:
      mra-export build
    """
    from mra_export.console import progress
    from mra_export.errors import DependencyError
    from mra_export.native.build import build_libraries

    with progress(quiet=shown["quiet"]) as step:
        results = build_libraries(kinds or ("onnxruntime", "tensorrt"), fetch=not no_fetch, progress=step)
    lines = [f"{r.kind}: {f'{r.path} ({r.detail})' if r.path else f'not built. {r.detail}'}" for r in results]
    outputs = [str(r.path) for r in results if r.path]
    # Without names it is enough that something was built; what was named has to be there.
    if not outputs or (kinds and len(outputs) < len(results)) or any(r.failed for r in results):
        raise DependencyError("\n".join(lines))
    fields = {r.kind: {"path": str(r.path) if r.path else None, "detail": r.detail} for r in results}
    _print_result("build", "\n".join(lines), shown["as_json"], outputs=outputs, libraries=fields)


@cli.command("doctor")
@_output_options
def doctor_command(**shown: Any) -> None:
    """Says what this machine has, what is missing, and the command that mends it.

    \b
    Example:
      mra-export doctor
    """
    from dataclasses import asdict

    from mra_export.console import print_diagnosis
    from mra_export.errors import DependencyError
    from mra_export.pipeline.doctor import diagnose

    diagnosis = diagnose()
    missing = [problem.text for problem in diagnosis.problems if problem.essential]
    if shown["as_json"]:
        error = {"error": " ".join(missing)} if missing else {}
        _print_json(ok=not missing, command="doctor", outputs=[], **asdict(diagnosis), **error)
    else:
        print_diagnosis(diagnosis)
    if missing:
        sys.exit(DependencyError.exit_code)


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


def _library(plugin_lib: Path | None) -> Path | None:
    """The ONNX Runtime library to check with: the one named, or the one that is found."""
    from mra_export.native.libraries import find_library

    return find_library("onnxruntime", None if _plugin(plugin_lib) == plugin_lib else plugin_lib)


def _plugin(plugin_lib: Path | None) -> Path | None:
    """The TensorRT plugin, where --plugin-lib names that one; else None."""
    from mra_export.native.libraries import LIBRARY_FILES

    return plugin_lib if plugin_lib is not None and plugin_lib.name == LIBRARY_FILES["tensorrt"] else None


def _task_of(task: str, files: list[Path]) -> str:
    """The task that the exported files were made for, where the user leaves it open."""
    from mra_export.engine.manifest import read_manifest
    from mra_export.export.onnx_model import read_onnx

    if task != "auto":
        return task
    read = read_manifest if files[0].suffix == ".engine" else read_onnx
    return read(files[0]).task or task


def _plain(comparisons: list[Any]) -> list[dict[str, Any]]:
    from mra_export.parity.comparison import as_json

    return [as_json(comparison) for comparison in comparisons]


def _failures(comparisons: list[Any]) -> str:
    from mra_export.parity.comparison import describe_failures

    return "FAILED " + "\n".join(describe_failures(comparisons))


def _fail_parity(
    command: str, error: ParityError, comparisons: list[Any], as_json: bool, outputs: list[str] | None = None
) -> None:
    """Ends the command with the comparisons in its JSON; without --json the caller shows them."""
    if as_json:
        _print_json(ok=False, command=command, outputs=outputs or [], error=str(error), comparisons=_plain(comparisons))
        sys.exit(error.exit_code)
    raise error


def _print_result(command: str, text: str, as_json: bool, **fields: Any) -> None:
    if as_json:
        _print_json(ok=True, command=command, **fields)
    else:
        click.echo(text)


def _print_json(**fields: Any) -> None:
    click.echo(json.dumps(fields, ensure_ascii=False))


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and ends the process with the exit code of `errors`.

    Args:
        arguments: instead of `sys.argv[1:]`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in arguments
    verbose = "-v" in arguments or "--verbose" in arguments
    # A plain `kill` and a closed terminal get the same clean-up as Ctrl-C.
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) is not signal.SIG_IGN:  # as under nohup
            signal.signal(name, _interrupt)
    try:
        code = cli.main(args=arguments, prog_name="mra-export", standalone_mode=False)
    except click.exceptions.Exit as exit_:
        code = exit_.exit_code
    except click.ClickException as error:
        code = 2
        if as_json:
            _print_error(arguments, error.format_message())
        else:
            error.show()
    except MraExportError as error:
        code = error.exit_code
        if verbose:
            traceback.print_exc()
        if as_json:
            _print_error(arguments, str(error))
        else:
            click.echo(f"Error: {error}", err=True)
    except (KeyboardInterrupt, click.Abort) as error:
        code = 1
        # A command that keeps what it did says so; click hides that behind its Abort.
        message = str(error) or str(error.__cause__ or "") or "Interrupted; no output was written."
        if as_json:
            _print_error(arguments, message)
        else:
            click.echo(message, err=True)
    except OSError as error:
        # Files that the commands write have messages of their own: what is left is standard output itself.
        code = 1
        sys.stderr.write(f"Error: {error.strerror or error}\n")
        sys.stdout = None  # Python would try to flush it again
    except Exception as error:
        if verbose:
            traceback.print_exc()
        code = 1
        text = f"{type(error).__name__}: {error}"
        message = f"This is a bug in mra-export. {text.splitlines()[0]} Run it again with -v for the traceback."
        if as_json:
            _print_error(arguments, message)
        else:
            click.echo(f"Error: {message}", err=True)
    sys.exit(code if isinstance(code, int) else 0)


class _Interrupted(KeyboardInterrupt):
    """Unlike its parent, CPython does not kill the process at its end for one that passed through `exec` and was handled."""


def _interrupt(*_: object) -> None:
    raise _Interrupted


def _print_error(arguments: list[str], message: str) -> None:
    command = next((a for a in arguments if a in cli.commands), None)
    _print_json(ok=False, command=command, outputs=[], error=message)
