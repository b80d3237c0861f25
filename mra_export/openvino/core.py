"""OpenVINO's runtime with the native operators in it, and the one place that compiles models for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mra_export.errors import DependencyError, InputError
from mra_export.native.libraries import LIBRARY_FILES, built_for
from mra_export.optional import require

__all__ = ["PRECISIONS", "check_library", "compile_model", "first_error", "open_core", "release", "require_openvino"]

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
"""Type of the arithmetic -> OpenVINO's hint. It is always given: OpenVINO's own choice depends on the processor."""


def require_openvino() -> Any:
    """The module openvino.

    Raises:
        DependencyError: it is not installed.
    """
    return require("openvino", "OpenVINO is not installed. Install it with `pip install 'mra-export[openvino]'`.")


def release() -> str:
    """The release of OpenVINO that is installed, as in "2026.4.1".

    Raises:
        DependencyError: it is not installed.
    """
    return str(require_openvino().__version__).partition("-")[0]


def check_library(library: Path) -> None:
    """Refuses an extension library that this OpenVINO cannot load, before the loader does it in its own words.

    Raises:
        InputError: it is no such library.
        DependencyError: it was built for another release.
    """
    built = built_for(library)
    if built is None:
        raise InputError(f"{library} is not {LIBRARY_FILES['openvino']}. Build it with `mra-export build openvino`.")
    if built != (installed := release()):
        raise DependencyError(
            f"{library} was built for OpenVINO {built}, and {installed} is installed: an extension runs with its own release only. "
            f"Run `mra-export build openvino`, or `pip install openvino=={built}`."
        )


def open_core(library: Path | None = None) -> Any:
    """An `openvino.Core`.

    Args:
        library: the extension library; None for stock OpenVINO.

    Raises:
        InputError: the library is none, or cannot be loaded.
        DependencyError: OpenVINO is not installed, or the library is for another release.
    """
    core = require_openvino().Core()
    if library is not None:
        check_library(library)
        try:
            core.add_extension(str(library.resolve()))
        except RuntimeError as error:
            raise InputError(f"OpenVINO {release()} cannot load {library}: {first_error(error)}") from error
    return core


def compile_model(core: Any, model: Any, precision: str, *, threads: int = 0, streams: int = 1) -> Any:
    """Compiles a model for the CPU.

    Args:
        core: from `open_core`.
        model: a model that was read, or the path of an .onnx or .xml file.
        precision: of `PRECISIONS`.
        threads: of all streams, 0 for OpenVINO's choice.
        streams: requests that run at the same time.

    Raises:
        InputError: OpenVINO cannot read or compile the model.
    """
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": PRECISIONS[precision], "NUM_STREAMS": streams}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        return core.compile_model(str(model) if isinstance(model, Path) else model, "CPU", settings)
    except RuntimeError as error:
        name = f"{model} " if isinstance(model, Path) else "the model "
        raise InputError(f"OpenVINO {release()} cannot compile {name}for this CPU: {first_error(error)}") from error


def first_error(error: BaseException) -> str:
    """OpenVINO's errors on one line, without the places in its sources."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith("Exception from ")]
    text = " ".join(kept) or str(error)
    return text if len(text) <= 300 else f"{text[:300]} ..."
