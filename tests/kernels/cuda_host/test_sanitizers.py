"""The CUDA kernels on the host under AddressSanitizer and ThreadSanitizer, and proof that planted faults are caught."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import cuda_host
import numpy as np
import pytest
import torch
from cuda_host_cases import Case, sanitized_cases

pytestmark = pytest.mark.skipif(cuda_host.ON_DEVICE, reason="sanitizers of the host")


# ThreadSanitizer gets new threads for every thread block, which takes its time: each kernel and each way through it, once.
THREAD_CASES = [
    "float32-ragged",
    "float32-split",
    "float32-all",
    "float16-ragged",
    "float16-sparse",
    "float16-split",
    "float16-all",
    "float16-two_tiles",
]


def run_cases(program: Path, cases: list[Case], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "cases").write_bytes(b"".join(cuda_host.pack_case(*case) for case in cases))
    return subprocess.run(
        [str(program), "mra", str(folder / "cases"), str(folder / "results")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


@pytest.mark.parametrize("copies", ["early", "late"])
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_kernels_under_sanitizer(sanitizer: str, copies: str, tmp_path: Path) -> None:
    """No report, and the same bits as without a sanitizer."""
    names = THREAD_CASES if sanitizer == "thread" else list(sanitized_cases())
    if (sanitizer, copies) == ("thread", "late"):
        names = names[:-1]  # its blocks are as the others', only more, and run in the same order as early
    cases = [sanitized_cases()[name] for name in names]
    order = "reverse" if copies == "late" else "forward"
    done = run_cases(
        cuda_host.build(sanitizer),
        cases,
        tmp_path,
        MRA_HOST_ORDER=order,
        MRA_HOST_COPIES=copies,
        TSAN_OPTIONS="halt_on_error=1",
    )
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout == f"{len(cases)} cases\n"
    results = np.fromfile(tmp_path / "results", dtype=np.uint8)
    at = 0
    for name, case in zip(names, cases, strict=True):
        expected = cuda_host.run(*case).context
        size = expected.numel() * expected.element_size()
        actual = torch.from_numpy(results[at : at + size].copy()).view(expected.dtype).view(expected.shape)
        assert torch.equal(actual, expected), name
        at += size
    assert at == results.size


def run_selftest(sanitizer: str, name: str) -> subprocess.CompletedProcess[str]:
    sources = tuple(cuda_host.HERE / file for file in ("shim_selftest.cc", "cuda_host_runtime.cc"))
    program = cuda_host.compile_host("shim_selftest", sources, sanitize=sanitizer, kernels=False)
    return subprocess.run([str(program), name], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["mma", "ldmatrix"])
def test_fragments_are_laid_out_as_the_ptx_manual_says(name: str) -> None:
    done = run_selftest("", name)
    assert done.stdout == "OK\n", done.stderr


def test_thread_sanitizer_accepts_fences() -> None:
    done = run_selftest("thread", "last_block")
    assert done.stdout == "OK\n", done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("divergent_collective", "lane 16 is in collective"),
        (
            "divergent_barrier",
            "deadlock: block 0, 16 of 32 live threads at the barrier; warp 0: lanes aaaaaaaa of ffffffff",
        ),
        ("copy_without_wait", "ended with asynchronous copies under way"),
        ("misaligned_copy", "cp.async to a misaligned shared address"),
    ],
)
def test_shim_catches(name: str, message: str) -> None:
    done = run_selftest("", name)
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize(
    ("sanitizer", "name", "message"),
    [
        ("address", "shared_overrun", "use-after-poison"),
        ("address", "global_overrun", "heap-buffer-overflow"),
        ("thread", "missing_barrier", "data race"),
        ("thread", "missing_warp_sync", "data race"),
        ("thread", "block_race", "data race"),
        ("thread", "last_block_without_fence", "data race"),
    ],
)
def test_sanitizer_catches(sanitizer: str, name: str, message: str) -> None:
    done = run_selftest(sanitizer, name)
    assert done.returncode != 0
    assert message in done.stderr
