"""The measuring process of scripts/gpu_check.py: what it dies in or hangs in is lost, and nothing else."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from pathlib import Path

import gpu_check
import pytest
import torch
from gpu.plan import Clock, Task
from gpu.report import Report
from gpu.worker import AGAIN, MOST_STOPS, supervise
from paths import REPO

# Works through a, b, c and d: what a task does is the argument of that place.
WORKER = """
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from gpu.report import Report
from gpu.worker import AGAIN

report = Report(Path(sys.argv[3]))
report.reload()
for name, what in zip("abcd", sys.argv[4:]):
    if name in report.data["tasks"]:
        continue
    with report.doing(name):
        if what == "dies":
            os.kill(os.getpid(), signal.SIGSEGV)
        if what == "hangs":
            time.sleep(60)
        if what == "leaves":
            os._exit(3)
        if what == "fails":
            raise RuntimeError("cudaError_t 700")
        report.row("benchmark", {"name": name})
    if what in ("fails", "again"):
        sys.exit(AGAIN)
"""


def run(tmp_path: Path, *what: str, minutes: float = 1.0, limit: float = 20.0) -> Report:
    (tmp_path / "worker.py").write_text(WORKER)
    report = Report(tmp_path / "gpu.json", {})
    report.save()
    fixed = [str(tmp_path / "worker.py"), str(REPO / "scripts"), str(REPO), str(report.path)]
    supervise(
        lambda: [sys.executable, *fixed, *what], report, Clock.of(minutes), {"b": limit}, usual_limit_s=20, poll_s=0.02
    )
    return report


def test_what_dies_fails_hangs_or_leaves_is_passed_over(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = run(tmp_path, "dies", "hangs", "works", "leaves", limit=1)
    assert report.data["tasks"] == {"a": "FAILED", "b": "FAILED", "c": "done", "d": "FAILED"}
    assert [row["name"] for row in report.data["benchmark"]] == ["c"]
    assert [(step["step"], step["detail"]) for step in report.data["steps"]] == [
        ("a", "its process ended by signal 11"),
        ("b", "no result for 1 s; its process was ended"),
        ("d", "its process ended with exit code 3"),
    ]
    assert Report(report.path).path == tmp_path / "gpu.json"
    capfd.readouterr()


def test_a_process_that_is_of_no_more_use_is_followed_by_another(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = run(tmp_path, "again", "fails", "works", "again")
    assert report.data["tasks"] == {"a": "done", "b": "FAILED", "c": "done", "d": "done"}
    assert [row["name"] for row in report.data["benchmark"]] == ["a", "c", "d"]
    assert [step["detail"] for step in report.data["steps"]] == ["RuntimeError: cudaError_t 700"]
    capfd.readouterr()


def test_it_ends_with_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gpu.worker.GRACE_S", 0.0)
    began = time.monotonic()
    report = run(tmp_path, "works", "hangs", "works", minutes=1 / 60)
    assert time.monotonic() - began < 15
    assert report.data["tasks"] == {"a": "done", "b": "FAILED"}
    assert report.data["steps"][-1]["detail"] == "the time was over (--minutes); its process was ended"
    capfd.readouterr()


def test_what_cannot_begin_is_not_tried_for_ever(tmp_path: Path) -> None:
    report = Report(tmp_path / "gpu.json", {})
    report.save()
    for code in (1, AGAIN):
        starts: list[list[str]] = []

        def command(code: int = code, starts: list[list[str]] = starts) -> list[str]:
            starts.append([sys.executable, "-S", "-c", f"raise SystemExit({code})"])
            return starts[-1]

        supervise(command, report, Clock.of(1), {}, poll_s=0.01)
        assert len(starts) == 1
        assert (
            report.data["steps"][-1]["detail"]
            == f"its process ended with exit code {code}, while no task was under way"
        )
    assert MOST_STOPS > 1


@pytest.mark.parametrize("lost", [False, True])
def test_a_profiled_or_lost_process_times_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    report = Report(tmp_path / "gpu.json", {"l2_bytes": 1})
    report.save()
    done: list[str] = []

    def task(name: str, *, profiled: bool = False, seconds: float = 1) -> Task:
        return Task(name, "figures", seconds, lambda _: done.append(name), profiled)

    tasks = [
        task("timed"),
        task("one", profiled=True),
        task("long", seconds=999),
        task("two", profiled=True),
        task("last"),
    ]
    monkeypatch.setattr(gpu_check, "figures_tasks", lambda _: tasks)
    monkeypatch.setattr(gpu_check.Bench, "lost", lambda _: lost)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    options = Namespace(output=report.path, minutes=1, build_dir=tmp_path, quick=False, mra_sources=None)
    processes = []
    while not processes or processes[-1] == AGAIN:
        begun = len(done)
        code = gpu_check.work(options)
        processes.append(code)
        assert len(done) > begun
    assert done == ["timed", "one", "two", "last"]  # there is no time for the long one
    assert processes == ([AGAIN] * 3 + [0] if lost else [AGAIN, 0])
