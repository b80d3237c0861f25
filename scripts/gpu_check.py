"""Checks everything that needs a GPU, and measures it: figures, tests, sanitizers, the TensorRT plugin, counters of each kernel.

    python scripts/gpu_check.py [--only PART]... [--minutes 9] [--output gpu.json] [--resume gpu.json]
    python scripts/gpu_check.py --dry-run [--only PART]...    what would be done, and the minutes it is estimated to take
    python scripts/gpu_check.py --show gpu.json...            the tables of reports, together

docs/benchmarks/cuda.md has the three commands for a GPU that is lent for ten minutes. The report is in --output after each row;
--resume goes on from one, where GPU and kernels are the same: what is done is passed over, what failed or was skipped is done
again.

It needs an NVIDIA GPU, nvcc, g++ and PyTorch for CUDA. It says aloud what else is missing and what it therefore skips: CMake and
TensorRT's headers (the plugin; on a machine without a network MRA_TENSORRT_INCLUDE names a folder of them that was brought along),
compute-sanitizer, ncu, TensorRT or TensorRT-RTX (engines), transformers and the directory of MRA's original CUDA sources
(transformers/kernels/mra of the wheel transformers 4.46.3): the model that engines are checked against, and the pipeline that is
timed beside the kernels.
Exit code 0: all that ran passed; 2: bad usage; 3: something failed; 4: no GPU or no compiler; 5: all passed, and a goal was missed.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO / "scripts"), str(REPO), str(REPO / "tests" / "support")]

from gpu import worker  # noqa: E402  (this repository's own modules, found through the line above)
from gpu.build import build_device, build_plugin, kernels_key  # noqa: E402
from gpu.checks import run_engines, run_onnxruntime, run_plugin, run_sanitizers, run_tests  # noqa: E402
from gpu.figures import Bench, figures_tasks  # noqa: E402
from gpu.parity import run_parity  # noqa: E402
from gpu.plan import PARTS, Clock, Task, plan_lines, work_through  # noqa: E402
from gpu.profiles import COUNTED, call_once, count  # noqa: E402
from gpu.report import Report, merged, read  # noqa: E402
from gpu.session import Session, python  # noqa: E402
from gpu.table import judge, table_lines, verdict  # noqa: E402

from mra_export.errors import InputError  # noqa: E402

STALLED = 6  # times its estimate, and 60 s more: a task of the figures that shows nothing for so long hangs


LARGE_L2 = 128 << 20  # where PyTorch does not tell the size


def leave(message: str, code: int = 4) -> int:
    print(f"FAILED {message}")
    return code


def preparing(parts: set[str]) -> list[Task]:
    """What comes before the measuring process."""
    tasks = [Task("build for the device", "build", 30, build_device)]
    if "figures" in parts:
        tasks.append(
            Task("a few kernel tests", "figures", 30, lambda session: run_tests(session, ["mra", "yoso"], smoke=True))
        )
    return tasks


def proving(parts: set[str]) -> list[Task]:
    """What comes after the measuring process."""

    def counting(operator: str, seq_len: int, setting: int) -> Task:
        name = (
            f"counters, {operator}, {seq_len} tokens, {setting} {'blocks per row' if operator == 'mra' else 'hashes'}"
        )
        return Task(name, "counters", 35, lambda session: count(session, operator, seq_len, setting))

    tasks = [
        Task("kernel tests, mra", "tests", 130, lambda session: run_tests(session, ["mra"], smoke=session.quick)),
        Task("kernel tests, yoso", "tests", 100, lambda session: run_tests(session, ["yoso"], smoke=session.quick)),
        Task("sanitizers", "sanitizers", 150, run_sanitizers),
        Task("build of the plugin", "plugin", 75, build_plugin),
        Task("plugin enqueue", "plugin", 20, run_plugin),
        *(counting(*each) for each in COUNTED),
        Task("engines", "plugin", 5, run_engines),
        Task("ONNX Runtime's CUDA provider", "plugin", 5, run_onnxruntime),
        Task("check against PyTorch", "plugin", 90, run_parity),
    ]
    return [task for task in tasks if task.part in parts]


def figures(parts: set[str], quick: bool) -> list[Task]:
    return figures_tasks(quick) if "figures" in parts else []


def find_machine() -> tuple[dict[str, Any], str] | str:
    """What figures belong to, and the GPU's capability as in "90"; or what is missing."""
    try:
        import torch
    except ImportError:
        return "PyTorch cannot be imported. Run this in an image with PyTorch for CUDA."
    if not torch.cuda.is_available():
        return f"no GPU: PyTorch {torch.__version__} finds no CUDA device. Run this on a machine with an NVIDIA GPU."
    for tool in ("nvcc", "g++"):
        if shutil.which(tool) is None:
            return f"{tool} is not on the PATH. Install the CUDA toolkit and g++."
    found = torch.cuda.get_device_properties(0)
    if found.major < 8:
        return f"{found.name} has compute capability {found.major}.{found.minor}; the kernels need 8.0 or newer."
    machine: dict[str, Any] = {
        "gpu": found.name,
        "kernels": kernels_key(),
        "capability": f"{found.major}.{found.minor}",
    }
    machine |= {"multiprocessors": found.multi_processor_count, "torch": torch.__version__}
    machine["l2_bytes"] = getattr(found, "L2_cache_size", LARGE_L2)
    return machine, f"{found.major}{found.minor}"


