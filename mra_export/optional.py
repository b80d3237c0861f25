"""Packages that need not be installed: the module, or an error that says what to do."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from typing import Any

from mra_export.errors import DependencyError
from mra_export.quiet import quiet_onnxruntime

__all__ = ["require", "require_onnxruntime", "require_pyarrow", "require_tokenizers"]


def require(module: str, otherwise: str) -> Any:
    """A module by its dotted name.

    Args:
        module: for a submodule, the submodule is what is returned.
        otherwise: the text of the error; `{error}` in it becomes Python's own.

    Raises:
        DependencyError: it cannot be imported; the text is another where it is installed and damaged.
    """
    try:
        parts = module.split(".")
        # One by one: a submodule that is loaded already says nothing of the package above it.
        return [importlib.import_module(".".join(parts[: count + 1])) for count in range(len(parts))][-1]
    except ImportError as error:
        if "{error}" in otherwise or not _is_installed(module):
            raise DependencyError(otherwise.replace("{error}", str(error))) from error
        package, reason = (
            module.partition(".")[0],
            str(error) or "it was made for other versions of the packages beside it",
        )
        raise DependencyError(
            f"The package {package}{_version(package)} is installed, but cannot be imported: {reason}. Install it again, in a "
            "version that fits the other packages."
        ) from error


def _version(package: str) -> str:
    try:
        return f" {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return ""


def _is_installed(module: str) -> bool:
    """Whether a module that could not be imported is there, so that something else is the matter."""
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):  # as where a test has put None in its place
        return False


def require_onnxruntime(why: str = "", otherwise: str = "") -> Any:
    """The module onnxruntime, with its telemetry off.

    Args:
        why: what cannot be done without it, to follow "is not installed".
        otherwise: what else would do, to follow the command.

    Raises:
        DependencyError: it is not installed.
    """
    text = f"ONNX Runtime is not installed{why}. Install it with `pip install onnxruntime`{otherwise}."
    quiet_onnxruntime()
    return require("onnxruntime", text)


def require_tokenizers(install: str = "Install it with `pip install 'mra-export[embed]'`.") -> Any:
    """The module tokenizers.

    Args:
        install: the sentence that says how.

    Raises:
        DependencyError: it is not installed.
    """
    return require("tokenizers", f"The package tokenizers is not installed. {install}")


def require_pyarrow(what: str = "Parquet files") -> Any:
    """The module pyarrow, with `pyarrow.compute` and `pyarrow.parquet`.

    Args:
        what: cannot be read or written without it.

    Raises:
        DependencyError: it is not installed.
    """
    text = f"{what} need pyarrow, which is not installed. Install it with `pip install 'mra-export[embed]'`."
    for module in ("pyarrow.compute", "pyarrow.parquet"):
        require(module, text)
    return require("pyarrow", text)
