"""scripts/gpu_check.py as it is called, as far as it goes without a GPU: how it leaves, its plan, the commands of the page."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import gpu_check
import pytest
import torch
from gpu.build import LIBRARY, RUNNER, kernels_key
from gpu.inputs import ALL_BLOCKS
from gpu.parity import compare
from gpu.plan import COMMANDS, PARTS
from gpu.report import Report, read
from gpu.table import GOALS
from paths import REPO

SCRIPT = REPO / "scripts" / "gpu_check.py"
PAGE = (REPO / "docs" / "benchmarks" / "cuda.md").read_text(encoding="utf-8")


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_leaves_with_4_where_no_gpu_is() -> None:
    done = call()
    assert done.returncode == 4
    assert done.stdout.startswith("FAILED no GPU: PyTorch")
    assert done.stderr == ""


def test_the_page_has_three_commands_of_ten_minutes() -> None:
    commands = re.findall(r"^\$ (python scripts/gpu_check\.py --only .*)$", PAGE, re.MULTILINE)
    assert len(commands) == len(COMMANDS) == 3
    parts = []
    for command in commands:
        assert len(command) < 2000
        words = shlex.split(command)[2:]
        options = dict(zip(words[::2], words[1::2], strict=True))
        assert float(options["--minutes"]) <= 9.5
        assert Path(options["--output"]).suffix == ".json"
        parts.append(tuple(words[n + 1] for n, word in enumerate(words) if word == "--only"))
    assert parts == list(COMMANDS.values())
    assert sorted(part for each in parts for part in each) == sorted(PARTS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_time_for_all_of_its_tasks(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only = [word for part in COMMANDS[command] for word in ("--only", part)]
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--dry-run", *only])
    assert gpu_check.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if "out of time" in line]
    assert "build for the device" in lines[1]
    (estimate,) = re.findall(r"^([\d.]+) of 9 minutes, estimated$", lines[-1])
    assert 3 < float(estimate) < 8  # a minute in hand
    assert f"**{command}** takes {estimate} minutes by estimate" in PAGE


def test_the_page_has_the_goals() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+|all) \| ([\d.]+) \| ([\d.]*) ?\|$", PAGE, re.MULTILINE)
    written = []
    for seq_len, blocks, *wanted in rows:
        size = int(seq_len), ALL_BLOCKS if blocks == "all" else int(blocks)
        written += [
            (*size, name, float(each)) for name, each in zip(("speedup", "share_of_copy"), wanted, strict=True) if each
        ]
    assert sorted(written) == sorted((goal.seq_len, goal.blocks_per_row, goal.figure, goal.wanted) for goal in GOALS)
    assert {goal.batch for goal in GOALS} == {8}


def test_what_only_a_gpu_can_tell_comes_first() -> None:
    tasks = [*gpu_check.preparing(set(PARTS)), *gpu_check.figures(set(PARTS), False), *gpu_check.proving(set(PARTS))]
    names = [task.name for task in tasks]
    assert len(names) == len(set(names))
    assert names[:4] == ["build for the device", "a few kernel tests", "graph replays and two streams", "ceilings"]
    assert names[4].startswith("benchmark, batch 8, 512")
    flex = [n for n, name in enumerate(names) if name.startswith("FlexAttention")]
    assert [names[n] for n in flex] == ["FlexAttention, 2048 tokens", "FlexAttention, 8192 tokens"]
    assert flex[-1] == len(gpu_check.figures(set(PARTS), False)) + 1
    assert names.index("kernel tests, mra") > flex[-1]


def test_the_plan_passes_over_what_a_report_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report(tmp_path / "gpu.json", {"gpu": "a GPU"})
    with report.doing("sanitizers"):
        report.add("racecheck, mra", "passed")
    with report.doing("kernel tests, mra"):
        report.add("kernel tests", "FAILED")
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--dry-run", "--only", "tests", "--only", "sanitizers"])
    sys.argv += ["--resume", str(report.path)]
    assert gpu_check.main() == 0
    out = capsys.readouterr().out
    assert "1 tasks are through" in out
    assert "kernel tests, mra" in out
    assert "sanitizers  sanitizers" not in out


def test_no_report_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.json").write_text("[1]")
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--show", str(tmp_path / "other.json")])
    assert gpu_check.main() == 2
    assert re.match(
        r"FAILED .*other\.json is no report of gpu_check\.py: .*Name a file of --output\.", capsys.readouterr().out
    )


def fake_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, builds: bool) -> Path:
    """A machine with a GPU, on which the build makes empty files, and the worker is another program."""
    machine = {"gpu": "a GPU", "kernels": kernels_key(), "l2_bytes": 1}
    monkeypatch.setattr(gpu_check, "find_machine", lambda: (machine, "90"))

    def build(session: gpu_check.Session) -> None:
        for name in (LIBRARY, RUNNER) if builds else ():
            (session.folder / name).touch()
        session.report.add("build for the device", "passed" if builds else "FAILED", "sm_90")

    def passes(session: gpu_check.Session) -> None:
        session.report.add("tests", "passed", "3 passed in 1.00s")

    def breaks(_: gpu_check.Session) -> None:
        raise RuntimeError("cudaError_t 700")

    monkeypatch.setattr(gpu_check, "preparing", lambda _: [gpu_check.Task("build", "build", 1, build)])
    tasks = [gpu_check.Task("breaks", "tests", 1, breaks), gpu_check.Task("passes", "tests", 1, passes)]
    tasks.append(gpu_check.Task("long", "tests", 3600, passes))
    monkeypatch.setattr(gpu_check, "proving", lambda _: tasks)
    output = tmp_path / "gpu.json"
    argv = ["gpu_check.py", "--only", "tests", "--output", str(output), "--build-dir", str(tmp_path / "build")]
    monkeypatch.setattr(sys, "argv", argv)
    return output


def test_one_failure_loses_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = fake_machine(monkeypatch, tmp_path, builds=True)
    assert gpu_check.main() == 3
    assert read(output)["tasks"] == {"build": "done", "breaks": "FAILED", "passes": "done"}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("GPU check on a GPU")
    assert "  FAILED    breaks: RuntimeError: cudaError_t 700" in lines
    assert "  passed    tests: 3 passed in 1.00s" in lines
    assert "  skipped   1 of 4 tasks: out of time (--minutes 9): long" in lines
    assert lines[-1] == "FAILED"
    sys.argv += ["--resume", str(output)]
    monkeypatch.setattr(gpu_check, "proving", lambda _: [gpu_check.Task("breaks", "tests", 1, lambda _: None)])
    assert gpu_check.main() == 0
    assert read(output)["tasks"] == {"passes": "done", "build": "done", "breaks": "done"}
    assert capsys.readouterr().out.splitlines()[-1] == "PASSED"


def test_nothing_goes_on_after_a_build_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = fake_machine(monkeypatch, tmp_path, builds=False)
    assert gpu_check.main() == 3
    assert read(output)["tasks"] == {"build": "FAILED"}
    assert "3 of 4 tasks: the build failed: breaks, passes, long" in capsys.readouterr().out


def test_the_table_is_printed_when_it_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = fake_machine(monkeypatch, tmp_path, builds=True)

    def interrupted(_: gpu_check.Session) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(gpu_check, "proving", lambda _: [gpu_check.Task("stopped", "tests", 1, interrupted)])
    with pytest.raises(SystemExit):
        gpu_check.main()
    assert "1 of 2 tasks: it was interrupted: stopped" in capsys.readouterr().out
    assert json.loads(output.read_text())["tasks"]["stopped"] == "running"


@pytest.mark.slow
def test_checks_the_exported_model_against_pytorch(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """As on a GPU machine without TensorRT; here PyTorch is on the CPU."""
    report = Report()
    compare(tmp_path, None, None, report, (str(tiny_checkpoint), []))
    assert not report.failed
    assert [step["outcome"] for step in report.data["steps"] if step["step"] == "check"].count("passed") >= 2
    assert all(comparison["metrics"] for comparison in report.data["parity"])
    report = Report()
    compare(tmp_path, None, None, report, (str(tmp_path / "absent"), []))
    assert report.failed
    assert "does not exist" in report.data["steps"][-1]["detail"]
