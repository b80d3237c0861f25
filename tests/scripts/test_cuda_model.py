"""scripts/cuda_model.py: the page is what it writes, and its times hang together."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cuda_model
import pytest
from cuda_model import CUDNN, SEQ_LENS, Size, kernels, total_us


def test_the_page_is_what_the_script_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["cuda_model.py"])
    written = cuda_model.TARGET
    monkeypatch.setattr(cuda_model, "TARGET", tmp_path / "page.md")
    assert cuda_model.main() == 0
    assert written.read_text(encoding="utf-8") == (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "**Nothing here was measured**" in written.read_text(encoding="utf-8")


@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("blocks_per_row", [4, 8, 16])
def test_more_work_takes_longer_and_never_less_than_the_floor(batch: int, blocks_per_row: int) -> None:
    sizes = [Size(batch, seq_len, blocks_per_row) for seq_len in SEQ_LENS]
    times = [total_us(size) for size in sizes]
    assert times == sorted(times)
    assert all(time > size.floor_us for size, time in zip(sizes, times, strict=True))
    for size, time in zip(sizes, times, strict=True):
        assert total_us(Size(2 * batch, size.seq_len, blocks_per_row)) >= time
        assert total_us(Size(batch, size.seq_len, 2 * blocks_per_row)) >= time or size.seq_len <= 1024


def test_launches_are_those_of_the_operator() -> None:
    """One where every block is selected; three up to 64 blocks; six beyond."""
    names = [
        [kernel.name for kernel in kernels(size)] for size in (Size(8, 512, 16), Size(8, 2048, 4), Size(8, 2080, 4))
    ]
    assert names[0] == ["mra2_dense_mma_kernel"]
    assert names[1] == ["mra2_pool_kernel", "mra2_select_kernel", "mra2_mma_kernel"]
    assert [name.removeprefix("mra2_") for name in names[2]] == [
        "pool_kernel", "logits_kernel", "refine_kernel", "refine_kernel", "lists_kernel", "mma_kernel",
    ]  # fmt: skip


def test_floor_and_dense_attention() -> None:
    size = Size(8, 4096, 4)
    assert size.floor_us == pytest.approx(4 * 8 * 4096 * 768 * 2 / 3e6)
    assert size.dense_us(CUDNN) == pytest.approx(1011, rel=0.001)
    assert Size(1, 1024, 4).dense_us(CUDNN) is None


def test_it_is_put_beside_what_was_measured(tmp_path: Path) -> None:
    row = {"batch": 8, "seq_len": 4096, "blocks_per_row": 4, "kernel": "mra2_pool_kernel<__half>", "us": 60.0}
    dense = row | {"seq_len": 512, "blocks_per_row": 0, "kernel": "mra2_dense_mma_kernel<__half, 64>"}
    rows = [row, dense, row | {"kernel": "other"}]
    (tmp_path / "gpu.json").write_text(json.dumps({"machine": {"gpu": "an H100"}, "kernels": rows}))
    lines = [line.split() for line in cuda_model.comparison(tmp_path / "gpu.json").splitlines()]
    pool = next(kernel.us for kernel in kernels(Size(8, 4096, 4)) if "pool" in kernel.name)
    assert lines[2] == ["8", "4096", "4", f"{pool:.1f}", "60.0", "mra2_pool_kernel<__half>"]
    assert lines[3][3] == f"{kernels(Size(8, 512, 16))[0].us:.1f}"
    assert lines[4][3] == "-"
