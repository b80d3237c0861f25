"""scripts/gpu_check.py as far as it goes without a GPU: how it leaves, how it reads pytest's summary, what its table shows."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from paths import REPO

SCRIPT = REPO / "scripts" / "gpu_check.py"


@pytest.fixture(scope="module")
def gpu_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_leaves_with_4_where_no_gpu_is() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stdout.startswith("FAILED no GPU: PyTorch")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("output", "summary"),
    [
        ("....\n525 passed in 28.02s\n", "525 passed in 28.02s"),
        ("===== 1 failed, 3 passed, 2 skipped in 4.10s =====", "1 failed, 3 passed, 2 skipped in 4.10s"),
        ("ImportError: nothing ran", "ImportError: nothing ran"),
    ],
)
def test_reads_the_summary_of_pytest(gpu_check: ModuleType, output: str, summary: str) -> None:
    assert gpu_check.pytest_summary(output) == summary


@pytest.mark.slow
def test_checks_the_exported_model_against_pytorch(
    gpu_check: ModuleType, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """As on a GPU machine without TensorRT; here PyTorch is on the CPU."""
    report = gpu_check.Report()
    gpu_check.run_parity(tmp_path, None, None, report, (str(tiny_checkpoint), []))
    assert not report.failed
    assert [outcome for step, outcome, _ in report.lines if step == "check"].count("passed") >= 2
    assert all(comparison["metrics"] for comparison in report.data["parity"])
    report = gpu_check.Report()
    gpu_check.run_parity(tmp_path, None, None, report, (str(tmp_path / "absent"), []))
    assert report.failed
    assert "does not exist" in report.lines[-1][2]


@pytest.mark.parametrize("failed", [False, True])
def test_table_ends_with_the_verdict(gpu_check: ModuleType, failed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    report = gpu_check.Report()
    report.add("kernel tests on the device", "FAILED" if failed else "passed", "525 passed in 28.02s")
    report.add("engines", "skipped", "no plugin")
    row = {"batch": 8, "seq_len": 4096, "blocks_per_row": 4, "mra_ms": 0.131, "flash_ms": 0.9, "cudnn_ms": 0.8}
    report.data["benchmark"] = [row | {"speedup": 6.1, "share_of_copy": 0.36, "transformers_ms": None}]
    row = {"batch": 8, "seq_len": 4096, "dense_ms": 0.8}
    report.data["yoso_benchmark"] = [
        row | {"num_hash": 0, "yoso_ms": 1.0, "speedup": 0.8},
        row | {"num_hash": 32, "yoso_ms": 0.5, "speedup": None},
    ]
    gpu_check.print_table(report, "a GPU")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == ("FAILED" if failed else "PASSED")
    assert lines[-2].split() == ["8", "4096", "LSH", "32", "500", "800", "-"]
    assert lines[-3].split() == ["8", "4096", "E", "1000", "800", "0.80"]
    assert lines[-5].split() == ["8", "4096", "4", "131", "800", "6.10", "5.0", "-", "-", "0.36"]
    assert any("skipped   engines: no plugin" in line for line in lines)
