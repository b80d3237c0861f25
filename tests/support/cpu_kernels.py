"""Builds the native code for the tests and calls the CPU kernel through ctypes, outputs and workspace pre-filled."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch
from paths import REPO
from torch import Tensor

from mra_export.native.headers import fetch_headers, find_headers
from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes

ISAS = {"portable": 0, "avx2": 1, "avx512": 2, "avx512_bf16": 3, "avx512_fp16": 4}
ACCURACIES = {"fp32": 0, "bf16": 1}
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
GUARD = 64  # bytes of sentinel before and after every output


class Params(ctypes.Structure):
    """`mra::Mra2AttentionParams`, field by field."""

    _fields_ = (
        ("query", ctypes.c_void_p),
        ("key", ctypes.c_void_p),
        ("value", ctypes.c_void_p),
        ("attention_mask", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("seq_len", ctypes.c_int64),
        ("hidden_size", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("num_heads", ctypes.c_int64),
        ("num_blocks", ctypes.c_int64),
        ("approx_mode", ctypes.c_int64),
        ("initial_prior_first_n_blocks", ctypes.c_int64),
        ("initial_prior_diagonal_n_blocks", ctypes.c_int64),
        ("scale", ctypes.c_float),
    )


def build_root() -> Path:
    """Where the tests' build trees are kept between runs: MRA_TEST_BUILD_DIR, or the user's cache."""
    if named := os.environ.get("MRA_TEST_BUILD_DIR"):
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "mra-export" / "test-build" / hashlib.sha256(str(REPO).encode()).hexdigest()[:12]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest-xdist's workers build once
        yield


@functools.cache
def build(sanitize: str = "") -> Path:
    """Configures and builds everything native, with sanitizers the fuzzers alone; the build tree. Incremental."""
    tree = build_root() / (sanitize.replace(",", "-") or "plain")
    with _locked(tree.parent / f"{tree.name}.lock"):
        headers = find_headers("onnxruntime") or fetch_headers("onnxruntime")
        configure = ["cmake", "-S", str(REPO), "-B", str(tree), "-DMRA_TESTS=ON", f"-DMRA_SANITIZE={sanitize}"]
        configure.append(f"-DMRA_ONNXRUNTIME_INCLUDE={headers.path}")
        if sanitize:  # under which -O3 takes the compiler three times as long
            configure += ["-DMRA_ONNXRUNTIME=OFF", "-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1"]
        for command in (configure, ["cmake", "--build", str(tree), "--parallel", "2"]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return tree


@functools.cache
def kernel() -> ctypes.CDLL:
    """The CPU kernel behind its C interface."""
    library = ctypes.CDLL(str(build() / "tests" / "kernels" / "cpu" / "libmra_kernel_c.so"))
    library.mra_test_workspace_size.restype = ctypes.c_size_t
    library.mra_test_workspace_size.argtypes = [ctypes.POINTER(Params), ctypes.c_int32]
    library.mra_test_validate.argtypes = [ctypes.POINTER(Params), ctypes.c_char_p, ctypes.c_size_t]
    library.mra_test_choose_isa.argtypes = [
        ctypes.c_char_p,
        ctypes.c_int32,
        ctypes.POINTER(ctypes.c_int32),
        ctypes.c_char_p,
        ctypes.c_size_t,
    ]
    library.mra_test_run.argtypes = [ctypes.POINTER(Params), ctypes.c_void_p, ctypes.c_int32, ctypes.c_int]
    library.mra_test_run.restype = None
    return library


def choose_isa(name: str, accuracy: str = "fp32") -> int:
    """The number of an instruction set, for "" that of the accuracy; ValueError with the kernel's message where refused."""
    isa = ctypes.c_int32(-1)
    message = ctypes.create_string_buffer(512)
    if not kernel().mra_test_choose_isa(name.encode(), ACCURACIES[accuracy], ctypes.byref(isa), message, len(message)):
        raise ValueError(message.value.decode())
    return isa.value


@functools.cache
def machine_isas() -> tuple[str, ...]:
    """The instruction sets for float32 that this machine can run, best first."""

    def usable(name: str) -> bool:
        try:
            choose_isa(name)
        except ValueError:
            return False
        return True

    return tuple(name for name in ("avx512", "avx2", "portable") if usable(name))


@functools.cache
def reduced_isas() -> tuple[str, ...]:
    """Those of this machine that multiply in fewer bits."""
    found = []
    for name in ("avx512_bf16", "avx512_fp16"):
        with contextlib.suppress(ValueError):
            choose_isa(name)
            found.append(name)
    return tuple(found)


def make_params(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, context: int, attributes: Mra2AttentionAttributes
) -> Params:
    """The params struct of contiguous tensors; the caller keeps them alive."""
    assert all(tensor.is_contiguous() for tensor in (query, key, value, mask))
    return Params(
        query.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        mask.data_ptr(),
        context,
        *query.shape,
        DTYPES[query.dtype],
        **attributes.as_dict(),
    )


def run_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    attributes: Mra2AttentionAttributes,
    *,
    isa: str = "",
    threads: int = 2,
    fill: int = 0xFF,
) -> Tensor:
    """The operator's context [batch, seq_len, hidden_size].

    Context and workspace are filled with `fill` bytes before (0xFF: NaN in every type), lie between guards of the same
    bytes, and the guards are checked afterwards.
    """
    library = kernel()
    query, key, value = (tensor.contiguous() for tensor in (query, key, value))
    mask = mask.to(torch.int32).contiguous()
    size = query.numel() * query.element_size()
    context = torch.full((size + 2 * GUARD,), fill, dtype=torch.uint8)
    params = make_params(query, key, value, mask, context.data_ptr() + GUARD, attributes)
    message = ctypes.create_string_buffer(512)
    if not library.mra_test_validate(ctypes.byref(params), message, len(message)):
        raise ValueError(message.value.decode())
    chosen = choose_isa(isa)
    needed = library.mra_test_workspace_size(ctypes.byref(params), chosen)
    workspace = torch.full((needed + 2 * GUARD + 4,), fill, dtype=torch.uint8)
    # Four bytes off: the kernel aligns its workspace itself.
    library.mra_test_run(ctypes.byref(params), workspace.data_ptr() + GUARD + 4, chosen, threads)
    for name, buffer, end in (("context", context, GUARD + size), ("workspace", workspace, GUARD + 4 + needed)):
        assert bool((buffer[:GUARD] == fill).all()), f"{name}: written before its start"
        assert bool((buffer[end:] == fill).all()), f"{name}: written after its end"
    return context[GUARD : GUARD + size].clone().view(query.dtype).view(query.shape)
