"""`mra-export check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mra_export.cli.options import force_option, model_options, output_options
from mra_export.cli.output import fail_parity, failures, plain, print_result
from mra_export.errors import ParityError
from mra_export.native.libraries import checking_library, named_plugin

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["check_command"]


@click.command("check")
@click.argument("source")
@click.argument("artifacts", nargs=-1, type=click.Path(path_type=Path))
@model_options
@click.option("--max-seq-len", type=click.IntRange(min=1), help="Longest length to run.  [default: the model's]")
@click.option("--plugin-lib", type=click.Path(path_type=Path), help="The native library to check with.")
@click.option("--kernel-sources", type=click.Path(path_type=Path), help="MRA's CUDA sources, for PyTorch on a GPU.")
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    type=click.Choice(["onnxruntime", "openvino"]),
    help="In which .onnx files are run; openvino in fp32 and in bf16. May be repeated.  [default: onnxruntime]",
)
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.html", help="Write a page with plots.")
@force_option
@output_options
def check_command(
    source: str,
    artifacts: tuple[Path, ...],
    task: str,
    random_init: int | None,
    family_options: dict[str, str],
    max_seq_len: int | None,
    plugin_lib: Path | None,
    kernel_sources: Path | None,
    runtimes: tuple[str, ...],
    report: Path | None,
    force: bool,
    **shown: Any,
) -> None:
    """Compares the PyTorch model SOURCE with .onnx, .engine and OpenVINO's .xml files, or the directories that hold them.

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
    from mra_export.checkpoint.layout import sentence_root
    from mra_export.checkpoint.load import load_checkpoint
    from mra_export.cli.console import progress
    from mra_export.cli.tables import describe_bundle, print_comparisons, print_recorded
    from mra_export.pipeline.check import RUNTIMES, bundle_alone, check, check_bundle, find_artifacts

    unused = {"--task": None if task == "auto" else task, "--plugin-lib": plugin_lib, "--kernel-sources": kernel_sources,
              "--option": family_options or None, "--runtime": runtimes or None}  # fmt: skip
    bundle = None if artifacts else bundle_alone(source, random_init=random_init, options=unused)
    with progress(quiet=shown["quiet"]) as step:
        if bundle is not None:
            verified, comparisons = check_bundle(bundle, max_seq_len=max_seq_len, progress=step)
        else:
            found = find_artifacts(list(artifacts) or [sentence_root(locate(source))])
            step(f"loading {source}")
            checkpoint = load_checkpoint(
                source, task=_task_of(task, found), random_init=random_init, options=family_options
            )
            comparisons = check(
                checkpoint,
                found,
                library=checking_library(plugin_lib),
                plugin=named_plugin(plugin_lib),
                max_seq_len=max_seq_len,
                kernel_sources=kernel_sources,
                runtimes=runtimes or RUNTIMES[:1],
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
        fail_parity("check", ParityError(failures(comparisons)), comparisons, shown["as_json"], outputs)
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
    print_result("check", text, shown["as_json"], outputs=outputs, comparisons=plain(comparisons), **fields)


def _task_of(task: str, files: list[Path]) -> str:
    """The task that the exported files were made for, where the user leaves it open."""
    from mra_export.engine.manifest import read_manifest
    from mra_export.export.onnx_model import read_onnx
    from mra_export.openvino.ir import read_ir

    if task != "auto":
        return task
    readers: dict[str, Callable[[Path], Any]] = {".engine": read_manifest, ".xml": read_ir}
    return readers.get(files[0].suffix, read_onnx)(files[0]).task or task
