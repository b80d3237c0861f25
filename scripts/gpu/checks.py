"""What is right or wrong: the tests on the device, compute-sanitizer, the TensorRT plugin, ONNX Runtime's CUDA provider."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from gpu.build import OPERATORS, run
from gpu.session import importable, pytest_processes, python

if TYPE_CHECKING:
    from gpu.session import Session

SANITIZERS = ("memcheck", "initcheck", "synccheck", "racecheck")
SANITIZERS_AT_ONCE = 4
HAZARD = r"(Error|Warning|Invalid|Uninitialized|Misaligned|Program hit|Barrier error|Divergent|Race reported)"
PYTEST_LIMIT_S, SMOKE_LIMIT_S = 300.0, 100.0
SMOKE = "golden or head_dims or ties or split"


def pytest_summary(output: str) -> str:
    found = re.findall(r"(?m)^.*\b(?:passed|failed|error|skipped)\b.*\bin [\d.]+s.*$", output)
    return found[-1].strip(" =") if found else output[-500:]


def run_pytest(
    session: Session,
    step: str,
    log: str,
    arguments: Sequence[str],
    *,
    limit_s: float = PYTEST_LIMIT_S,
    **environment: str,
) -> None:
    """A pytest run as one step; it is stopped after `limit_s`, as where a kernel hangs, and when the run's time is over."""
    processes = pytest_processes()
    command = python("-m", "pytest", *arguments, "-q", "-p", "no:cacheprovider")
    if processes > 1:  # the references are computed on the processors, the kernels share the GPU
        command += ["-n", str(processes), "--dist", "worksteal"]
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // processes))
    done = run(command, session.folder / log, timeout=max(30.0, min(limit_s, session.clock.left)), **environment)
    session.report.add(step, "passed" if done.returncode == 0 else "FAILED", pytest_summary(done.stdout))


def run_tests(session: Session, operators: Sequence[str], *, smoke: bool) -> None:
    """The kernels' tests, with the library for the device in the place of that for the host."""
    files = [f"tests/kernels/cuda_host/test_{OPERATORS[operator]}.py" for operator in operators]
    extra = ["-k", SMOKE] if smoke else ["--full-sweep"]
    names = ", ".join(operators)
    step = f"a few kernel tests on the device, {names}" if smoke else f"kernel tests on the device, {names}"
    log = f"tests.{'.'.join(operators)}.log"
    limit = SMOKE_LIMIT_S if smoke else PYTEST_LIMIT_S
    run_pytest(session, step, log, [*files, *extra], limit_s=limit, MRA_CUDA_TEST_LIBRARY=str(session.library))


def case_files(folder: Path) -> dict[str, tuple[Path, list[int]]]:
    """The cases of the host's sanitizer tests, written out; by operator, the file and the bytes of each context."""
    import cuda_host
    import cuda_host_cases
    import yoso_cuda_host_cases

    packed: dict[str, list[tuple[bytes, int]]] = {"mra": [], "yoso": []}
    for case in cuda_host_cases.sanitized_cases().values():
        packed["mra"].append((cuda_host.pack_case(*case), case[0].numel() * case[0].element_size()))
    for tensors, constants, attributes in yoso_cuda_host_cases.sanitized_cases().values():
        inputs = cuda_host.yoso_inputs(*tensors, *constants, attributes=attributes)
        size = tensors[0].numel() * tensors[0].element_size()
        packed["yoso"].append((cuda_host.pack_yoso_case(inputs, attributes), size))
    files = {}
    for operator, cases in packed.items():
        files[operator] = folder / f"cases.{operator}", [size for _, size in cases]
        files[operator][0].write_bytes(b"".join(case for case, _ in cases))
    return files


def first_hazard(output: str) -> str:
    """The first thing that compute-sanitizer reports, with the lines that say where; empty where it reports nothing."""
    found: list[str] = []
    for line in output.splitlines():
        text = line.removeprefix("=========").strip()
        if not line.startswith("=========") or "SUMMARY" in text or (found and not text):
            if found:
                break
        elif found or re.match(HAZARD, text):
            found.append(text)
    return "; ".join(found[:4])


