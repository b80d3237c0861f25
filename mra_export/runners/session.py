"""The one place that makes sessions of ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mra_export.errors import InputError
from mra_export.native.elf import check_whole
from mra_export.optional import require_onnxruntime

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["open_session", "session_options"]


def session_options(library: Path | None = None, *, threads: int = 0) -> Any:
    """Options of a session that says only what is an error.

    Args:
        library: the library of the native operators, None for the function bodies.
        threads: of the session, 0 for ONNX Runtime's choice.

    Raises:
        InputError: the library is not one for this ONNX Runtime.
        DependencyError: ONNX Runtime is not installed.
    """
    options = require_onnxruntime().SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if library is not None:
        check_whole(library)
        try:
            options.register_custom_ops_library(str(library.resolve()))
        except Exception as error:
            raise InputError(
                f"{library} is not the operator library for this ONNX Runtime: {str(error).splitlines()[0]} "
                "Build it with `mra-export build`."
            ) from error
    return options


def open_session(model: str | bytes, options: Any, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Any:
    """A session for a file by its path, or a serialized model; ONNX Runtime's own errors pass through."""
    return require_onnxruntime().InferenceSession(model, options, providers=list(providers))
