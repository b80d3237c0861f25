"""The definition of the operator is in one place, and the native code has the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from paths import REPO

CUDA_HEADERS = re.compile(r"^(cuda|cooperative_groups|mma\.h|cub/|nvtx)")


def test_the_generated_header_is_up_to_date() -> None:
    result = subprocess.run(
        [sys.executable, str(REPO / "scripts" / "generate_op_spec.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_kernels_include_only_the_standard_library_and_cuda() -> None:
    sources = [p for p in (REPO / "kernels").rglob("*") if p.suffix in {".h", ".cc", ".cu", ".cuh", ".inc"}]
    assert sources
    own = {path.name for path in sources}
    for source in sources:
        for name in re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', source.read_text(), re.MULTILINE):
            standard = "/" not in name and "." not in name
            known = name in {"immintrin.h", "cpuid.h"} or CUDA_HEADERS.match(name) or Path(name).name in own
            assert standard or known, f"{source.relative_to(REPO)} includes {name}"


def test_no_operator_includes_another() -> None:
    operators = [folder for folder in (REPO / "kernels").iterdir() if (folder / f"{folder.name}.h").is_file()]
    assert len(operators) == 2
    for folder in (*operators, REPO / "kernels" / "common"):
        for source in folder.rglob("*.*"):
            for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', source.read_text(), re.MULTILINE):
                allowed = name.startswith((f"{folder.name}/", "common/")) or name in {"op_spec.h", "cuda_host_shim.h"}
                assert allowed, f"{source.relative_to(REPO)} includes {name}"
