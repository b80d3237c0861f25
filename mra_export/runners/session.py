"""The one place that makes sessions of ONNX Runtime, and that turns its errors into ours."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

from mra_export.errors import DependencyError, InputError, MraExportError, is_out_of_memory
from mra_export.native.elf import check_whole
from mra_export.optional import require_onnxruntime

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "OLDEST_FOR_LIBRARY",
    "check_runtime",
    "open_session",
    "runtime_errors",
    "session_options",
    "too_old_for_library",
]

OLDEST_FOR_LIBRARY = (1, 21)
"""The ONNX Runtime whose API the native library asks for: kApiVersion in plugins/onnxruntime/custom_op.h."""

_TOO_OLD = re.compile(r"Unsupported model IR version|(ONNX Runtime only \*guarantees\*|Opset \d+ is under development)")


def check_runtime(library: Path | None = None) -> None:
    """Refuses an ONNX Runtime that is missing, or too old for the native library.

    Args:
        library: the library of the native operators, None for the function bodies, which need no version.

    Raises:
        DependencyError: it is; the message has its version and the one that is needed.
    """
    ort = require_onnxruntime()
    if library is None or not too_old_for_library(ort.__version__):
        return
    needed = ".".join(map(str, OLDEST_FOR_LIBRARY))
    raise DependencyError(
        f"ONNX Runtime {ort.__version__} is too old for {library.name}, which needs {needed} or newer. Upgrade it with "
        f"`pip install --upgrade {_distribution()}`. Without that library it would run the file's function body, which is slower."
    )


def too_old_for_library(version: str | None) -> bool:
    """Whether a version of ONNX Runtime is known to be too old for the native library."""
    found = re.match(r"(\d+)\.(\d+)", version or "")
    return found is not None and tuple(map(int, found.groups())) < OLDEST_FOR_LIBRARY


def session_options(library: Path | None = None, *, threads: int = 0, entries: Mapping[str, str] | None = None) -> Any:
    """Options of a session that says only what is an error.

    Args:
        library: the library of the native operators, None for the function bodies.
        threads: of the session, 0 for ONNX Runtime's choice.
        entries: of its configuration, which the library reads when it is registered.

    Raises:
        InputError: the library is not one of operators.
        DependencyError: ONNX Runtime is not installed, or too old for the library.
    """
    check_runtime(library)
    options = require_onnxruntime().SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    for name, value in (entries or {}).items():
        options.add_session_config_entry(name, value)
    if library is not None:
        check_whole(library)
        try:
            options.register_custom_ops_library(str(library.resolve()))
        except Exception as error:
            if "too old" in str(error):  # in the library's own words
                raise DependencyError(_first_line(error)) from error
            raise InputError(
                f"{library} is not the operator library for this ONNX Runtime: {_first_line(error)} "
                "Build it with `mra-export build`."
            ) from error
    return options


def open_session(
    model: str | bytes, options: Any, providers: Sequence[str] = ("CPUExecutionProvider",), *, shown: str = ""
) -> Any:
    """A session.

    Args:
        model: a file by its path, or a serialized model.
        options: from `session_options`.
        providers: ONNX Runtime's execution providers, the preferred one first.
        shown: how messages call the model; its path by default.

    Raises:
        InputError: ONNX Runtime refuses the model.
        DependencyError: ONNX Runtime is not installed or too old for the model, or there is not enough memory.
    """
    with runtime_errors(shown or (model if isinstance(model, str) else "the model")):
        return require_onnxruntime().InferenceSession(model, options, providers=list(providers))


@contextlib.contextmanager
def runtime_errors(shown: str) -> Iterator[None]:
    """Turns what ONNX Runtime raises in the block, which loads or runs a model, into our errors.

    Args:
        shown: how the messages call the model.

    Raises:
        InputError: ONNX Runtime refused the model or its inputs.
        DependencyError: it is too old for the model, or there is not enough memory.
    """
    try:
        yield
    except MraExportError:
        raise
    except Exception as error:
        text = _first_line(error)
        version = require_onnxruntime().__version__
        if is_out_of_memory(error):
            raise DependencyError(
                f"There is not enough memory to run {shown}. Run it with smaller batches or shorter texts, or on a machine with "
                "more."
            ) from error
        if found := _TOO_OLD.search(text):
            reason = text[found.start() :].rstrip(".")
            raise DependencyError(
                f"ONNX Runtime {version} is too old for {shown}: {reason}. Upgrade it with `pip install --upgrade "
                f"{_distribution()}`, or export the checkpoint again with `--opset 17`."
            ) from error
        raise InputError(f"ONNX Runtime {version} refused {shown}: {text}") from error


def _distribution() -> str:
    """The package that ONNX Runtime was installed from."""
    import importlib.metadata

    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(name)
            return name
    return "onnxruntime"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
