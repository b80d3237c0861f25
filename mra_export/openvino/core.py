"""OpenVINO's runtime with the native operators in it, and the one place that compiles models for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mra_export.errors import DependencyError, InputError
from mra_export.native.libraries import LIBRARY_FILES, built_for, find_library, has_functions, openvino_library
from mra_export.openvino.python_ops import add_operators
from mra_export.optional import require

__all__ = [
    "PRECISIONS",
    "check_library",
    "compile_model",
    "first_error",
    "open_core",
    "operator_library",
    "operators_shown",
    "release",
    "require_openvino",
]

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


def operator_library(path: Path | None = None) -> Path:
    """The library with the native operators: the extension of this OpenVINO, or that of ONNX Runtime for nodes in Python.

    Args:
        path: as for `find_library`; the user's choice counts, whichever it is.

    Returns:
        The extension for the release that is installed; where there is none the library of ONNX Runtime, if it has C functions;
        where there is none of both an extension for another release, which `check_library` refuses.

    Raises:
        InputError: `path` was given and is not there.
        DependencyError: there is no library at all.
    """
    found = find_library("openvino", path)
    if path is None and (found is None or built_for(found) != release()):
        other = find_library("onnxruntime")
        if other is not None and has_functions(other):
            return other
    return found or openvino_library()


def operators_shown(library: Path) -> str:
    """How OpenVINO runs the operators of a library, in a few words for people."""
    return "native operator" if built_for(library) is not None else "native operator in a node in Python"


def check_library(library: Path) -> None:
    """Refuses a library whose operators this OpenVINO cannot run, before the loader does it in its own words.

    Raises:
        InputError: it is no such library.
        DependencyError: it was built for another release.
    """
    built = built_for(library)
    if built is None:
        if has_functions(library):
            return
        raise InputError(f"{library} is not {LIBRARY_FILES['openvino']}. Build it with `mra-export build openvino`.")
    if built != (installed := release()):
        raise DependencyError(
            f"{library} was built for OpenVINO {built}, and {installed} is installed: an extension runs with its own release only. "
            f"Run `mra-export build openvino`, or `pip install openvino=={built}`."
        )


def open_core(library: Path | None = None, *, threads: int = 0) -> Any:
    """An `openvino.Core`.

    Args:
        library: from `operator_library`; None for stock OpenVINO.
        threads: that a call of an operator starts where nodes in Python run it, 0 for one on each processor. The extension runs in
            OpenVINO's own.

    Raises:
        InputError: the library is none, or cannot be loaded.
        DependencyError: OpenVINO is not installed, or the library is for another release.
    """
    core = require_openvino().Core()
    if library is None:
        return core
    check_library(library)
    if built_for(library) is None:
        add_operators(core, library, threads=threads)
        return core
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