def sanitizer_outcome(returncode: int, output: str) -> tuple[str, str]:
    """Outcome and detail of a run of compute-sanitizer: its summary, and the first hazard where there is one."""
    summaries = re.findall(r"(?m)^========= (.*SUMMARY: (\d+) .*)$", output)
    if not summaries:
        outcome = "skipped" if "not supported" in output.lower() else "FAILED"
        return outcome, f"it ended without a summary: {first_hazard(output) or output[-300:]}"
    summary, number = summaries[-1]
    if returncode == 0 and number == "0":
        return "passed", summary
    return "FAILED", f"{summary}; the first: {first_hazard(output) or output[-300:]}"


def run_sanitizers(session: Session) -> None:
    """Every tool over every operator, several at the same time: each is a process of its own."""
    tool = shutil.which("compute-sanitizer")
    report, folder = session.report, session.folder
    if tool is None:
        report.add("compute-sanitizer", "skipped", "it is not on the PATH")
        return
    files = case_files(folder)

    def check(pair: tuple[str, str]) -> tuple[str, str, str]:
        name, operator = pair
        results = str(folder / f"results.{name}.{operator}")
        command = [
            tool,
            "--tool",
            name,
            "--error-exitcode",
            "9",
            str(session.runner),
            operator,
            str(files[operator][0]),
            results,
        ]
        done = run(command, folder / f"{name}.{operator}.log", timeout=max(30.0, session.clock.left))
        return f"{name}, {operator}", *sanitizer_outcome(done.returncode, done.stdout)

    # racecheck takes longest and begins first.
    pairs = list(itertools.product(reversed(SANITIZERS), OPERATORS))
    with ThreadPoolExecutor(SANITIZERS_AT_ONCE) as pool:
        for step, outcome, detail in pool.map(check, pairs):
            report.add(step, outcome, detail)


def run_plugin(session: Session) -> None:
    """enqueue on two contexts and two streams, against what the kernels compute alone."""
    folder, report = session.folder, session.report
    if session.plugin is None:
        report.add("plugin enqueue", "skipped", "no plugin")
        return
    for operator, (cases, sizes) in case_files(folder).items():
        step = f"plugin enqueue, {operator}"
        alone, both = folder / "alone", folder / "both"
        first = run([str(session.runner), operator, str(cases), str(alone)], folder / "runner.log", timeout=120)
        harness = [str(folder / "plugin_harness"), str(session.plugin), operator, str(cases), str(both)]
        second = run(harness, folder / "enqueue.log", timeout=120)
        if first.returncode != 0 or second.returncode != 0:
            report.add(step, "FAILED", (first.stdout + second.stdout)[-800:])
        elif doubled(alone.read_bytes(), sizes) == both.read_bytes():
            report.add(step, "passed", f"{second.stdout.strip()}, two contexts and streams each, bit for bit")
        else:
            report.add(step, "FAILED", "a context's output differs from the kernels'")


def doubled(outputs: bytes, sizes: Sequence[int]) -> bytes:
    """What two contexts write that compute the same: each case's output twice."""
    ends = list(itertools.accumulate(sizes, initial=0))
    return b"".join(outputs[begin:end] * 2 for begin, end in itertools.pairwise(ends))


def run_engines(session: Session) -> None:
    names = [name for name in ("tensorrt", "tensorrt_rtx") if importable(name)]
    if not names or session.plugin is None:
        missing = "no plugin" if names else "neither tensorrt nor tensorrt_rtx can be imported"
        session.report.add("engines", "skipped", missing)
        return
    step = f"engines, {', '.join(names)}"
    run_pytest(session, step, "engines.log", ["tests/plugins/tensorrt"], MRA_TENSORRT_PLUGIN=str(session.plugin))


def run_onnxruntime(session: Session) -> None:
    step = "ONNX Runtime's CUDA provider"
    if not importable("onnxruntime"):
        session.report.add(step, "skipped", "onnxruntime cannot be imported")
        return
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        detail = f"onnxruntime {onnxruntime.__version__} has none; install onnxruntime-gpu"
        session.report.add(step, "skipped", detail)
        return
    run_pytest(
        session, step, "onnxruntime.log", ["tests/plugins/onnxruntime/test_cuda_provider.py", "-k", "cuda_provider"]
    )
