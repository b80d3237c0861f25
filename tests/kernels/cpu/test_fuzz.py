"""Fuzzes the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer against its twin in double."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from cpu_kernels import build, machine_isas, reduced_isas


def fuzz(tree: Path, seed: int, count: int, isa: str, program: str = "mra_fuzz") -> dict[str, float]:
    """The numbers that the fuzzer prints: cases compared, unclear and special, and the worst relative error."""
    command = [str(tree / "tests" / "kernels" / "cpu" / program), str(seed), str(count), isa]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return {name: float(value) for name, value in re.findall(r"(\w+)=(\S+)", done.stdout)}


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_fuzz(isa: str) -> None:
    if isa not in machine_isas():
        pytest.skip(f"this machine has no {isa}")
    numbers = fuzz(build(), seed=1, count=400, isa=isa)
    assert numbers["compared"] > 4 * numbers["unclear"]
    assert numbers["special"] > 30


@pytest.mark.parametrize("isa", ["avx512_bf16", "avx512_fp16", "avx512", "avx2", "portable"])
def test_fuzz_with_sanitizers(isa: str) -> None:
    if isa not in machine_isas() + reduced_isas():
        pytest.skip(f"this machine has no {isa}")
    assert fuzz(build("address,undefined"), seed=2, count=100, isa=isa)["compared"] > 150


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_fuzz_yoso(isa: str) -> None:
    if isa not in machine_isas():
        pytest.skip(f"this machine has no {isa}")
    numbers = fuzz(build(), seed=1, count=300, isa=isa, program="mra_yoso_fuzz")
    assert numbers["special"] > 30
    assert fuzz(build("address,undefined"), seed=2, count=60, isa=isa, program="mra_yoso_fuzz")["compared"] > 100
