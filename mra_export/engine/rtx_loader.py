"""Makes TensorRT-RTX's ONNX parser find its library."""

from __future__ import annotations

import ctypes
import os
import platform
import struct

from mra_export.errors import DependencyError

__all__ = ["provide_bare_name"]

_MACHINES = {"x86_64": 62, "aarch64": 183}
"""`platform.machine()` -> ELF's e_machine."""


def provide_bare_name(name: str) -> None:
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
