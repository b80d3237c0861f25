"""Builds what is checked, for the one GPU at hand: every file is compiled once and all at the same time."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu.session import Session

REPO = Path(__file__).resolve().parents[2]
CUDA_HOST = REPO / "tests" / "kernels" / "cuda_host"
OPERATORS = {
    "mra": "mra2_attention",
    "yoso": "yoso_attention",
}  # what device_runner calls them -> their folder and files
LIBRARY, RUNNER = "libmra_cuda_device.so", "device_runner"
PLUGIN_STEP = "TensorRT plugin"


def run(
    command: Sequence[str], log: Path | None = None, *, timeout: float | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command in the checkout, both outputs as one; after `timeout` seconds it is ended, and all it started: code 124."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=REPO,
        env=os.environ | environment,
        process_group=0,  # not a session of its own: whoever ends ours ends it too
    )
    try:
        output, _ = process.communicate(timeout=timeout)
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, code = f"{process.communicate()[0]}\nstopped after {timeout:.0f} s", 124
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    done = subprocess.CompletedProcess(command, code, output, None)
    if log is not None:
        log.write_text(f"{' '.join(command)}\n{done.stdout}")
    return done


def kernels_key() -> str:
    """What figures belong to: a hash of the kernels' sources."""
    key = hashlib.sha256()
    for path in sorted((REPO / "kernels").rglob("*")):
        if path.is_file():
            key.update(f"{path.relative_to(REPO)}\n".encode() + path.read_bytes())
    return key.hexdigest()[:16]


def device_commands(folder: Path, capability: str) -> tuple[list[list[str]], list[list[str]]]:
    """The commands that compile, which need nothing of each other, and those that link, after them.

    The library is the kernels behind tests/kernels/cuda_host/kernel_api.h; the runner, with the same objects but one, is the
    program for compute-sanitizer.
    """
    nvcc = [
        "nvcc",
        "-std=c++17",
        "-O3",
        "-lineinfo",
        f"-arch=sm_{capability}",
        "-Xcompiler",
        "-fPIC,-fvisibility=hidden",
    ]
    include = [f"-I{REPO / 'kernels'}", f"-I{CUDA_HOST}"]
    kernels = REPO / "kernels"
    shared = [kernels / "common" / "call.cc"]
    for name in OPERATORS.values():
        shared += [kernels / name / "cuda" / f"{name}_cuda.cu", kernels / name / f"{name}.cc"]
    entry = CUDA_HOST / "device_api.cu"
    objects = {source: folder / f"{source.stem}{source.suffix}.o" for source in shared}
    ends = {LIBRARY: (folder / "device_api.o", []), RUNNER: (folder / "device_main.o", ["-DMRA_DEVICE_MAIN"])}
    # The large ones first: with as many processors as files the last to begin decides.
    compiled = [
        [*nvcc, *include, "-c", str(source), "-o", str(objects[source])] for source in shared if source.suffix == ".cu"
    ]
    compiled += [[*nvcc, *include, *extra, "-c", str(entry), "-o", str(target)] for target, extra in ends.values()]
    compiled += [
        [*nvcc, *include, "-c", str(source), "-o", str(objects[source])] for source in shared if source.suffix != ".cu"
    ]
    linked = []
    for name, (target, _) in ends.items():
        kind = ["-shared"] if name.endswith(".so") else []
        linked.append([*nvcc, *kind, str(target), *map(str, objects.values()), "-o", str(folder / name)])
    return compiled, linked


def build_device(session: Session) -> None:
    """The library and the runner; what an earlier call built of the same sources stays."""
    folder, report = session.folder, session.report
    compiled, linked = device_commands(folder, session.capability)
    key = hashlib.sha256(repr((kernels_key(), compiled, linked)).encode())
    for path in sorted(CUDA_HOST.glob("*.[chi]*")):
        key.update(path.read_bytes())
    stamp = folder / "device.built"
    if (
        stamp.is_file()
        and stamp.read_text() == key.hexdigest()
        and all((folder / n).is_file() for n in (LIBRARY, RUNNER))
    ):
        report.add("build for the device", "passed", f"sm_{session.capability}, built before")
        return
    began = time.monotonic()
    with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        for commands in (compiled, linked):
            for number, done in enumerate(pool.map(run, commands)):
                if done.returncode != 0:
                    (folder / "build.log").write_text(f"{' '.join(commands[number])}\n{done.stdout}")
                    report.add("build for the device", "FAILED", done.stdout[-1500:])
                    return
    stamp.write_text(key.hexdigest())
    report.add("build for the device", "passed", f"sm_{session.capability}, {time.monotonic() - began:.0f} s")


def build_plugin(session: Session) -> None:
    """The TensorRT plugin for this GPU, and the program that drives it without TensorRT; only TensorRT's headers are needed."""
    from mra_export.native.build import compile_target, cuda_arguments, find_nvcc, find_tool
    from mra_export.native.headers import find_headers

    folder, report = session.folder, session.report
    headers = find_headers("tensorrt")
    if headers is None:
        remedy = "set MRA_TENSORRT_INCLUDE to their folder; scripts/fetch_headers.py tensorrt fetches them where there is a network"
        report.add(PLUGIN_STEP, "skipped", f"TensorRT's headers are not here: {remedy}")
        return
    cmake, nvcc = find_tool("cmake"), find_nvcc()
    if cmake is None or nvcc is None:
        report.add(PLUGIN_STEP, "skipped", f"{'CMake' if cmake is None else 'nvcc'} is not here")
        return
    began = time.monotonic()
    arguments = ["-DMRA_ONNXRUNTIME=OFF", "-DMRA_TENSORRT=ON", f"-DMRA_TENSORRT_INCLUDE={headers.path}"]
    arguments += [*cuda_arguments(nvcc), f"-DCMAKE_CUDA_ARCHITECTURES={session.capability}"]
    jobs = max(2, os.cpu_count() or 2)
    if error := compile_target(cmake, REPO, folder / "plugin", "mra_tensorrt", arguments, jobs=jobs):
        report.add(PLUGIN_STEP, "FAILED", error[-1500:])
        return
    source = REPO / "tests" / "plugins" / "tensorrt" / "plugin_harness.cc"
    harness = [
        "nvcc",
        "-std=c++17",
        "-O2",
        f"-I{headers.path}",
        str(source),
        "-ldl",
        "-o",
        str(folder / "plugin_harness"),
    ]
    done = run(harness, folder / "harness.log")
    if done.returncode != 0:
        report.add("plugin harness", "FAILED", done.stdout[-1500:])
        return
    detail = f"sm_{session.capability}, TensorRT {headers.version}'s headers, {time.monotonic() - began:.0f} s"
    report.add(PLUGIN_STEP, "passed", detail)
