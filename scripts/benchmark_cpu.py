"""Measures the CPU operator and a whole model against dense attention, and writes the tables and the plot of the docs.

    python scripts/benchmark_cpu.py [--output docs/benchmarks] [--seq-len 512 --seq-len 1024 …] [--layers 4] [--quick]

Everything that is compared is run in turns in one process, on the same inputs and threads; times are medians, ratios medians
of the turns' ratios. The floor is the time of the selected blocks' multiply-adds alone at the speed that `fma_peak.cc` measures
in the same run, between the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from mra_export.export.onnx_model import read_onnx
from mra_export.native.libraries import onnxruntime_library
from mra_export.operators.limits import OP_DOMAIN, OP_VERSION
from mra_export.operators.mra2_attention.function_body import function_body
from mra_export.operators.mra2_attention.spec import BLOCK_SIZE, INPUTS, OP_TYPE
from mra_export.optional import require_onnxruntime
from mra_export.pipeline.bench_engines import bound_run, dense_twin
from mra_export.pipeline.turns import in_turns

if TYPE_CHECKING:
    from mra_export.checkpoint.load import Checkpoint

ort = require_onnxruntime()

REPO = Path(__file__).resolve().parents[1]
HEADS, HEAD_DIM = 12, 64
HIDDEN = HEADS * HEAD_DIM
BUDGETS = (4, 8, 16)  # blocks per row
OPSET = 20
DENSE = ("ONNX Runtime MultiHeadAttention", "ONNX Runtime Attention-23", "torch SDPA")
GOALS = {(512, 4): 2.5, (1024, 4): 5.0, (2048, 4): 10.0, (4096, 4): 20.0, (512, 8): 1.5, (4096, 8): 12.0}

Run = Callable[[], Any]


def make_session(model: onnx.ModelProto | bytes | str, threads: int, *, library: bool = False) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that wait for the next run in a loop would take the cores of what is run next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if library:
        options.register_custom_ops_library(str(onnxruntime_library()))
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def one_node(
    node: onnx.NodeProto, inputs: tuple[str, ...], opset: int, functions: list[onnx.FunctionProto]
) -> onnx.ModelProto:
    infos = []
    for name in inputs:
        if name == "attention_mask":
            infos.append(helper.make_tensor_value_info(name, TensorProto.INT32, ["b", "s"]))
        else:
            infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "s", HIDDEN]))
    output = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, ["b", "s", HIDDEN])
    opsets = [
        helper.make_opsetid("", opset),
        helper.make_opsetid(OP_DOMAIN, OP_VERSION),
        helper.make_opsetid("com.microsoft", 1),
    ]
    graph = helper.make_graph([node], "one", infos, [output])
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)


def mra_node(num_blocks: int) -> onnx.NodeProto:
    attributes = {
        "num_heads": HEADS,
        "num_blocks": num_blocks,
        "approx_mode": 0,
        "initial_prior_first_n_blocks": 0,
        "initial_prior_diagonal_n_blocks": 0,
        "scale": HEAD_DIM**-0.5,
    }
    return helper.make_node(OP_TYPE, list(INPUTS), ["context"], domain=OP_DOMAIN, **attributes)


def ratio_of_best(times: dict[str, list[float]], ours: str, others: tuple[str, ...]) -> float:
    """The fastest other's best time over our best: what another program on the machine disturbs least."""
    return min(min(times[name]) for name in others if name in times) / min(times[ours])


def best_ratio(times: dict[str, list[float]], ours: str, others: tuple[str, ...]) -> float:
    """The median over turns of the fastest other's time over ours; the fastest by its median."""
    other = min((name for name in others if name in times), key=lambda name: statistics.median(times[name]))
    return statistics.median(b / a for a, b in zip(times[ours], times[other], strict=True))


