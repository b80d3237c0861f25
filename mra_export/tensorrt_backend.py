"""What differs between TensorRT and TensorRT-RTX, and what either needs before it can be used: libraries, plugin, GPU."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import platform
import re
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mra_export.errors import DependencyError, InputError
from mra_export.operators.limits import OP_VERSION
from mra_export.operators.mra2_attention.spec import OP_TYPE
from mra_export.optional import require

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "BACKENDS",
    "ENTRY_POINTS",
    "Backend",
    "Gpu",
    "PluginInfo",
    "covers",
    "driver_version",
    "find_gpus",
    "load_plugin",
    "open_backend",
    "parse_version",
    "plugin_info",
    "select_backend",
]

BACKENDS = ("tensorrt", "rtx")
_MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
_PACKAGES = {"tensorrt": "tensorrt", "rtx": "tensorrt-rtx"}
_MACHINES = {"x86_64": 62, "aarch64": 183}
"""`platform.machine()` -> ELF's e_machine."""


ENTRY_POINTS = ("getCreators", "setLoggerFinder", "mraBuildInfo")
"""What the plugin library exports: the first two are TensorRT's, the last is ours."""


@dataclass(frozen=True)
class Backend:
    """A TensorRT that is imported and ready.

    Attributes:
        name: one of `BACKENDS`.
        module: the Python module `tensorrt` or `tensorrt_rtx`.
        version: its version.
        logger: collects what it says; the `messages` of one are (severity name, text).
    """

    name: str
    module: Any
    version: str
    logger: Any

    @property
    def title(self) -> str:
        """Name and version for people."""
        return f"{'TensorRT-RTX' if self.name == 'rtx' else 'TensorRT'} {self.version}"

    def errors(self) -> str:
        """What it logged as errors since `logger.messages` was cleared, in one line.

        Without what every build on a machine without a GPU says of CUDA, unless there is nothing else.
        """
        every = [text for kind, text in self.logger.messages if "ERROR" in kind]
        lines = [text for text in every if not re.search(r"CUDA (driver|GPU|lib)", text)] or every
        return " / ".join(dict.fromkeys(" ".join(line.split()) for line in lines[-5:]))


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine; `compute_capability` as in "9.0"."""

    name: str
    compute_capability: str


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


def parse_version(text: str) -> tuple[int, ...]:
    """The numbers of a version, up to the first part that is none: "1.7.1.116" -> (1, 7, 1, 116)."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def driver_version() -> int | None:
    """The newest CUDA that the driver serves, as CUDART_VERSION (13000 is 13.0); None where there is no driver."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return None
    return None if failed else version.value


@functools.cache
def find_gpus() -> tuple[Gpu, ...]:
    """The GPUs that CUDA's driver shows to this process; none where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    gpus = []
    for index in range(count.value):
        device, major, minor, name = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
        calls = (
            driver.cuDeviceGet(ctypes.byref(device), index),
            driver.cuDeviceGetName(name, len(name), device),
            driver.cuDeviceGetAttribute(
                ctypes.byref(major), 75, device
            ),  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
            driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device),
        )
        if not any(calls):
            gpus.append(Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}"))
    return tuple(gpus)


def select_backend(name: str = "auto") -> str:
    """The backend to build with.

    Args:
        name: one of `BACKENDS`, or "auto": a full TensorRT where it is installed and a GPU is present, else TensorRT-RTX.

    Raises:
        InputError: the name is unknown.
        DependencyError: it is not installed, or needs a GPU that is not here.
    """
    if name not in ("auto", *BACKENDS):
        raise InputError(f"backend={name!r} must be auto, {' or '.join(BACKENDS)}.")
    installed = {kind: importlib.util.find_spec(module) is not None for kind, module in _MODULES.items()}
    if name == "auto":
        if installed["tensorrt"] and (find_gpus() or not installed["rtx"]):
            name = "tensorrt"
        elif installed["rtx"]:
            name = "rtx"
        else:
            raise DependencyError(
                "Neither TensorRT nor TensorRT-RTX is installed. Run `pip install tensorrt` on a machine with a GPU, or "
                "`pip install tensorrt-rtx`, which builds engines without one too."
            )
    if not installed[name]:
        raise DependencyError(f"The backend {name} is not installed. Run `pip install {_PACKAGES[name]}`.")
    if name == "tensorrt" and not find_gpus():
        raise DependencyError(
            "TensorRT builds engines only on the GPU they are for, and CUDA's driver shows none here. Build ahead of time "
            "with --backend rtx (`pip install tensorrt-rtx`), or run this on the machine with the GPU."
        )
    return name


