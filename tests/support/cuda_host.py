"""Builds the CUDA kernels for the host and calls them through ctypes, outputs and workspace pre-filled and guarded.

With MRA_CUDA_TEST_LIBRARY naming a build of device_api.cu, the same tests run on a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from paths import REPO, TESTS
from torch import Tensor

from mra_export.engine.gpu import find_gpus
from mra_export.native.build import compile_target, cuda_arguments, find_nvcc, find_tool
from mra_export.native.headers import HEADER_KINDS, fetch_headers, find_headers
from mra_export.native.libraries import LIBRARY_FILES
from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes
from mra_export.operators.yoso_attention.spec import INPUTS, YosoAttentionAttributes

HERE = TESTS / "kernels" / "cuda_host"
KERNELS = REPO / "kernels"
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
GUARD = 256  # bytes of sentinel before and after context and workspace; kGuard in kernel_api.h
ALIGNMENT = 16
INVALID_VALUE = 1  # cudaErrorInvalidValue
ON_DEVICE = bool(os.environ.get("MRA_CUDA_TEST_LIBRARY"))


class Call(ctypes.Structure):
    """`MraCall` of kernel_api.h, field by field."""

    _fields_ = (
        ("query", ctypes.c_void_p),
        ("key", ctypes.c_void_p),
        ("value", ctypes.c_void_p),
        ("attention_mask", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("seq_len", ctypes.c_int64),
        ("hidden_size", ctypes.c_int64),
        ("dtype", ctypes.c_int64),
        ("num_heads", ctypes.c_int64),
        ("num_blocks", ctypes.c_int64),
        ("approx_mode", ctypes.c_int64),
        ("first_n", ctypes.c_int64),
        ("diagonal_n", ctypes.c_int64),
        ("scale", ctypes.c_double),
    )


class YosoCall(ctypes.Structure):
    """`YosoCall` of kernel_api.h, field by field."""

    _fields_ = (
        ("inputs", ctypes.c_void_p * 6),
        ("context", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("seq_len", ctypes.c_int64),
        ("hidden_size", ctypes.c_int64),
        ("dtype", ctypes.c_int64),
        ("num_heads", ctypes.c_int64),
        ("mode", ctypes.c_int64),
        ("hash_code_len", ctypes.c_int64),
        ("num_hash", ctypes.c_int64),
        ("fast_hash", ctypes.c_int64),
        ("conv_window", ctypes.c_int64),
    )


class Result(NamedTuple):
    context: Tensor  # of the type and shape of query
    selected: Tensor  # bool [batch, num_heads, blocks, blocks]
    chunks: int  # of all heads together
    most_parts: int  # chunks of one row, at most


def cuda_include() -> Path:
    """The directory of cuda_fp16.h; skips the test where there is none."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = find_nvcc()
    roots = [Path(named)] if named else []
    if nvcc:
        roots.append(Path(nvcc).resolve().parents[1])
    roots.append(Path("/usr/local/cuda"))
    for root in roots:
        for include in (root / "include", root / "targets" / "x86_64-linux" / "include"):
            if (include / "cuda_fp16.h").is_file() and (include / "cuda_runtime_api.h").is_file():
                return include
    pytest.skip("CUDA's headers (cuda_fp16.h) were not found; set CUDA_HOME")


def build_root() -> Path:
    """Where build results are kept between runs: MRA_TEST_BUILD_DIR, or the user's cache."""
    if named := os.environ.get("MRA_TEST_BUILD_DIR"):
        return Path(named) / "cuda_host"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "mra-export" / "test-build" / hashlib.sha256(str(REPO).encode()).hexdigest()[:12] / "cuda_host"


