"""The CUDA kernels as nvcc compiles them, on the host: their PTX, translated to C++, in place of the source.

A kernel is translated and compiled when it is launched first, and kept under a hash of all that went in: what runs decides what
is compiled.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import functools
import hashlib
import importlib.util
import itertools
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import cuda_host
import pytest
from ptx_source import KernelText, PtxError, find_kernels
from ptx_translate import translate

from mra_export.native.build import find_nvcc

HERE = cuda_host.HERE / "ptx"
OPERATORS = ("mra2_attention", "yoso_attention")
ARCHITECTURES = (80, 90, 120)  # nvcc has another optimizer from 100 on
NVCC_OPTIONS = ("-std=c++17", "-O3", "-DNDEBUG")  # those of a Release build
ORDERS = ("forward", "reverse", "random:1")  # of the threads
FIND = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint64)
# Words of tests that launch nothing, or a program of their own.
LAUNCH_NOTHING = ("include_no_framework", "refuses", "sanitizer", "workspace")


class Program(NamedTuple):
    """What runs as the kernels, and in which order their threads do."""

    architecture: int
    order: str


PROGRAMS = tuple(Program(*each) for each in itertools.product(ARCHITECTURES, ORDERS))


class Fault(NamedTuple):
    """A change of a kernel's PTX that the tests must notice: what is replaced, by what."""

    pattern: str
    replacement: str
    places: int = 1  # how many are changed, from the first on; 0: all


FAULTS = {
    "wait_group": Fault(r"cp\.async\.wait_group 1;", "cp.async.wait_group 2;"),
    "mma_operands": Fault(r"(mma\.\S+\s+\{[^}]*\},\s*)\{(%\w+),\s*(%\w+),", r"\1{\3,\2,"),
    "weak_barrier": Fault(r"bar\.sync\s+0;", "bar.warp.sync -1;"),
    "ldmatrix_trans": Fault(r"\.x4\.trans\.", ".x4."),
    # The first places are those of queries, whose padding nobody looks at.
    "zero_fill": Fault(r"(cp\.async\.cg\S+\s+\[[^]]*\], \[[^]]*\], 16), %\w+;", r"\1;", 0),
}