@functools.cache
def open_backend(name: str) -> Backend:
    """Imports a backend and arranges what it needs.

    Args:
        name: one of `BACKENDS`.

    Raises:
        DependencyError: it or polygraphy is not installed or cannot be loaded, or this process already uses the other one.
    """
    config = require("polygraphy.config", "polygraphy is not installed. Run `pip install polygraphy`.")
    is_rtx = name == "rtx"
    if "polygraphy.backend.trt" in sys.modules and is_rtx != config.USE_TENSORRT_RTX:
        raise DependencyError(f"This process already uses the other backend than {name}; start a new one.")
    config.USE_TENSORRT_RTX = is_rtx
    try:
        module = importlib.import_module(_MODULES[name])
    except (ImportError, OSError) as error:
        text = str(error).splitlines()[0]
        raise DependencyError(
            f"{_MODULES[name]} cannot be loaded: {text}. Run `pip install {_PACKAGES[name]}`."
        ) from error
    from polygraphy.logger import G_LOGGER

    # Its messages go to standard output, which belongs to the result; its exceptions say the same.
    G_LOGGER.module_severity = G_LOGGER.CRITICAL + 1
    if is_rtx:
        _provide_bare_name("libtensorrt_rtx.so")
    return Backend(name, module, str(module.__version__), _logger(module))


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # the base comes from a module that is chosen at run time
        """Keeps what TensorRT says; one for the process, as TensorRT wants it."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[tuple[str, str]] = []

        def log(self, severity: Any, text: str) -> None:
            if severity.value <= trt.ILogger.Severity.WARNING.value:
                self.messages.append((severity.name, text))

    return Logger()


def _provide_bare_name(name: str) -> None:
    """Makes `dlopen(name)` succeed in this process, for a library that is loaded as `name.1`.

    TensorRT-RTX's ONNX parser looks up a symbol in "libtensorrt_rtx.so" and ends the process where there is none, but the
    wheel ships only "libtensorrt_rtx.so.1". An empty library of that name that needs the real one is enough: the loader
    finds a loaded library by its SONAME. It is written here, in memory, since a user's machine need not have a compiler.
    """
    try:
        ctypes.CDLL(name)
        return
    except OSError:
        pass
    # A file without a name: it needs no writable folder, nor one whose files may be executed.
    descriptor = os.memfd_create(name)
    try:
        os.write(descriptor, _empty_library(name, f"{name}.1"))
        ctypes.CDLL(f"/proc/self/fd/{descriptor}", mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(name)
    except OSError as error:
        raise DependencyError(
            f"{name} cannot be loaded: {error}. Put a link {name} -> {name}.1 into a folder of LD_LIBRARY_PATH."
        ) from error
    finally:
        os.close(descriptor)


def _empty_library(soname: str, needed: str) -> bytes:
    """A 64-bit ELF shared object without code, with this DT_SONAME and one DT_NEEDED."""
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        raise DependencyError(
            f"TensorRT-RTX is offered for {', '.join(_MACHINES)}; this machine is {platform.machine()}."
        )
    strings = b"\0" + soname.encode() + b"\0" + needed.encode() + b"\0"
    symbols = (
        64 + 2 * 56
    )  # after the ELF header and two program headers: one null symbol, the hash table, then .dynamic
    hashes = symbols + 24
    dynamic = hashes + 16
    entries = 8
    text = dynamic + 16 * entries
    size = text + len(strings)
    tags = (
        (1, 2 + len(soname)),  # DT_NEEDED
        (14, 1),  # DT_SONAME
        (5, text),  # DT_STRTAB
        (10, len(strings)),  # DT_STRSZ
        (6, symbols),  # DT_SYMTAB
        (11, 24),  # DT_SYMENT
        (4, hashes),  # DT_HASH
        (0, 0),  # DT_NULL
    )
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 3, machine, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )  # fmt: skip
    load = struct.pack("<IIQQQQQQ", 1, 6, 0, 0, 0, size, size, 0x10000)
    listing = struct.pack("<IIQQQQQQ", 2, 6, dynamic, dynamic, dynamic, 16 * entries, 16 * entries, 8)
    table = b"".join(struct.pack("<QQ", *tag) for tag in tags)
    return header + load + listing + bytes(24) + struct.pack("<4I", 1, 1, 0, 0) + table + strings


def plugin_info(path: Path) -> PluginInfo:
    """What a plugin library says of itself; this loads it.

    Args:
        path: libmra_tensorrt.so.

    Raises:
        InputError: it is not a library of this machine, or not our plugin, or one of another version.
    """
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise InputError(
            f"{path} cannot be loaded: {error}. Build it on this machine with `mra-export build`."
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
            f"{path} holds version {version} of the plugin {OP_TYPE}, this mra-export writes version {OP_VERSION}. "
            "Build it again with `mra-export build`."
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


def load_plugin(backend: Backend, path: Path) -> PluginInfo:
    """Registers the plugin with a backend, once per process.

    Args:
        backend: from `open_backend`.
        path: libmra_tensorrt.so.

    Raises:
        InputError: as `plugin_info`; or the backend refuses the library.
        DependencyError: this process has registered another library.
    """
    info = plugin_info(path)
    if known := _loaded_plugins.get(backend.name):
        if known.sha256 != info.sha256:
            raise DependencyError(f"This process has loaded another plugin, {known.path}; start a new one for {path}.")
        return known
    registry = backend.module.get_plugin_registry()
    backend.logger.messages.clear()
    registry.load_library(str(path))
    # load_library returns a handle of no meaning; what counts is whether the creator is there now.
    if not any((c.name, str(c.plugin_version)) == (OP_TYPE, info.version) for c in registry.all_creators):
        raise InputError(f"{backend.title} did not accept the plugin {path}. {backend.errors()}".strip())
    _loaded_plugins[backend.name] = info
    return info


def covers(architectures: str, compute_capability: str) -> bool:
    """Whether code compiled for `architectures` (as in `PluginInfo`) runs on a GPU: its own, or PTX of an older one.

    Machine code of an architecture runs on those of the same major number and no smaller minor one.
    """
    major, minor = (int(part) for part in compute_capability.split("."))
    for item in architectures.split(","):
        found = re.fullmatch(r"(\d+)(\d)(-real|-virtual)?", item.strip())
        if found is None:
            continue
        own = (int(found[1]), int(found[2]))
        has_code = found[3] != "-virtual" and own[0] == major and own[1] <= minor
        has_ptx = found[3] != "-real" and own <= (major, minor)
        if has_code or has_ptx:
            return True
    return False
