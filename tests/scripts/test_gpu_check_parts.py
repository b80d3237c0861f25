"""What scripts/gpu_check.py builds with, and how it reads what pytest, compute-sanitizer, torch's profiler and ncu say."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from gpu.build import LIBRARY, REPO, RUNNER, build_device, device_commands, run
from gpu.checks import case_files, doubled, first_hazard, pytest_summary, sanitizer_outcome
from gpu.parity import mra_export
from gpu.plan import Clock
from gpu.profiles import METRICS, ncu_command, ncu_refusal, rows_of_ncu, rows_of_trace, short_name
from gpu.report import Report
from gpu.session import Session


def make_session(folder: Path) -> Session:
    return Session(folder, "90", Report(machine={"l2_bytes": 1}), Clock.of(1))


def test_every_file_is_compiled_once_and_linked_twice() -> None:
    compiled, linked = device_commands(Path("/out"), "90")
    sources = [command[command.index("-c") + 1] for command in compiled]
    outputs = [command[-1] for command in compiled]
    entry = str(REPO / "tests" / "kernels" / "cuda_host" / "device_api.cu")
    assert sources.count(entry) == 2
    assert len(set(sources)) == len(sources) - 1
    assert len(set(outputs)) == len(outputs)
    assert all(Path(source).is_file() and source.startswith(str(REPO)) for source in sources)
    kernels = {str(path) for path in (REPO / "kernels").glob("*/cuda/*.cu")}
    assert kernels < set(sources)
    assert all("-arch=sm_90" in command for command in [*compiled, *linked])
    assert [command[-1] for command in linked] == [f"/out/{LIBRARY}", f"/out/{RUNNER}"]
    shared, program = ({word for word in command if word.endswith(".o")} for command in linked)
    assert shared | program == set(outputs)
    assert shared ^ program == {"/out/device_api.o", "/out/device_main.o"}
    assert "-shared" in linked[0]
    assert "-shared" not in linked[1]
    assert [("-DMRA_DEVICE_MAIN" in command) for command in compiled if command[-1] in shared ^ program] == [
        False,
        True,
    ]


@pytest.mark.parametrize("fails", ["", "nvcc -std=c++17"])
def test_the_build_says_what_failed_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    nvcc = tools / "nvcc"
    script = f'echo "$@" >> {tmp_path}/calls\nfor last; do :; done\n: > "$last"\n'
    nvcc.write_text("#!/bin/sh\n" + ("echo 'error: no such thing'; exit 2\n" if fails else script))
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    session = make_session(tmp_path)
    build_device(session)
    if fails:
        assert session.report.failed
        assert "error: no such thing" in session.report.data["steps"][0]["detail"]
        assert (tmp_path / "build.log").read_text().startswith(fails)
        return
    assert session.library.is_file()
    assert session.runner.is_file()
    calls = len((tmp_path / "calls").read_text().splitlines())
    assert calls == sum(map(len, device_commands(tmp_path, "90")))
    build_device(session)
    assert session.report.data["steps"][-1]["detail"] == "sm_90, built before"
    assert len((tmp_path / "calls").read_text().splitlines()) == calls
    session.runner.unlink()
    build_device(session)
    assert session.runner.is_file()


def test_a_command_is_stopped_in_time(tmp_path: Path) -> None:
    done = run(["sh", "-c", f"(sleep 1; touch {tmp_path}/late) & echo begun; wait"], tmp_path / "log", timeout=0.3)
    assert done.returncode == 124
    assert "begun" in done.stdout
    assert "stopped after" in (tmp_path / "log").read_text()
    time.sleep(1)
    assert not (tmp_path / "late").exists()  # what it had started was ended too


@pytest.mark.parametrize(
    ("output", "summary"),
    [
        ("....\n525 passed in 28.02s\n", "525 passed in 28.02s"),
        ("===== 1 failed, 3 passed, 2 skipped in 4.10s =====", "1 failed, 3 passed, 2 skipped in 4.10s"),
        ("ImportError: nothing ran", "ImportError: nothing ran"),
    ],
)
def test_reads_the_summary_of_pytest(output: str, summary: str) -> None:
    assert pytest_summary(output) == summary


CLEAN = "========= COMPUTE-SANITIZER\n37 cases\n========= {} SUMMARY: 0 {}\n"
RACE = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at mra::cuda::mra2_mma_kernel<__half, (int)64>(mra::cuda::Mra2Problem)+0x10
=========     and Read access at mra::cuda::mra2_mma_kernel<__half, (int)64>(mra::cuda::Mra2Problem)+0x90 [512 hazards]
=========
========= Error: Race reported between Write access at another
=========
========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)
"""
OUTSIDE = """\
========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 16 bytes
=========     at mra::cuda::copy_row()+0x40 in tile.cuh:31
=========     by thread (3,0,0) in block (7,0,0)
=========     Access at 0x7f00 is out of bounds
=========     Saved host backtrace up to driver entry point at kernel launch time
=========
========= ERROR SUMMARY: 1 error
"""


@pytest.mark.parametrize("summary", [("ERROR", "errors"), ("RACECHECK", "hazards displayed (0 errors, 0 warnings)")])
def test_a_clean_run_of_the_sanitizer_passes(summary: tuple[str, str]) -> None:
    outcome, detail = sanitizer_outcome(0, CLEAN.format(*summary))
    assert (outcome, detail) == ("passed", f"{summary[0]} SUMMARY: 0 {summary[1]}")