def measure_kernel(
    lengths: list[int], threads: int, peak: Callable[[], float], seconds: float
) -> tuple[list[dict[str, Any]], float]:
    """One row per length, and the GFLOP/s of the floor."""
    rows: list[dict[str, Any]] = []
    gflops = 0.0
    for seq_len in lengths:
        rng = np.random.default_rng(seq_len)
        feed = {name: rng.standard_normal((1, seq_len, HIDDEN), dtype=np.float32) for name in INPUTS[:3]}
        feed["attention_mask"] = np.ones((1, seq_len), np.int32)
        mha = helper.make_node(
            "MultiHeadAttention", list(INPUTS[:3]), ["context"], domain="com.microsoft", num_heads=HEADS
        )
        attention = helper.make_node("Attention", list(INPUTS[:3]), ["context"], q_num_heads=HEADS, kv_num_heads=HEADS)
        heads = [torch.from_numpy(feed[name]).view(1, seq_len, HEADS, HEAD_DIM).transpose(1, 2) for name in INPUTS[:3]]
        runs: dict[str, Run] = {
            DENSE[0]: bound_run(make_session(one_node(mha, INPUTS[:3], OPSET, []), threads), feed),
            DENSE[1]: bound_run(make_session(one_node(attention, INPUTS[:3], 23, []), threads), feed),
            DENSE[2]: lambda heads=heads: torch.nn.functional.scaled_dot_product_attention(*heads),
        }
        rows_of = seq_len // BLOCK_SIZE
        selected = {budget: min(rows_of * budget, rows_of**2) for budget in BUDGETS}
        for budget in BUDGETS:
            model = one_node(mra_node(selected[budget]), INPUTS, OPSET, [])
            runs[f"MRA {budget}"] = bound_run(make_session(model, threads, library=True), feed)
            body = one_node(mra_node(selected[budget]), INPUTS, OPSET, [function_body(OPSET)])
            runs[f"body {budget}"] = bound_run(make_session(body, threads), feed)
        full = one_node(mra_node(rows_of**2), INPUTS, OPSET, [])
        runs["MRA full"] = bound_run(make_session(full, threads, library=True), feed)
        gflops = max(gflops, peak())
        times = in_turns(runs, seconds)
        medians = {name: statistics.median(values) for name, values in times.items()}
        best = {name: min(values) for name, values in times.items()}
        row: dict[str, Any] = {"seq_len": seq_len, "ms": medians, "best_ms": best}
        row["turns"] = len(times["MRA 4"])
        row["full_budget_ratio"] = best_ratio(times, "MRA full", DENSE[:2])
        row["full_budget_ratio_best"] = ratio_of_best(times, "MRA full", DENSE[:2])
        for budget in BUDGETS:
            row[str(budget)] = {
                "vs_onnxruntime_dense": best_ratio(times, f"MRA {budget}", DENSE[:2]),
                "vs_onnxruntime_dense_best": ratio_of_best(times, f"MRA {budget}", DENSE[:2]),
                "vs_torch": best_ratio(times, f"MRA {budget}", DENSE[2:]),
                "vs_function_body": best_ratio(times, f"MRA {budget}", (f"body {budget}",)),
            }
        rows.append(row)
        del runs
        print(f"kernel, {seq_len} tokens: {json.dumps(row)}", file=sys.stderr, flush=True)
    gflops = max(gflops, peak())
    for row in rows:  # the fastest that the cores were seen to run: another program's load would lower the floor
        for budget in BUDGETS:
            blocks = min(row["seq_len"] // BLOCK_SIZE * budget, (row["seq_len"] // BLOCK_SIZE) ** 2)
            floor = blocks * HEADS * 4 * BLOCK_SIZE**2 * HEAD_DIM / gflops / 1e6
            row[str(budget)] |= {
                "floor_ms": floor,
                "share_of_floor": floor / row["ms"][f"MRA {budget}"],
                "share_of_floor_best": floor / row["best_ms"][f"MRA {budget}"],
            }
    return rows, gflops


def copy_speed() -> float:
    """GB/s of a copy that no cache holds, read and written bytes together."""
    source = torch.ones(1 << 26)
    target = torch.empty_like(source)
    times = in_turns({"copy": lambda: target.copy_(source)}, 1.0)["copy"]
    return 2 * source.numel() * source.element_size() / statistics.median(times) / 1e6


def export_model(
    directory: Path, layers: int, longest: int, change: Callable[[Checkpoint], None] = lambda _: None
) -> Path:
    """A base-sized model with random weights, which `change` may change, exported; its number of layers is given."""
    from transformers import MraConfig

    from mra_export.checkpoint.load import load_checkpoint
    from mra_export.export.exporter import export_onnx

    config = MraConfig(num_hidden_layers=layers, max_position_embeddings=longest, vocab_size=2048)
    config.architectures = ["MraModel"]
    config.save_pretrained(directory / "config")
    checkpoint = load_checkpoint(directory / "config", task="feature-extraction", random_init=0)
    change(checkpoint)
    return export_onnx(checkpoint, directory / "onnx").model


def with_budget(path: Path, folder: Path, seq_len: int, budget: int) -> str:
    """The exported model with another number of blocks per row."""
    model = onnx.load(path)
    rows = seq_len // BLOCK_SIZE
    for node in model.graph.node:
        if node.op_type == OP_TYPE:
            next(a for a in node.attribute if a.name == "num_blocks").i = min(rows * budget, rows**2)
    target = folder / f"mra{budget}.onnx"
    onnx.save(model, target)
    return str(target)


def measure_model(lengths: list[int], threads: int, layers: int, seconds: float) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = export_model(folder, layers, max(lengths))
        for seq_len in lengths:
            ids = np.random.default_rng(0).integers(4, 2000, (1, seq_len))
            feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            runs = {"dense": bound_run(make_session(dense_twin(read_onnx(path)), threads), feed)}
            for budget in BUDGETS:
                changed = with_budget(path, folder, seq_len, budget)
                runs[f"MRA {budget}"] = bound_run(make_session(changed, threads, library=True), feed)
                if budget == BUDGETS[0]:
                    runs[f"body {budget}"] = bound_run(make_session(changed, threads), feed)
            times = in_turns(runs, seconds, at_least=3)
            row: dict[str, Any] = {"seq_len": seq_len, "turns": len(times["dense"])}
            row["ms"] = {name: statistics.median(values) for name, values in times.items()}
            for budget in BUDGETS:
                row[str(budget)] = {
                    "vs_dense": best_ratio(times, f"MRA {budget}", ("dense",)),
                    "vs_dense_best": ratio_of_best(times, f"MRA {budget}", ("dense",)),
                }
            row["vs_function_body"] = best_ratio(times, "MRA 4", ("body 4",))
            rows.append(row)
            print(f"model, {seq_len} tokens: {json.dumps(row)}", file=sys.stderr, flush=True)
    return rows


def machine(threads: int) -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in info.splitlines())}
    flags = fields.get("flags", "").split()
    best = next(
        (name for name, flag in (("AVX-512", "avx512f"), ("AVX2", "avx2")) if flag in flags), "neither AVX2 nor AVX-512"
    )
    return {
        "cpu": fields.get("model name", platform.processor()),
        "cpu_family_model": f"{fields.get('cpu family', '?')}/{fields.get('model', '?')}",
        "vectors": best,
        "threads": threads,
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnxruntime": ort.__version__,
            "onnx": onnx.__version__,
        },
    }