@functools.cache
def nvcc_library(kind: str) -> Path:
    """A native library ("onnxruntime" or "tensorrt") with the CUDA kernels as nvcc compiles them, for one architecture.

    That is the one of this machine's GPU, where there is one: what runs in a test is machine code and not PTX that the driver
    compiles. Both are built in one tree, so that nvcc compiles the kernels once. Skips the test where a tool is missing.
    """
    nvcc, cmake = find_nvcc(), find_tool("cmake")
    if nvcc is None or cmake is None:
        pytest.skip(f"{'nvcc' if nvcc is None else 'cmake'} was not found")
    gpus = find_gpus()
    architecture = gpus[0].compute_capability.replace(".", "") if gpus else "80"
    tree = build_root().parent / f"nvcc-{architecture}"
    tree.mkdir(parents=True, exist_ok=True)
    arguments = [
        *cuda_arguments(nvcc),
        f"-DCMAKE_CUDA_ARCHITECTURES={architecture}",
        "-DMRA_CUDA=ON",
        "-DMRA_TENSORRT=ON",
    ]
    arguments.append("-DCMAKE_BUILD_TYPE=None")  # of the host's code; nvcc optimizes the GPU's all the same
    for name in HEADER_KINDS:
        arguments.append(f"-DMRA_{name.upper()}_INCLUDE={(find_headers(name) or fetch_headers(name)).path}")
    with tree.with_name(f"{tree.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        error = compile_target(cmake, REPO, tree, f"mra_{kind}", arguments, jobs=2)
        assert not error, error
    return tree / "plugins" / kind / LIBRARY_FILES[kind]


# Under AddressSanitizer the optimizer takes three times as long as all else of the compiler; the results are the same bits.
SANITIZERS = {
    "": ["-O1"],
    "address": ["-O0", "-DMRA_HOST_ASAN", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-DMRA_HOST_TSAN", "-fsanitize=thread"],
}


@functools.cache
def build(sanitize: str = "") -> Path:
    """The kernels on the shim, behind their C interface; with a sanitizer ("address" or "thread") the runner of case files."""
    if sanitize:
        return compile_host("runner", (HERE / "cuda_host_runner.cc",), sanitize=sanitize)
    return compile_host("libmra_cuda_host.so", (HERE / "cuda_host_api.cc", HERE / "ptx" / "ptx_runtime.cc"))


def compile_host(
    name: str, sources: tuple[Path, ...], *, sanitize: str = "", options: tuple[str, ...] = (), kernels: bool = True
) -> Path:
    """Compiles `sources` with g++ and links them with the kernels and the shim; a shared library where `name` ends in .so.

    Results are kept under a hash of everything that went in; the kernels' objects once for all that link them.
    """
    linked = (*kernel_objects(sanitize),) if kernels else ()
    with _kept(name, sources, sanitize, options, tuple(map(str, linked))) as (target, command, flags):
        if target.is_file():
            return target
        objects = _compile(command, sources, target.parent, flags)
        partial = target.with_suffix(".partial")
        link = ["-shared", "-Wl,--no-undefined"] if name.endswith(".so") else []
        run_command([command[0], *flags, *link, *map(str, (*objects, *linked)), "-ldl", "-o", str(partial)])
        partial.rename(target)
    return target


@functools.cache
def kernel_objects(sanitize: str = "") -> list[Path]:
    """The kernels and the shim's runtime, compiled."""
    sources = (
        KERNELS / "common" / "call.cc",
        *(KERNELS / name / "cuda" / f"{name}_cuda.cu" for name in ("mra2_attention", "yoso_attention")),
        *(KERNELS / name / f"{name}.cc" for name in ("mra2_attention", "yoso_attention")),
        HERE / "cuda_host_runtime.cc",
    )
    with _kept("kernels", sources, sanitize, (), ()) as (target, command, flags):
        objects = [target.parent / f"{source.stem}.o" for source in sources]
        if not target.is_file():
            _compile(command, sources, target.parent, flags)
            target.touch()
    return objects


@contextlib.contextmanager
def _kept(
    name: str, sources: tuple[Path, ...], sanitize: str, options: tuple[str, ...], linked: tuple[str, ...]
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Where the result belongs, locked; the compiler's command and the sanitizer's flags."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ was not found")
    # -ffp-contract=off: every build of the host rounds alike, so that results can be compared bit for bit.
    command = [compiler, "-std=c++17", "-g1", "-fPIC", "-ffp-contract=off"]
    command += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-isystem", str(cuda_include())]
    command += [f"-I{HERE}", f"-I{KERNELS}", *options]
    flags = SANITIZERS[sanitize]
    inputs = {*KERNELS.rglob("*.*"), *HERE.glob("*.[chi]*")}
    inputs |= {path for source in sources for path in source.parent.glob("*.[chi]*")}
    key = hashlib.sha256(repr((command, flags, sources, linked)).encode())
    for path in sorted(inputs):
        if path.is_file():
            key.update(path.name.encode() + path.read_bytes())
    target = build_root() / f"{Path(name).stem}-{sanitize or 'plain'}-{key.hexdigest()[:16]}" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield target, command, flags


def _compile(command: list[str], sources: tuple[Path, ...], folder: Path, flags: list[str]) -> list[Path]:
    objects = []
    for source in sources:
        objects.append(folder / f"{source.stem}.o")
        # The runtime switches stacks: it tells the sanitizers what it does, and is not instrumented itself.
        runtime = source.name == "cuda_host_runtime.cc"
        own = [flag for flag in flags if not (runtime and flag.startswith("-fsanitize"))]
        run_command([*command, *own, "-x", "c++", "-c", str(source), "-o", str(objects[-1])])
    return objects


def pack_case(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, attributes: Mra2AttentionAttributes) -> bytes:
    """One case of the file that cuda_host_runner and plugin_harness read."""
    call = make_call(query, key, value, mask, 0, attributes)
    sizes = bytes(call)[Call.batch.offset :]
    tensors = [tensor.contiguous().view(torch.uint8).numpy().tobytes() for tensor in (query, key, value)]
    return b"".join((sizes, *tensors, mask.to(torch.int32).contiguous().numpy().tobytes()))


def run_command(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"


@functools.cache
def library() -> ctypes.CDLL:
    """The kernels behind kernel_api.h."""
    lib = ctypes.CDLL(os.environ.get("MRA_CUDA_TEST_LIBRARY") or str(build()))
    call = ctypes.POINTER(Call)
    lib.mra_cuda_workspace_size.argtypes = [call]
    lib.mra_cuda_workspace_size.restype = ctypes.c_uint64
    lib.mra_cuda_run.argtypes = [call, ctypes.c_void_p, ctypes.c_uint64]
    lib.mra_cuda_selection.argtypes = [call, ctypes.c_void_p, ctypes.c_void_p]
    pointer = ctypes.POINTER(ctypes.c_int64)
    lib.mra_cuda_chunks.argtypes = [call, ctypes.c_void_p, pointer, pointer]
    lib.mra_cuda_chunks.restype = None
    yoso_call = ctypes.POINTER(YosoCall)
    lib.mra_yoso_workspace_size.argtypes = [yoso_call]
    lib.mra_yoso_workspace_size.restype = ctypes.c_uint64
    lib.mra_yoso_run.argtypes = [yoso_call, ctypes.c_void_p, ctypes.c_uint64]
    lib.mra_yoso_codes.argtypes = [yoso_call, ctypes.c_void_p, ctypes.c_void_p]
    return lib


def guarded(size: int, fill: int) -> tuple[Tensor, int]:
    """A buffer of `fill` bytes and the offset of its `size` usable bytes, which are aligned and lie between guards."""
    buffer = torch.full((size + 2 * GUARD + ALIGNMENT,), fill, dtype=torch.uint8)
    return buffer, GUARD + -(buffer.data_ptr() + GUARD) % ALIGNMENT


def assert_guards(name: str, buffer: Tensor, at: int, size: int, fill: int) -> None:
    """Nothing was written beside the `size` bytes from `at` on."""
    assert bool((buffer[:at] == fill).all()), f"{name}: written before its start"
    assert bool((buffer[at + size :] == fill).all()), f"{name}: written after its end"


def make_call(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, context: int, attributes: Mra2AttentionAttributes
) -> Call:
    return Call(
        query.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        mask.data_ptr(),
        context,
        *query.shape,
        DTYPES[query.dtype],
        *attributes.as_dict().values(),
    )


def run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    attributes: Mra2AttentionAttributes,
    *,
    fill: int = 0xFF,
) -> Result:
    """Runs the operator; context and workspace hold `fill` bytes before (0xFF: NaN in every type), as do their guards."""
    lib = library()
    query, key, value = (tensor.contiguous() for tensor in (query, key, value))
    mask = mask.to(torch.int32).contiguous()
    size = query.numel() * query.element_size()
    context, context_at = guarded(size, fill)
    call = make_call(query, key, value, mask, context.data_ptr() + context_at, attributes)
    needed = lib.mra_cuda_workspace_size(ctypes.byref(call))
    workspace, workspace_at = guarded(needed, fill)
    error = lib.mra_cuda_run(ctypes.byref(call), workspace.data_ptr() + workspace_at, needed)
    assert error == 0, f"cudaError_t {error}"
    assert_guards("context", context, context_at, size, fill)
    assert_guards("workspace", workspace, workspace_at, needed, fill)

    batch, seq_len, _ = query.shape
    blocks = -(-seq_len // 32)
    selected = torch.zeros((batch, attributes.num_heads, blocks, blocks), dtype=torch.uint8)
    chunks, parts = ctypes.c_int64(0), ctypes.c_int64(0)
    if batch:
        pointer = workspace.data_ptr() + workspace_at
        assert lib.mra_cuda_selection(ctypes.byref(call), pointer, selected.data_ptr()) == 0, "a list is out of order"
        lib.mra_cuda_chunks(ctypes.byref(call), pointer, ctypes.byref(chunks), ctypes.byref(parts))
    result = context[context_at : context_at + size].clone().view(query.dtype).view(query.shape)
    return Result(result, selected.bool(), chunks.value, parts.value)


def yoso_inputs(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *constants: Tensor, attributes: YosoAttentionAttributes
) -> list[Tensor | None]:
    """The six inputs of a YosoCall as the kernels take them; None for those that the node does not have."""
    given = dict(zip(attributes.inputs(), (query, key, value, mask.to(torch.int32), *constants), strict=True))
    return [given[name].contiguous() if name in given else None for name in INPUTS]


def make_yoso_call(inputs: list[Tensor | None], context: int, attributes: YosoAttentionAttributes) -> YosoCall:
    """The call with these inputs, which must outlive it."""
    pointers = (ctypes.c_void_p * 6)(*(None if tensor is None else tensor.data_ptr() for tensor in inputs))
    query = inputs[0]
    assert query is not None
    return YosoCall(pointers, context, *query.shape, DTYPES[query.dtype], *attributes.as_dict().values())


def pack_yoso_case(inputs: list[Tensor | None], attributes: YosoAttentionAttributes) -> bytes:
    """One case of the file that cuda_host_runner and plugin_harness read for mra::YosoAttention."""
    sizes = bytes(make_yoso_call(inputs, 0, attributes))[YosoCall.batch.offset :]
    return sizes + b"".join(tensor.view(torch.uint8).numpy().tobytes() for tensor in inputs if tensor is not None)


class YosoResult(NamedTuple):
    context: Tensor  # of the type and shape of query
    codes: Tensor | None  # int64 [2 (queries, keys), batch, num_heads, num_hash, seq_len]; of mode lsh


def run_yoso(inputs: list[Tensor | None], attributes: YosoAttentionAttributes, *, fill: int = 0xFF) -> YosoResult:
    """Runs mra::YosoAttention as `run` does mra::Mra2Attention; hash codes where all heads were computed at once."""
    lib = library()
    query = inputs[0]
    assert query is not None
    size = query.numel() * query.element_size()
    context, context_at = guarded(size, fill)
    call = make_yoso_call(inputs, context.data_ptr() + context_at, attributes)
    needed = lib.mra_yoso_workspace_size(ctypes.byref(call))
    workspace, workspace_at = guarded(needed, fill)
    pointer = workspace.data_ptr() + workspace_at
    error = lib.mra_yoso_run(ctypes.byref(call), pointer, needed)
    assert error == 0, f"cudaError_t {error}"
    assert_guards("context", context, context_at, size, fill)
    assert_guards("workspace", workspace, workspace_at, needed, fill)
    codes = None
    if attributes.num_hash and query.shape[0]:
        shape = (2, query.shape[0], attributes.num_heads, attributes.num_hash, query.shape[1])
        found = torch.zeros(shape, dtype=torch.uint16)
        if lib.mra_yoso_codes(ctypes.byref(call), pointer, found.data_ptr()) == 0:
            codes = found.to(torch.int64)
    result = context[context_at : context_at + size].clone().view(query.dtype).view(query.shape)
    return YosoResult(result, codes)
