"""The plugin library: what it says of itself, and its registration with a backend."""

from __future__ import annotations

import ctypes
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mra_export.errors import DependencyError, InputError
from mra_export.native.elf import check_whole
from mra_export.operators.limits import OP_VERSION

if TYPE_CHECKING:
    from pathlib import Path

    from mra_export.engine.backend import Backend

__all__ = ["ENTRY_POINTS", "PluginInfo", "load_plugin", "plugin_info"]

ENTRY_POINTS = ("getCreators", "setLoggerFinder", "mraBuildInfo")
"""What the plugin library exports: the first two are TensorRT's, the last is ours."""


@dataclass(frozen=True)
class PluginInfo:
    """What a plugin library says of itself.

    Attributes:
        path: the library.
        sha256: of the file.
        version: of the plugin.
        architectures: CMake's list of the GPU architectures it was compiled for, separated by commas ("80-real,90").
        tensorrt_headers: version of the headers, "major.minor".
        cuda_runtime: version as CUDART_VERSION, for example 13000.
    """

    path: Path
    sha256: str
    version: str
    architectures: str
    tensorrt_headers: str
    cuda_runtime: int


def plugin_info(path: Path, name: str = "") -> PluginInfo:
    """What a plugin library says of itself; this loads it.

    Args:
        path: libmra_tensorrt.so.
        name: of the plugin that is wanted of it, for messages.

    Raises:
        InputError: it is not a library of this machine, or not our plugin, or one of another version.
    """
    check_whole(path)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise InputError(
            f"{path} cannot be loaded: {error}. Build it on this machine with `mra-export build tensorrt`."
        ) from error
    missing = [name for name in ENTRY_POINTS if not hasattr(library, name)]
    if missing:
        raise InputError(
            f"{path} is not the TensorRT plugin of mra-export: it does not export {', '.join(missing)}. "
            "Give the path of libmra_tensorrt.so."
        )
    describe = library.mraBuildInfo
    describe.restype = ctypes.c_char_p
    fields = json.loads(describe() or b"{}")
    version = str(fields.get("plugin_version"))
    if version != str(OP_VERSION):
        raise InputError(
            f"{path} holds version {version} of the plugin{name and f' {name}'}, this mra-export writes version {OP_VERSION}. "
            "Build it again with `mra-export build tensorrt`."
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return PluginInfo(
        path,
        digest,
        version,
        str(fields.get("architectures", "")),
        str(fields.get("tensorrt_headers", "")),
        int(fields.get("cuda_runtime", 0)),
    )


_loaded_plugins: dict[str, PluginInfo] = {}
"""Backend -> the plugin library that this process has registered with it."""


def load_plugin(backend: Backend, path: Path, name: str) -> PluginInfo:
    """Registers the plugin with a backend, once per process.

    Args:
        backend: from `open_backend`.
        path: libmra_tensorrt.so.
        name: of the plugin that is wanted of it.

    Raises:
        InputError: as `plugin_info`; or the backend refuses the library.
        DependencyError: this process has registered another library.
    """
    info = plugin_info(path, name)
    if known := _loaded_plugins.get(backend.name):
        if known.sha256 != info.sha256:
            raise DependencyError(f"This process has loaded another plugin, {known.path}; start a new one for {path}.")
        return known
    registry = backend.module.get_plugin_registry()
    backend.logger.messages.clear()
    registry.load_library(str(path))
    # load_library returns a handle of no meaning; what counts is whether the creator is there now.
    if not any((c.name, str(c.plugin_version)) == (name, info.version) for c in registry.all_creators):
        raise InputError(f"{backend.title} did not accept the plugin {path}. {backend.errors()}".strip())
    _loaded_plugins[backend.name] = info
    return info