def markdown(report: dict[str, Any]) -> str:
    host = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in host["versions"].items())
    columns = ("tokens", "blocks per row", "MRA", "ONNX Runtime dense", "torch SDPA", "function body")
    columns += ("faster than ONNX Runtime", "best against best", "than torch", "than the body")
    columns += ("FMA floor", "share of the floor", "at best")
    lines = [
        "# The operator on a CPU",
        "",
        "Written by `python scripts/benchmark_cpu.py`; the numbers are in `cpu.json`.",
        "",
        f"{host['cpu']} (family/model {host['cpu_family_model']}, {host['vectors']}), {host['threads']} threads; "
        f"{versions}. float32, "
        f"batch 1, {HEADS} heads of {HEAD_DIM}. Medians in milliseconds; ratios are medians over turns in which all are run one "
        "after the other; turns in which other programs used more than a twentieth of a core are left out, as far as enough "
        f"are left. The load average when the run began was {host['load_average'][0]}.",
        "",
        "![time against length](cpu.png)",
        "",
        "## One attention layer",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
    ]
    for row in report["kernel"]:
        ms = row["ms"]
        for budget in BUDGETS:
            cell = row[str(budget)]
            goal = GOALS.get((row["seq_len"], budget))
            cells = [str(row["seq_len"]), str(budget), f"{ms[f'MRA {budget}']:.2f}"]
            cells += [f"{min(ms[DENSE[0]], ms[DENSE[1]]):.1f}", f"{ms[DENSE[2]]:.1f}", f"{ms[f'body {budget}']:.1f}"]
            cells.append(f"{cell['vs_onnxruntime_dense']:.1f}x" + (f" (goal {goal:g}x)" if goal else ""))
            cells += [f"{cell[k]:.1f}x" for k in ("vs_onnxruntime_dense_best", "vs_torch", "vs_function_body")]
            cells += [f"{cell['floor_ms']:.2f}", f"{cell['share_of_floor']:.0%}", f"{cell['share_of_floor_best']:.0%}"]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "ONNX Runtime dense is the faster of `com.microsoft.MultiHeadAttention` and opset 23's `Attention`."]
    lines += [
        "The floor is the multiply-adds of the selected blocks alone, at the "
        f"{report['fma_gflops']:.0f} GFLOP/s that `scripts/fma_peak.cc` measured in the same run.",
    ]
    traffic = ", ".join(
        f"{4 * row['seq_len'] * HIDDEN * 4 / report['copy_gb_per_s'] / 1e6:.1f} ms at {row['seq_len']}"
        for row in report["kernel"]
    )
    lines.append(
        "To read query, key and value once and write the context takes, where no cache holds them, "
        f"{traffic}: by the {report['copy_gb_per_s']:.0f} GB/s of a copy in the same run."
    )
    lines.append(
        "Where a head is larger than a core's cache (from some 4096 tokens on) memory is what keeps 4 blocks per row from half "
        "of the floor: pooling reads all tensors once, and each key and value block comes back from the outer cache for "
        "every row that selects it. Copying the keys and values of such heads while they are pooled won 4 to 10 %; smaller "
        "groups of heads, other prefetch distances and levels, and prefetching in the pooling won nothing."
    )
    if "growth" in report:
        growth = report["growth"]
        lines.append(f"From {growth['from']} to {growth['to']} tokens the time grows as S^{growth['exponent']:.2f}.")
    full = ", ".join(
        f"{row['full_budget_ratio']:.2f}x ({row['full_budget_ratio_best']:.2f}x best against best) at {row['seq_len']}"
        for row in report["kernel"]
    )
    lines.append(f"With the full budget (exact attention) it is, against ONNX Runtime's dense attention: {full}.")
    if report["model"]:
        lines += [
            "",
            f"## A whole model: base size, {report['layers']} layers",
            "",
            "The same file with dense attention (`MultiHeadAttention`) in the place of each MRA node. In brackets: best "
            "against best.",
            "",
            "| tokens | dense | function body, 4 | "
            + " | ".join(f"MRA, {b}" for b in BUDGETS)
            + " | faster than dense: "
            + " | ".join(str(b) for b in BUDGETS)
            + " |",
            "|---|---|---|" + "---|" * (2 * len(BUDGETS)),
        ]
        for row in report["model"]:
            ms = row["ms"]
            cells = [f"{ms['dense']:.0f}", f"{ms['body 4']:.0f}", *(f"{ms[f'MRA {b}']:.0f}" for b in BUDGETS)]
            cells += [f"{row[str(b)]['vs_dense']:.2f}x ({row[str(b)]['vs_dense_best']:.2f}x)" for b in BUDGETS]
            lines.append(f"| {row['seq_len']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    lengths = [row["seq_len"] for row in report["kernel"]]
    axes.plot(
        lengths, [min(r["ms"][d] for d in DENSE[:2]) for r in report["kernel"]], "s-", label="ONNX Runtime, dense"
    )
    axes.plot(lengths, [r["ms"][DENSE[2]] for r in report["kernel"]], "^-", label="torch SDPA, dense")
    axes.plot(lengths, [r["ms"]["body 4"] for r in report["kernel"]], "v-", label="MRA 4, function body")
    for budget in BUDGETS:
        axes.plot(
            lengths, [r["ms"][f"MRA {budget}"] for r in report["kernel"]], "o-", label=f"MRA, {budget} blocks per row"
        )
    axes.plot(lengths, [r["4"]["floor_ms"] for r in report["kernel"]], "k:", label="FMA floor, 4 blocks per row")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [str(n) for n in lengths])
    axes.set_xlabel("tokens")
    axes.set_ylabel("ms per attention layer")
    axes.set_title(
        f"{report['machine']['cpu']}, {report['machine']['threads']} threads, 12 heads of 64, float32", fontsize=10
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=REPO / "docs" / "benchmarks")
    parser.add_argument("--seq-len", type=int, action="append", help="default: 512 1024 2048 4096 8192")
    parser.add_argument("--layers", type=int, default=4, help="layers of the whole model; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each length, at least")
    parser.add_argument("--quick", action="store_true", help="few turns, to see that it runs")
    arguments = parser.parse_args()
    lengths = arguments.seq_len or [512, 1024, 2048, 4096, 8192]
    seconds = 1.0 if arguments.quick else arguments.seconds
    torch.set_num_threads(arguments.threads)
    host = machine(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        program = Path(temporary) / "fma_peak"
        source = Path(__file__).with_name("fma_peak.cc")
        flags = ["-O3", "-std=c++17", "-ffp-contract=fast", "-Wno-psabi", "-pthread"]
        subprocess.run([os.environ.get("CXX", "c++"), *flags, str(source), "-o", str(program)], check=True)

        def peak() -> float:
            time.sleep(0.2)
            done = subprocess.run([str(program), str(arguments.threads)], capture_output=True, text=True, check=True)
            return float(done.stdout)

        report: dict[str, Any] = {"machine": host, "layers": arguments.layers}
        report["kernel"], report["fma_gflops"] = measure_kernel(lengths, arguments.threads, peak, seconds)
    report["copy_gb_per_s"] = copy_speed()
    report["model"] = measure_model(lengths, arguments.threads, arguments.layers, seconds) if arguments.layers else []
    ends = [row for row in report["kernel"] if row["seq_len"] in (512, 4096)]
    if len(ends) == 2:
        exponent = np.log(ends[1]["ms"]["MRA 4"] / ends[0]["ms"]["MRA 4"]) / np.log(
            ends[1]["seq_len"] / ends[0]["seq_len"]
        )
        report["growth"] = {"from": ends[0]["seq_len"], "to": ends[1]["seq_len"], "exponent": float(exponent)}
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "cpu.json").write_text(json.dumps(report, indent=1) + "\n")
    (arguments.output / "cpu.md").write_text(markdown(report))
    plot(report, arguments.output / "cpu.png")
    print(arguments.output / "cpu.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
