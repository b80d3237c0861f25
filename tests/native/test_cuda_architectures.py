"""The GPUs that the libraries have code for where none is named."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from paths import REPO

from mra_export.engine.gpu import covers


@pytest.mark.native
@pytest.mark.parametrize(("nvcc", "machine_code"), [("12.4", ["8.0", "8.6", "8.9", "9.0"]), ("13.0", ["10.0", "12.0"])])
def test_every_gpu_is_served(nvcc: str, machine_code: list[str], tmp_path: Path) -> None:
    """By machine code where the compiler knows the architecture, else by PTX: 11.0 and 10.3 are between two that it knows."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    script = tmp_path / "list.cmake"
    script.write_text(
        f"include({REPO}/kernels/cuda_architectures.cmake)\nmra_cuda_architectures({nvcc} found)\n"
        'string(REPLACE ";" "," found "${found}")\nmessage(STATUS "${found}")\n'
    )
    done = subprocess.run(["cmake", "-P", str(script)], capture_output=True, text=True, check=True)
    listed = done.stdout.strip().removeprefix("-- ")
    for gpu in ("8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1"):
        assert covers(listed, gpu), gpu
    architectures = [item.removesuffix("-real") for item in listed.split(",")]
    assert {gpu.replace(".", "") for gpu in machine_code} <= set(architectures)
    assert listed.split(",")[-1] == architectures[-1], "PTX of the newest"
