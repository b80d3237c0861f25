"""The report of scripts/gpu_check.py: whole after every change, resumed, merged, judged and printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gpu.plan import Clock, Task, plan_lines, work_through
from gpu.report import Report, merged, read
from gpu.table import GOALS, judge, table_lines, verdict

from mra_export.errors import InputError

MACHINE = {"gpu": "a GPU", "kernels": "0123", "torch": "2.0"}


def new_report(path: Path | None = None, **machine: str) -> Report:
    return Report(path, MACHINE | machine)


def test_every_row_is_in_the_file_at_once(tmp_path: Path) -> None:
    report = new_report(tmp_path / "gpu.json")
    with report.doing("benchmark"):
        assert read(tmp_path / "gpu.json")["tasks"] == {"benchmark": "running"}
        for number in range(3):
            report.row("benchmark", {"batch": number})
            rows = read(tmp_path / "gpu.json")["benchmark"]
            assert rows[-1] == {"task": "benchmark", "batch": number}
            assert len(rows) == number + 1
    assert read(tmp_path / "gpu.json")["tasks"] == {"benchmark": "done"}
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]


def test_a_task_ends_by_its_worst_step() -> None:
    class OutOfMemoryError(RuntimeError):
        """As torch's."""

    report = new_report()
    with report.doing("mixed"):
        report.add("one", "skipped")
        report.add("two", "FAILED")
        report.add("three", "passed")
    with report.doing("large"):
        raise OutOfMemoryError("CUDA out of memory\nmore")
    with report.doing("wrong"):
        raise ValueError
    assert report.data["tasks"] == {"mixed": "FAILED", "large": "skipped", "wrong": "FAILED"}
    assert report.data["steps"][3]["detail"] == "OutOfMemoryError: CUDA out of memory"
    assert report.failed


def test_going_on_takes_what_is_done_and_nothing_else(tmp_path: Path) -> None:
    first = new_report(tmp_path / "first.json")
    with first.doing("done"):
        first.row("benchmark", {"batch": 8})
        first.add("step", "passed")
    with first.doing("failed"):
        first.row("benchmark", {"batch": 1})
        first.add("step", "FAILED")
    first.fact("copy_tb_per_s", 3.0)
    second = new_report(tmp_path / "second.json")
    second.take(read(tmp_path / "first.json"))
    data = read(tmp_path / "second.json")
    assert data["tasks"] == {"done": "done"}
    assert data["benchmark"] == [{"task": "done", "batch": 8}]
    assert [step["outcome"] for step in data["steps"]] == ["passed"]
    assert data["copy_tb_per_s"] == 3.0
    second.take(read(tmp_path / "first.json"))
    assert len(second.data["benchmark"]) == 1
    second.forget(["done"])
    assert read(tmp_path / "second.json") | {"machine": 0} == {
        "machine": 0, "tasks": {}, "steps": [], "benchmark": [], "copy_tb_per_s": 3.0
    }  # fmt: skip


@pytest.mark.parametrize("name", ["gpu", "kernels"])
def test_figures_of_something_else_are_not_mixed_in(tmp_path: Path, name: str) -> None:
    other = new_report(tmp_path / "other.json", **{name: "another"})
    other.save()
    with pytest.raises(InputError, match=rf"is of {name} another, and this is .*Leave --resume out"):
        new_report().take(read(tmp_path / "other.json"))
    new_report(tmp_path / "ours.json").save()
    with pytest.raises(InputError, match="do not belong together"):
        merged([tmp_path / "ours.json", tmp_path / "other.json"])


def test_reports_are_shown_together(tmp_path: Path) -> None:
    first, second = new_report(tmp_path / "first.json"), new_report(tmp_path / "second.json")
    with first.doing("tests"):
        first.add("tests", "FAILED", "1 failed")
    with first.doing("sanitizers"):
        first.add("racecheck", "FAILED", "1 hazard")
    with second.doing("tests"):
        second.add("tests", "passed", "9 passed")
    report = merged([tmp_path / "first.json", tmp_path / "second.json"])
    assert [step["detail"] for step in report.data["steps"]] == ["9 passed", "1 hazard"]
    assert verdict(report) == ("FAILED", 3)


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.json cannot be read as a report"):
        read(tmp_path / "absent.json")
    (tmp_path / "cut.json").write_text('{"machine": ')
    with pytest.raises(InputError, match=r"cut\.json cannot be read as a report: Expecting value"):
        read(tmp_path / "cut.json")
    (tmp_path / "other.json").write_text('{"machine": {}}')
    with pytest.raises(InputError, match="no machine, tasks and steps"):
        read(tmp_path / "other.json")


def test_nothing_begins_that_would_not_end_in_time() -> None:
    done: list[str] = []
    tasks = [Task(name, "figures", seconds, done.append) for name, seconds in (("a", 1), ("b", 600), ("c", 1))]
    report = new_report()
    report.data["tasks"]["a"] = "FAILED"  # by an earlier process: not again
    work_through(tasks, "ran", report, Clock.of(1))
    assert done == ["ran"]
    assert report.data["tasks"] == {"a": "FAILED", "c": "done"}
    lines = plan_lines(tasks, 1)
    assert lines[1:] == [
        "  0.0       1 s  figures     a",
        "    -     600 s  figures     b: out of time",
        "  0.0       1 s  figures     c",
        "0.0 of 1 minutes, estimated",
    ]
    assert plan_lines(tasks, 20, ["b"])[1:] == [
        "  0.0       1 s  figures     a",
        "  0.0       1 s  figures     c",
        "0.0 of 20 minutes, estimated",
        "1 tasks are through and are passed over",
    ]


