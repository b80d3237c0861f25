"""The measuring of scripts/gpu_check.py, run on the CPU with a fake in the place of CUDA's graphs and clocks: rows, not times."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu.figures
import pytest
import torch
from gpu.figures import Bench, figures_tasks
from gpu.inputs import (
    ALL_BLOCKS,
    CASES,
    LONG_ROWS,
    SEQ_LENS,
    Size,
    attributes_for,
    make_inputs,
    make_mask,
    num_blocks,
    set_count,
)
from gpu.kernels import Prepared, milliseconds
from gpu.plan import Clock
from gpu.report import Report
from gpu.session import Session

from mra_export.operators.mra2_attention.reference import mra2_attention, select_blocks

L2 = 50 << 20


class Graph:
    """Runs at once what is captured, and again when it is replayed."""

    capturing: Graph | None = None

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []

    def replay(self) -> None:
        for call in self.calls:
            call()


class Event:
    """Every pair is 3 ms apart."""

    def __init__(self, **_: Any) -> None:
        pass

    def record(self) -> None:
        pass

    synchronize = record

    def elapsed_time(self, _: Event) -> float:
        return 3.0


class Stream:
    def wait_stream(self, _: Any) -> None:
        pass


class FakeOperator:
    """The reference, for mra; the values, for yoso."""

    def __init__(self, same: bool = True) -> None:
        self.same, self.calls = same, 0

    def prepare(self, query: Any, key: Any, value: Any, mask: Any, attributes: Any) -> Prepared:
        context = torch.empty_like(query)

        def enqueue() -> None:
            self.calls += 1
            context.copy_(mra2_attention(query, key, value, mask, attributes))
            if not self.same and self.calls > 3:
                context[0, 0, 0] += 1
            if Graph.capturing is not None:
                Graph.capturing.calls.append(enqueue)

        return Prepared(context, torch.empty(64, dtype=torch.uint8), enqueue)

    def prepare_yoso(self, query: Any, key: Any, value: Any, mask: Any, attributes: Any) -> Prepared:
        context = torch.empty_like(query)
        return Prepared(context, torch.empty(64), lambda: context.copy_(value))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    @contextlib.contextmanager
    def capture(graph: Graph) -> Any:
        Graph.capturing = graph
        try:
            yield
        finally:
            Graph.capturing = None

    for name, value in {
        "CUDAGraph": Graph, "graph": capture, "Event": Event, "Stream": Stream, "current_stream": Stream,
        "stream": lambda _: contextlib.nullcontext(), "synchronize": lambda: None, "empty_cache": lambda: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(gpu.figures, "COPIED", 1000)
    monkeypatch.setattr(gpu.figures, "SIDE", 16)
    monkeypatch.setattr(gpu.figures, "RACING", Size(2, 64, 1))
    monkeypatch.setattr(gpu.figures, "BLOCKS_PER_ROW", (1, 2))
    monkeypatch.setattr(gpu.figures, "YOSO_HASHES", (0, 8))
    report = Report(machine={"l2_bytes": 1})
    made = Bench(Session(tmp_path, "90", report, Clock.of(1)), device="cpu")
    made.operator = FakeOperator()  # type: ignore[assignment]
    return made


def test_stages_pass_and_fail(bench: Bench) -> None:
    gpu.figures.check_stages(bench)
    assert [step["outcome"] for step in bench.report.data["steps"]] == ["passed", "passed"]
    assert bench.report.data["steps"][0]["detail"].startswith("20 of 20; ")
    assert not bench.lost()
    bench.operator = FakeOperator(same=False)  # type: ignore[assignment]
    gpu.figures.check_stages(bench)
    assert [step["outcome"] for step in bench.report.data["steps"][2:]] == ["FAILED", "FAILED"]


def test_the_grid_and_the_cases(bench: Bench) -> None:
    gpu.figures.measure_grid(bench, 2, 64)
    assert bench.report.data["benchmark"][0]["share_of_copy"] is None  # the ceilings were not to be had
    gpu.figures.measure_ceilings(bench)
    assert bench.report.data["copy_tb_per_s"] == pytest.approx(2 * 1000 * 4 / 3 / 1e9)
    gpu.figures.measure_grid(bench, 2, 64)
    rows = bench.report.data["benchmark"][2:]
    assert [row["blocks_per_row"] for row in rows] == [1, 2]
    for row in rows:
        assert (row["batch"], row["seq_len"], row["case"], row["workspace_bytes"]) == (2, 64, "plain", 64)
        assert row["mra_ms"] == row["dense_ms"] == row["dense_flash_ms"] == 3 / row["sets"]
        assert row["speedup"] == 1
        assert row["share_of_copy"] == pytest.approx(4 * 2 * 64 * 768 * 2 / row["mra_ms"] / 1e9 / (8000 / 3 / 1e9))
        assert row["high_tflops"] == pytest.approx(
            row["blocks_per_row"] * 2 * 2 * 12 * 4 * 32 * 32 * 64 / row["mra_ms"] / 1e9
        )
    gpu.figures.measure_case(bench, Size(2, 64, ALL_BLOCKS, "padded"))
    (row,) = bench.report.data["cases"]
    assert (row["case"], row["blocks_per_row"]) == ("padded", ALL_BLOCKS)
    assert "dense_flash_ms" not in row  # it takes no mask


def test_yoso(bench: Bench) -> None:
    gpu.figures.measure_yoso(bench, 32)
    rows = bench.report.data["yoso_benchmark"]
    assert [(row["num_hash"], row["speedup"]) for row in rows] == [(0, 1), (8, 1)]


@pytest.mark.slow
def test_the_pipeline_row_names_what_ran(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.figures.measure_pipeline(bench, Size(1, 64, 1))
    (row,) = bench.report.data["pipeline"]
    assert (row["pipeline_ms"], row["kernels"], row["detail"]) == (3, "torch", "plain torch operations")
    monkeypatch.setattr(gpu.figures, "PIPELINE_MAX_BYTES", 1)
    gpu.figures.measure_pipeline(bench, Size(1, 64, 1))
    assert bench.report.data["steps"][-1]["detail"] == "it would not fit into memory"


def test_flex_attention_gets_the_selected_blocks_or_is_skipped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []

    def compiled(*heads: Any, block_mask: Any, kernel_options: dict[str, int]) -> None:
        assert [tuple(tensor.shape) for tensor in heads] == [(8, 12, 256, 64)] * 3
        assert kernel_options == {"BLOCK_M": 32, "BLOCK_N": 32}
        masks.append(block_mask)

    monkeypatch.setattr(torch, "compile", lambda *_, **__: compiled)
    gpu.figures.measure_flex(bench, 256)
    assert bench.report.data["flex"][0]["flex_ms"] == 3
    assert masks[0].BLOCK_SIZE == (32, 32)
    assert bool((masks[0].full_kv_num_blocks.sum(2) == 4 * 8).all())
    assert int(masks[0].kv_num_blocks.sum()) == 0

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such back end")

    monkeypatch.setattr(torch, "compile", broken)
    gpu.figures.measure_flex(bench, 256)
    assert bench.report.data["steps"][-1]["detail"] == "RuntimeError: no such back end"
    assert not bench.report.failed


def test_single_kernels(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(calls: list[Callable[[], None]], _: Path) -> list[dict[str, Any]]:
        calls[0]()
        return [{"kernel": "mra2_pool_kernel<half>", "us": 5.0}]

    monkeypatch.setattr(gpu.figures, "kernel_rows", rows)
    gpu.figures.profile_kernels(bench, 64)
    assert [row["blocks_per_row"] for row in bench.report.data["kernels"]] == [4, ALL_BLOCKS]


def test_times_are_of_one_call(bench: Bench) -> None:
    used: list[int] = []
    assert milliseconds(used.append, 3, budget_s=0) == 1
    assert set(used) == {0, 1, 2}


def test_every_length_and_case_is_a_task() -> None:
    names = [task.name for task in figures_tasks(quick=False)]
    assert len(names) == len(set(names))
    for batch in (1, 8, 32):
        assert [f"benchmark, batch {batch}, {seq_len} tokens" in names for seq_len in SEQ_LENS] == [True] * 6
    assert [name for name in names if name.startswith("case: ")] == [f"case: {size.name}" for size in CASES]
    assert {size.case for size in CASES} == {"all", "padded", "skewed"}
    assert [task.name for task in figures_tasks(quick=False) if task.profiled] == [
        f"kernels, {seq_len} tokens" for seq_len in (512, 4096, 16384)
    ]
    assert {task.name for task in figures_tasks(quick=True)} < set(names)


@pytest.mark.parametrize(("batch", "seq_len"), [(1, 128), (1, 4096), (8, 512), (8, 16384), (32, 16384)])
def test_input_sets_exceed_twice_the_cache(batch: int, seq_len: int) -> None:
    one_set = 4 * batch * seq_len * 768 * 2
    count = set_count(batch, seq_len, L2)
    assert count * one_set > 2 * L2
    assert (count - 1) * one_set <= 2 * L2
    assert set_count(1, 32, 1 << 40) == 256


def test_inputs_of_one_seed_are_the_same() -> None:
    first, again, other = (make_inputs(2, 100, seed, device="cpu") for seed in (0, 0, 1))
    assert [tuple(tensor.shape) for tensor in first] == [(2, 100, 768)] * 3
    assert all(tensor.is_contiguous() and tensor.dtype == torch.float16 for tensor in first)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])


def test_a_few_rows_of_a_skewed_head_take_nearly_all() -> None:
    """Rows of 64 blocks are in 8 chunks of 8; in plain inputs no row is half as long."""
    seq_len = 2048
    longest = {}
    for case in ("plain", "skewed"):
        query, key, _ = (tensor.float() for tensor in make_inputs(1, seq_len, 0, case, "cpu"))
        mask = make_mask(1, seq_len, case, "cpu")
        lengths = select_blocks(query, key, mask, attributes_for(seq_len, 4)).selected.sum(3)[0]
        longest[case] = lengths.sort(dim=1, descending=True).values
        assert bool((lengths.sum(1) == 4 * 64).all())
    assert bool((longest["skewed"][:, :LONG_ROWS] == 64).all())
    assert bool((longest["skewed"][:, LONG_ROWS] <= 8).all())
    assert bool((longest["plain"][:, 0] < 32).all())


def test_masks() -> None:
    assert bool((make_mask(2, 5, device="cpu") == 1).all())
    assert make_mask(4, 8, "padded", "cpu").sum(1).tolist() == [2, 4, 6, 8]
    assert make_mask(4, 8, "padded", "cpu")[0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


def test_budgets() -> None:
    assert num_blocks(512, 4) == 64
    assert num_blocks(512, 16) == num_blocks(512, ALL_BLOCKS) == 256
    assert num_blocks(352, 16) == 121
