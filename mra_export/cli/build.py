"""`mra-export build`."""

from __future__ import annotations

from typing import Any

import click

from mra_export.cli.options import output_options
from mra_export.cli.output import print_result

__all__ = ["build_command"]


@click.command("build")
@click.argument("kinds", nargs=-1, type=click.Choice(["onnxruntime", "tensorrt", "openvino"]))
@click.option(
    "--cuda/--no-cuda",
    default=None,
    help="Code for GPUs: the TensorRT plugin, and kernels for ONNX Runtime's CUDA provider; or none.  [default: the plugin where a "
    "GPU is, the kernels with onnxruntime-gpu]",
)
@click.option("--no-fetch", is_flag=True, help="Do not fetch missing headers.")
@output_options
def build_command(kinds: tuple[str, ...], cuda: bool | None, no_fetch: bool, **shown: Any) -> None:
    """Compiles the native libraries that this machine can compile and use, or those named.

    \b
    Example:
      mra-export build
    """
    from mra_export.cli.console import progress
    from mra_export.errors import DependencyError
    from mra_export.native.build import build_libraries

    with progress(quiet=shown["quiet"]) as step:
        results = build_libraries(kinds, cuda=cuda, fetch=not no_fetch, progress=step)
    lines = [f"{r.kind}: {f'{r.path} ({r.detail})' if r.path else f'not built. {r.detail}'}" for r in results]
    if not kinds and all(r.kind != "tensorrt" for r in results):
        why = "as no GPU is here" if cuda is None else "as --no-cuda says"
        lines.append(f"tensorrt: left out, {why}; `mra-export build tensorrt` compiles it all the same.")
    outputs = [str(r.path) for r in results if r.path]
    # Without names it is enough that something was built; what was named has to be there.
    if not outputs or (kinds and len(outputs) < len(results)) or any(r.failed for r in results):
        raise DependencyError("\n".join(lines))
    fields = {r.kind: {"path": str(r.path) if r.path else None, "detail": r.detail} for r in results}
    print_result("build", "\n".join(lines), shown["as_json"], outputs=outputs, libraries=fields)
