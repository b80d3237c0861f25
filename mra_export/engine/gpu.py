"""The GPUs of this machine, and what code runs on them."""

from __future__ import annotations

import ctypes
import functools
import re
from dataclasses import dataclass

__all__ = ["Gpu", "covers", "driver_version", "find_gpus", "parse_version"]


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine; `compute_capability` as in "9.0"."""

    name: str
    compute_capability: str


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