def check(options: argparse.Namespace, parts: set[str]) -> int:
    found = find_machine()
    if isinstance(found, str):
        return leave(found)
    machine, capability = found
    folder = options.build_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    earlier = [read(path) for path in options.resume]
    report = Report((options.output or folder / "gpu.json").resolve(), machine)
    for data in earlier:
        report.take(data)
    builds = [task for task in [*preparing(parts), *proving(parts)] if task.run in (build_device, build_plugin)]
    report.forget(task.name for task in builds)  # another machine may have built them
    clock = Clock.of(options.minutes)
    session = Session(folder, capability, report, clock, options.quick, options.mra_sources)
    tasks = [*preparing(parts), *figures(parts, options.quick), *proving(parts)]
    why = "it was interrupted"
    try:
        work_through(preparing(parts), session, report, clock)
        if session.library.is_file() and session.runner.is_file():
            measure(options, session, figures(parts, options.quick))
            work_through(proving(parts), session, report, clock)
            why = f"out of time (--minutes {options.minutes:g})"
        else:
            why = "the build failed"
    finally:
        left = [task.name for task in tasks if report.data["tasks"].get(task.name, "running") == "running"]
        if left:
            report.add(f"{len(left)} of {len(tasks)} tasks", "skipped", f"{why}: {', '.join(left)}")
        report.fact("goals", judge(report))
        print("\n".join(table_lines(report)), flush=True)
    return verdict(report)[1]


def measure(options: argparse.Namespace, session: Session, tasks: list[Task]) -> None:
    """The part figures, in a process of its own, as often as it takes."""
    report, clock = session.report, session.clock
    if all(task.name in report.data["tasks"] for task in tasks):
        return

    def command() -> list[str]:
        arguments = [
            "--worker",
            "--minutes",
            f"{clock.left / 60:.3f}",
            "--output",
            str(report.path),
            "--build-dir",
            str(session.folder),
        ]
        arguments += ["--quick"] if options.quick else []
        arguments += ["--mra-sources", str(options.mra_sources)] if options.mra_sources else []
        return python(str(Path(__file__).resolve()), *arguments)

    limits = {task.name: STALLED * task.seconds + 60 for task in tasks}
    worker.supervise(command, report, clock, limits)


def work(options: argparse.Namespace) -> int:
    """The measuring process. It ends with worker.AGAIN where the GPU does not answer it any more, or a profiler is in it."""
    import torch

    report = Report(options.output)
    report.reload()
    clock = Clock.of(options.minutes)
    capability = "".join(map(str, torch.cuda.get_device_capability()))
    bench = Bench(Session(options.build_dir, capability, report, clock, options.quick, options.mra_sources))
    tasks = figures_tasks(options.quick)
    for number, task in enumerate(tasks):
        new = task.name not in report.data["tasks"]
        work_through([task], bench, report, clock)
        if not new or task.name not in report.data["tasks"]:
            continue
        later = [task for task in tasks[number + 1 :] if task.name not in report.data["tasks"]]
        rest = [task for task in later if task.seconds <= clock.left]
        if rest and (bench.lost() or (task.profiled and not rest[0].profiled)):
            return worker.AGAIN
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0] if __doc__ else None,
        epilog=(__doc__ or "").strip().rpartition("\n")[2],
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="run only this part; may be repeated")
    parser.add_argument("--quick", action="store_true", help="fewer tests and sizes, about three minutes")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="begin nothing that would end after this time (default 9)"
    )
    parser.add_argument(
        "--output", type=Path, help="the report, JSON, whole after each row (default: gpu.json in --build-dir)"
    )
    parser.add_argument(
        "--resume", type=Path, action="append", default=[], help="go on from this report; may be repeated"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and leave; needs no GPU")
    parser.add_argument(
        "--show", type=Path, nargs="+", metavar="REPORT", help="print the tables of reports and leave; needs no GPU"
    )
    parser.add_argument(
        "--build-dir", type=Path, default=REPO / "build" / "gpu-check", help="for what is built, and logs"
    )
    parser.add_argument("--mra-sources", type=Path, help="directory of MRA's original CUDA sources")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--once", help=argparse.SUPPRESS)
    options = parser.parse_args()
    parts = set(options.only or PARTS)
    try:
        if options.show:
            report = merged(options.show)
            print("\n".join(table_lines(report)))
            return verdict(report)[1]
        if options.dry_run:
            known = {task for path in options.resume for task, state in read(path)["tasks"].items() if state == "done"}
            tasks = [*preparing(parts), *figures(parts, options.quick), *proving(parts)]
            print("\n".join(plan_lines(tasks, options.minutes, known)))
            return 0
        if options.worker:
            return work(options)
        if options.once:
            call_once(options.once, Session(options.build_dir, "", Report(), Clock.of(options.minutes)).library)
            return 0
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the table is printed all the same
        try:
            return check(options, parts)
        finally:
            signal.signal(signal.SIGTERM, before)
    except InputError as error:
        return leave(str(error), error.exit_code)


if __name__ == "__main__":
    sys.exit(main())
