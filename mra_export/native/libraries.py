"""Finds the native libraries: ONNX Runtime's custom-op library, the TensorRT plugin and OpenVINO's extension."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mra_export.errors import DependencyError, InputError
from mra_export.version import __version__

__all__ = [
    "LIBRARY_FILES",
    "built_for",
    "checking_library",
    "find_library",
    "has_functions",
    "library_dirs",
    "named_plugin",
    "not_built_file",
    "not_built_note",
    "onnxruntime_library",
    "openvino_library",
    "package_library_dir",
    "tensorrt_library",
    "user_cache_dir",
    "user_library_dir",
]

LIBRARY_FILES = {
    "onnxruntime": "libmra_onnxruntime.so",
    "tensorrt": "libmra_tensorrt.so",
    "openvino": "libmra_openvino.so",
}
"""Kind of library -> its file name."""
_OPENVINO_RELEASE = re.compile(rb"mra-openvino-release=([0-9.]+)")
"""What the extension says of itself in plugins/openvino/extension.cc."""

_FUNCTIONS = b"mra_call_"
"""What the names of the operators' C functions begin with, in plugins/onnxruntime/attention_call.cc."""

_COMMAND = {
    "onnxruntime": "mra-export build",
    "tensorrt": "mra-export build tensorrt",
    "openvino": "mra-export build openvino",
}
_USE = {
    "onnxruntime": "ONNX Runtime runs the exported files without it too, by their slower function body.",
    "tensorrt": "TensorRT cannot run the exported files without it.",
    "openvino": "OpenVINO cannot run the exported files without it, or without libmra_onnxruntime.so.",
}


def package_library_dir() -> Path:
    """The directory inside the package, where a wheel carries the libraries and `mra-export build` puts them."""
    return Path(__file__).resolve().parents[1] / "lib"


def user_cache_dir() -> Path:
    """What this package keeps for a user: MRA_EXPORT_CACHE_DIR, or `mra-export` under XDG_CACHE_HOME or ~/.cache."""
    if configured := os.environ.get("MRA_EXPORT_CACHE_DIR"):
        return Path(configured)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mra-export"


def user_library_dir() -> Path:
    """The directory for libraries where the package is not writable; one per version of the package."""
    return user_cache_dir() / "lib" / __version__


def library_dirs() -> list[Path]:
    """Where libraries are looked for, in this order: MRA_EXPORT_LIB_DIR, the package, the user's cache."""
    configured = os.environ.get("MRA_EXPORT_LIB_DIR")
    return [*([Path(configured)] if configured else []), package_library_dir(), user_library_dir()]


def find_library(kind: str, path: Path | None = None) -> Path | None:
    """The path of a native library.

    Args:
        kind: of `LIBRARY_FILES`.
        path: a library that the caller names, or its directory; nothing else is then looked at.

    Returns:
        The absolute path, or None where there is no library.

    Raises:
        InputError: `path` was given and is not there.
    """
    name = LIBRARY_FILES[kind]
    if path is not None:
        named = path / name if path.is_dir() else path
        if not named.is_file():
            raise InputError(f"{named} does not exist. Give the path of {name}, or leave it out to have it found.")
        return named.resolve()
    return next((directory.resolve() / name for directory in library_dirs() if (directory / name).is_file()), None)


def not_built_file(kind: str, directory: Path) -> Path:
    """Where the installation writes why a library is not in `directory`: pip shows nothing of what a build says."""
    return directory / f"{LIBRARY_FILES[kind]}.not-built"


def not_built_note(kind: str = "onnxruntime") -> str | None:
    """What to tell a user whose machine has no library of this kind, and why the installation built none; None where it has one."""
    if find_library(kind) is not None:
        return None
    note = f"{LIBRARY_FILES[kind]} is not built. {_USE[kind]} Run `{_COMMAND[kind]}`."
    try:
        reason = " ".join(not_built_file(kind, package_library_dir()).read_text(encoding="utf-8").split())
    except OSError:
        return note
    return f"{note} The installation left it out: {reason}"


def onnxruntime_library(path: Path | None = None) -> Path:
    """The library for `onnxruntime.SessionOptions.register_custom_ops_library`.

    Args:
        path: as for `find_library`.

    Raises:
        InputError: `path` was given and is not there.
        DependencyError: the library was not built; the message names the command that builds it.
    """
    return _require("onnxruntime", path)


def tensorrt_library(path: Path | None = None) -> Path:
    """The library for TensorRT's `IPluginRegistry.load_library`.

    Args:
        path: as for `find_library`.

    Raises:
        InputError: `path` was given and is not there.
        DependencyError: the library was not built; the message names the command that builds it.
    """
    return _require("tensorrt", path)


def openvino_library(path: Path | None = None) -> Path:
    """The library for OpenVINO's `Core.add_extension`.

    Args:
        path: as for `find_library`.

    Raises:
        InputError: `path` was given and is not there.
        DependencyError: the library was not built; the message names the command that builds it.
    """
    return _require("openvino", path)


def built_for(library: Path) -> str | None:
    """The release of OpenVINO that its extension was built for, as in "2026.4.1"; None where the file is no such library."""
    found = _OPENVINO_RELEASE.search(library.read_bytes())
    return None if found is None else found[1].decode()


def has_functions(library: Path) -> bool:
    """Whether a library has the operators as C functions, which nodes in Python can call: that of ONNX Runtime has."""
    return _FUNCTIONS in library.read_bytes()


def _require(kind: str, path: Path | None) -> Path:
    found = find_library(kind, path)
    if found is None:
        places = ", ".join(str(directory) for directory in library_dirs())
        raise DependencyError(
            f"{LIBRARY_FILES[kind]} was not found in {places}. Run `{_COMMAND[kind]}` to compile it. {_USE[kind]}"
        )
    return found


def checking_library(plugin_lib: Path | None) -> Path | None:
    """The ONNX Runtime library to check with: the one named, or the one that is found."""
    return find_library("onnxruntime", None if named_plugin(plugin_lib) == plugin_lib else plugin_lib)


def named_plugin(plugin_lib: Path | None) -> Path | None:
    """The TensorRT plugin, where --plugin-lib names that one; else None."""
    return plugin_lib if plugin_lib is not None and plugin_lib.name == LIBRARY_FILES["tensorrt"] else None