def kernel_tests(name: str) -> ModuleType:
    """A module of tests of the kernels, tests/kernels/cuda_host/NAME.py."""
    spec = importlib.util.spec_from_file_location(f"compiled_{name}", cuda_host.HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled_tests(name: str) -> dict[str, Callable[..., None]]:
    """The tests of that module that launch kernels."""
    found = {key: value for key, value in vars(kernel_tests(name)).items() if key.startswith("test_")}
    return {key: value for key, value in found.items() if not any(word in key for word in LAUNCH_NOTHING)}


@functools.cache
def kernels(operator: str, architecture: int) -> dict[str, KernelText]:
    """The kernels of an operator in the PTX of nvcc. Skips the test where nvcc is missing."""
    return find_kernels(ptx_file(operator, architecture).read_text())


def ptx_file(operator: str, architecture: int) -> Path:
    """What nvcc makes of an operator's kernels. Skips the test where nvcc is missing."""
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("nvcc was not found, so the compiled kernels are not run")
    source = cuda_host.KERNELS / operator / "cuda" / f"{operator}_cuda.cu"
    command = [nvcc, "-ptx", f"-arch=compute_{architecture}", *NVCC_OPTIONS, f"-I{cuda_host.KERNELS}", str(source)]
    version = subprocess.run([nvcc, "--version"], capture_output=True, check=True).stdout
    inputs = [path.read_bytes() for path in sorted(cuda_host.KERNELS.rglob("*.*")) if path.is_file()]
    with kept(f"{operator}-{architecture}.ptx", [repr(command).encode(), version, *inputs]) as target:
        if not target.is_file():
            partial = target.with_suffix(".partial")
            cuda_host.run_command([*command, "-o", str(partial)])
            partial.rename(target)
    return target


@contextlib.contextmanager
def translated(architecture: int, fault: str = "") -> Iterator[None]:
    """While it lasts, kernels that are launched are those that nvcc compiled for `architecture`, with a planted fault or none.

    Raises:
        PtxError: the PTX of a kernel that was launched is not understood.
    """
    kernels(OPERATORS[0], architecture)  # skips here, where nvcc is missing
    with _in_place(lambda launch: function(launch.kernel, architecture, fault)):
        yield


class Launch(NamedTuple):
    """Of which kernel (its mangled name), with how many threads a block and how much dynamic shared memory."""

    kernel: str
    threads: int
    shared_bytes: int


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """While it lasts, kernels that are launched do nothing; the list has their launches."""
    launches: list[Launch] = []
    nothing = ctypes.cast(cuda_host.library().mra_ptx_nothing, ctypes.c_void_p).value

    def record(launch: Launch) -> int:
        launches.append(launch)
        return nothing or 0

    with _in_place(record):
        yield launches


@contextlib.contextmanager
def _in_place(find: Callable[[Launch], int]) -> Iterator[None]:
    """While it lasts, launches run what is at the address that `find` returns."""
    library = cuda_host.library()
    failures: list[BaseException] = []

    def answer(name: bytes, threads: int, shared_bytes: int) -> int | None:
        try:
            return find(Launch(name.decode(), threads, shared_bytes))
        except BaseException as error:  # it cannot pass through C
            failures.append(error)
            return None

    callback = FIND(answer)
    library.mra_host_translated(callback)
    try:
        yield
    finally:
        library.mra_host_translated(None)
        if failures:
            raise failures[0]


@functools.cache
def function(name: str, architecture: int, fault: str = "") -> int:
    """The address of a translated kernel; faults are planted in those that multiply matrices."""
    operator = next(each for each in OPERATORS if each.partition("_")[0] in name)
    found = kernels(operator, architecture).get(name)
    if found is None:
        raise PtxError(f"the PTX for compute_{architecture} has no kernel {name}")
    if fault and "mra2_mma_kernel" in name:
        found = planted(found, FAULTS[fault])
    return load([found])[name]


def planted(text: KernelText, fault: Fault) -> KernelText:
    """The kernel with a fault in it."""
    body, count = re.subn(fault.pattern, fault.replacement, text.body, count=fault.places)
    if not count:
        raise PtxError(f"{text.name} has no {fault.pattern}, so the fault cannot be planted")
    return dataclasses.replace(text, body=body)


def load(texts: list[KernelText]) -> dict[str, int]:
    """Translates and compiles kernels; returns their addresses by name."""
    code = '#include "ptx_runtime.h"\nusing namespace ptx;\n' + "".join(map(translate, texts))
    host = cuda_host.build()
    # -Og: here the compiler takes longer than what it compiles.
    command = [shutil.which("g++") or "g++", "-std=c++17", "-Og", "-fPIC", "-shared", "-ffp-contract=off", *_fused()]
    command += ["-w", f"-I{HERE}"]
    inputs = [code.encode(), repr((command, host)).encode(), (HERE / "ptx_runtime.h").read_bytes()]
    with kept("kernel.so", inputs) as target:
        if not target.is_file():
            source, partial = target.with_suffix(".cc"), target.with_suffix(".partial")
            source.write_text(code)
            cuda_host.run_command([*command, str(source), str(host), "-Wl,--no-undefined", "-o", str(partial)])
            partial.rename(target)
    library = ctypes.CDLL(str(target))
    return {text.name: ctypes.cast(library[text.name], ctypes.c_void_p).value or 0 for text in texts}


def _fused() -> list[str]:
    """fma in one instruction where this processor has it: the value is the same, without a call."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return ["-mfma"] if re.search(r"^flags\s*:.*\bfma\b", flags, re.MULTILINE) else []


@contextlib.contextmanager
def kept(name: str, inputs: list[bytes]) -> Iterator[Path]:
    """Where a result belongs that follows from `inputs`, locked."""
    key = hashlib.sha256()
    for each in inputs:
        key.update(hashlib.sha256(each).digest())
    target = cuda_host.build_root() / "ptx" / key.hexdigest()[:24] / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield target