def grid_row(seq_len: int, speedup: float | None, share: float | None = 0.6, **changes: Any) -> dict[str, Any]:
    row = {"batch": 8, "seq_len": seq_len, "blocks_per_row": 4, "case": "plain", "mra_ms": 0.131, "dense_ms": 0.8}
    return row | {"speedup": speedup, "share_of_copy": share} | changes


def test_goals_are_judged_apart_from_right_and_wrong() -> None:
    report = new_report()
    assert verdict(report) == ("PASSED", 0)
    assert {goal["met"] for goal in judge(report)} == {None}
    report.row("benchmark", grid_row(4096, 5.0, 0.5))
    report.row("benchmark", grid_row(4096, 1.0, 0.1, batch=1))  # no goal is of batch 1
    report.row("benchmark", grid_row(2048, None, None))
    assert verdict(report) == ("PASSED", 0)
    assert [goal["met"] for goal in judge(report)].count(True) == 2
    report.row("cases", grid_row(512, 0.99, blocks_per_row=0, case="all"))
    report.row("benchmark", grid_row(16384, 19.9, 0.7))
    assert verdict(report) == ("PASSED, but 2 of 5 goals were missed", 5)
    report.add("racecheck", "FAILED")
    assert verdict(report) == ("FAILED", 3)
    assert len(judge(report)) == len(GOALS) == 12


def test_the_table_says_what_ran() -> None:
    report = new_report()
    report.add("kernel tests on the device", "passed", "525 passed in 28.02s")
    report.add("engines", "skipped", "no plugin")
    report.row("benchmark", grid_row(4096, 6.1, 0.36))
    report.row("cases", grid_row(512, None, None, blocks_per_row=0, case="all", dense_ms=None))
    kernel = {"batch": 8, "seq_len": 512, "blocks_per_row": 4, "kernel": "mra2_pool_kernel<__half>"}
    launch = {"thread_blocks": 128, "threads": 96, "registers": 32, "occupancy_limit_percent": 98}
    report.row("kernels", kernel | launch | {"us": 5.25, "share": 0.25})
    counted = {"ns": 5250.0, "occupancy_percent": 61.4, "issue_percent": 40.0, "dram_read_bytes": 19e6, "l2_bytes": 2e6}
    yoso = {"batch": 8, "seq_len": 512, "num_hash": 32, "kernel": "yoso_sort_kernel"}
    report.row("counters", kernel | counted)
    report.row("counters", yoso | counted | {"dram_written_bytes": 1e6})
    yoso = {"batch": 8, "seq_len": 4096, "dense_ms": 0.8}
    report.row("yoso_benchmark", yoso | {"num_hash": 0, "yoso_ms": 1.0, "speedup": 0.8})
    report.row("yoso_benchmark", yoso | {"num_hash": 32, "yoso_ms": 0.5, "speedup": None})
    pipeline = {"batch": 8, "seq_len": 512, "blocks_per_row": 4, "pipeline_ms": 9.0}
    report.row("pipeline", pipeline | {"kernels": "torch", "detail": ""})
    report.row("flex", {"batch": 8, "seq_len": 2048, "blocks_per_row": 4, "flex_ms": 0.4})
    lines = table_lines(report)
    cells = [line.split() for line in lines]
    assert lines[0] == "GPU check on a GPU, kernels 0123, torch 2.0"
    assert ["8", "4096", "4", "131", "800", "6.10", "0.36"] in cells
    assert ["all", "8", "512", "all", "131", "-", "-", "-"] in cells
    assert ["8", "512", "4", "5.2", "0.25", "128", "32", "98", "mra2_pool_kernel<__half>"] in cells
    assert ["8", "512", "4", "5.2", "61", "-", "40", "-", "2.0", "mra2_pool_kernel<__half>"] in cells
    assert ["8", "512", "32", "hashes", "5.2", "61", "-", "40", "20.0", "2.0", "yoso_sort_kernel"] in cells
    assert ["8", "4096", "E", "1000", "800", "0.80"] in cells
    assert ["8", "4096", "LSH", "32", "500", "800", "-"] in cells
    assert any(line.endswith("transformers with plain torch us") for line in lines)
    assert not any("original CUDA" in line for line in lines)
    assert "  skipped   engines: no plugin" in lines
    assert any(
        line.startswith("  met ") and line.endswith("5 times as fast as dense attention: 6.10") for line in lines
    )
    assert any(line.startswith("  missed ") and line.endswith("0.5 of the speed of a copy: 0.36") for line in lines)
    assert lines[-1] == "PASSED, but 1 of 2 goals were missed"
    report.row("pipeline", pipeline | {"kernels": "sources", "detail": ""})
    assert any(line.endswith("transformers with plain torch us / original CUDA us") for line in table_lines(report))


def test_the_file_is_json_that_others_read(tmp_path: Path) -> None:
    report = new_report(tmp_path / "gpu.json")
    report.row("benchmark", grid_row(512, None))
    assert json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8")) == report.data