def test_the_first_hazard_is_told() -> None:
    outcome, detail = sanitizer_outcome(9, RACE)
    assert outcome == "FAILED"
    assert detail.startswith(
        "RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings); the first: Error: Race reported between"
    )
    assert "and Read access at" in detail
    assert "another" not in detail
    assert first_hazard(OUTSIDE).startswith("Invalid __global__ read of size 16 bytes; at mra::cuda::copy_row()")
    assert first_hazard(OUTSIDE).endswith("is out of bounds")
    assert sanitizer_outcome(9, OUTSIDE)[0] == "FAILED"
    # A hazard that is only a warning ends with 0, and a program that crashes with no summary.
    assert sanitizer_outcome(0, RACE.replace("(2 errors, 0 warnings)", "(0 errors, 2 warnings)"))[0] == "FAILED"
    assert sanitizer_outcome(0, "========= COMPUTE-SANITIZER\n")[0] == "FAILED"
    assert sanitizer_outcome(124, CLEAN.format("ERROR", "errors"))[0] == "FAILED"


def test_a_device_that_the_sanitizer_does_not_serve_is_skipped() -> None:
    outcome, detail = sanitizer_outcome(
        1, "========= COMPUTE-SANITIZER\n========= Error: Device not supported. Please refer to\n"
    )
    assert outcome == "skipped"
    assert "Device not supported" in detail


def test_cases_and_their_sizes_belong_together(tmp_path: Path) -> None:
    files = case_files(tmp_path)
    assert set(files) == {"mra", "yoso"}
    for path, sizes in files.values():
        assert len(sizes) > 10
        assert path.stat().st_size > sum(sizes) * 3
    assert doubled(b"abcde", [2, 3]) == b"ababcdecde"


def test_names_of_kernels_are_read() -> None:
    name = "void mra::cuda::(anonymous namespace)::mra2_mma_kernel<__half, 64>(mra::cuda::Mra2Problem)"
    assert short_name(name) == "mra2_mma_kernel<__half, 64>"
    assert short_name("yoso_sort_kernel(mra::cuda::YosoProblem)") == "yoso_sort_kernel"
    other = "void at::native::vectorized_elementwise_kernel<4>(int)"
    assert short_name(other) == other
    assert len(short_name(other * 4)) == 60


def test_the_trace_of_a_profile_is_read() -> None:
    def event(name: str, time: float, **args: object) -> dict[str, object]:
        return {"cat": "kernel", "name": name, "dur": time, "args": args}

    launch = {
        "grid": [128, 2, 1],
        "block": [96, 1, 1],
        "registers per thread": 32,
        "shared memory": 0,
        "est. achieved occupancy %": 98,
    }
    events = [event("void mra2_pool_kernel<float>(P)", time, **launch) for time in (4, 6, 50)]
    events += [event("void mra2_mma_kernel<float, 64>(P)", time) for time in (18, 18, 17)]
    rows = rows_of_trace({"traceEvents": [{"cat": "cpu_op", "name": "x"}, {"ph": "M"}, *events]})
    assert rows[0] == {
        "kernel": "mra2_pool_kernel<float>", "us": 6, "share": 0.25, "launches": 3, "thread_blocks": 256, "threads": 96,
        "registers": 32, "shared_bytes": 0, "occupancy_limit_percent": 98,
    }  # fmt: skip
    assert (rows[1]["us"], rows[1]["share"]) == (18, 0.75)
    with pytest.raises(RuntimeError, match="saw no kernel"):
        rows_of_trace({"traceEvents": []})


def test_the_table_of_ncu_is_read(tmp_path: Path) -> None:
    metrics = [name for name in METRICS if not name.startswith("lts")]
    head = ",".join(f'"{name}"' for name in ["ID", "Kernel Name", *metrics])
    units = ",".join(['""'] * 2 + ['"ns"'] * len(metrics))
    values = [0, "mra2_select_kernel(Mra2Problem, int)", "1,234.5", *[2] * (len(metrics) - 2), "n/a"]
    line = ",".join(f'"{value}"' for value in values)
    rows = rows_of_ncu("\n".join(["==PROF== Connected to process 7", "something of ours", head, units, line]))
    assert len(rows) == 1
    assert rows[0]["kernel"] == "mra2_select_kernel"
    assert rows[0]["ns"] == 1234.5
    assert rows[0]["dram_read_bytes"] == 2
    assert not {"l2_bytes", "instructions"} & rows[0].keys()
    with pytest.raises(RuntimeError, match="ncu printed no table: ==ERROR== The application returned an error code"):
        rows_of_ncu("==PROF== Connected\n==ERROR== The application returned an error code (1).\n")
    command = ncu_command("ncu", make_session(tmp_path), "mra:512:4")
    assert command[command.index("--metrics") + 1].split(",") == list(METRICS)
    assert command[command.index("--clock-control") + 1] == "none"
    assert command[-4:] == ["--once", "mra:512:4", "--build-dir", str(tmp_path)]


def test_counters_that_nobody_may_read_are_no_failure_of_ours() -> None:
    refused = "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters"
    assert ncu_refusal(f"==PROF==\n{refused}\n").startswith("ERR_NVGPUCTRPERM")
    assert ncu_refusal("==ERROR== Failed to initialize the profiler: LibraryNotLoaded\n")
    assert not ncu_refusal("==ERROR== The application returned an error code (1).\n")
    assert json.dumps(list(METRICS.values()))


def test_a_command_of_ours_that_takes_too_long_is_told(tmp_path: Path) -> None:
    code, result = mra_export(tmp_path, "doctor", timeout=0.001)
    assert (code, result) == (124, {"error": "doctor was stopped after 0 s"})
