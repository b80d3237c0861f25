"""`mra-export fidelity`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mra_export.cli.options import force_option, output_options
from mra_export.cli.output import print_result
from mra_export.native.libraries import checking_library

if TYPE_CHECKING:
    from mra_export.fidelity.search import Agreement
    from mra_export.pipeline.fidelity import FidelityResult

__all__ = ["fidelity_command"]

_FILE = click.Path(path_type=Path)


@click.command("fidelity")
@click.argument("dense", metavar="DENSE")
@click.argument("mra", metavar="MRA")
@click.option(
    "--texts",
    type=_FILE,
    metavar="FILE",
    help="As embed reads it; with queries .jsonl.  [default: documentation in Python]",
)
@click.option("--queries", type=_FILE, metavar="FILE.jsonl", help="What is looked for in the texts.")
@click.option("--qrels", type=_FILE, metavar="FILE", help="Which texts each query is to find, as BEIR or TREC has it.")
@click.option("--report", type=_FILE, metavar="FILE.html", help="Write a page with plots.")
@click.option(
    "--bench", "timed", is_flag=True, help="Time MRA, an exported model, beside dense attention, as bench does."
)
@click.option("--plugin-lib", type=_FILE, help="libmra_onnxruntime.so, for exported models.  [default: found]")
@force_option
@output_options
def fidelity_command(
    dense: str,
    mra: str,
    texts: Path | None,
    queries: Path | None,
    qrels: Path | None,
    report: Path | None,
    timed: bool,
    plugin_lib: Path | None,
    force: bool,
    **shown: Any,
) -> None:
    """Says what MRA loses against DENSE on texts: cosines by length, neighbours, retrieval, and whether it pays there.

    Both are checkpoints, hub ids, ONNX directories or .onnx files. A line of FILE.jsonl has `_id` and `text`. --qrels has query,
    text and score, with tabs between them below a heading.

    \b
    Example:
      mra-export fidelity ./all-MiniLM-L6-v2 ./minilm-mra --texts ./documents.jsonl
    """
    from dataclasses import asdict

    from mra_export.cli.console import progress
    from mra_export.embedding.input import read_texts
    from mra_export.fidelity.retrieval import read_set
    from mra_export.outputs import check_target
    from mra_export.pipeline.fidelity import fidelity

    if report is not None:
        check_target(report, force=force, sources=[Path(dense), Path(mra)])
    if texts is None and (queries is not None or qrels is not None):
        raise click.UsageError("--queries and --qrels go with --texts. Give that, or leave them out.")
    documents, asked = None, None
    if texts is not None and (found := read_set(texts, queries, qrels)) is not None:
        documents, asked = found
    elif texts is not None:
        documents = {str(number): text for number, text in enumerate(read_texts(texts))}
    with progress(quiet=shown["quiet"]) as step:
        result = fidelity(
            dense,
            mra,
            texts=documents,
            queries=asked,
            library=checking_library(plugin_lib),
            timed=timed,
            progress=step,
        )
    if report is not None:
        from mra_export.pipeline.fidelity_report import write_fidelity

        write_fidelity(report, result, force=force)
    print_result(
        "fidelity",
        _text(result),
        shown["as_json"],
        outputs=[] if report is None else [str(report)],
        dense=result.dense,
        mra=result.mra,
        cosine=vars(result.agreement),
        lengths=[{"first": row.first, "last": row.last, **vars(row.agreement)} for row in result.lengths],
        worst=[{"text": name, "tokens": count, "cosine": cosine} for name, count, cosine in result.worst],
        neighbours={str(count): share for count, share in result.neighbours.items()},
        retrieval=result.retrieval,
        queries=result.queries,
        pays=result.pays,
        speed=[asdict(row) for row in result.speed],
        notes=result.notes,
    )


def _text(result: FidelityResult) -> str:
    """The result for people."""
    lines = [f"{result.mra} against {result.dense}: cosine {_cosines(result.agreement)}"]
    lines += [f"  {row.first} to {row.last} tokens: {_cosines(row.agreement)}" for row in result.lengths]
    if result.neighbours:
        shares = ", ".join(f"{share:.3f} of the nearest {count}" for count, share in result.neighbours.items())
        lines.append(f"  neighbours that stay: {shares}")
    for name, title in (
        ("dense", result.dense),
        ("mra", result.mra),
        ("mixed", "queries of the first, texts of the second"),
    ):
        if result.retrieval is not None:
            numbers = ", ".join(f"{measure} {value:.4f}" for measure, value in result.retrieval[name].items())
            lines.append(f"  {result.queries} queries, {title}: {numbers}")
    lines += [
        f"  {row.seq_len} tokens, {row.backend}: {row.latency_ms:.1f} ms, {row.faster_than_dense:.2f} times as fast as dense"
        for row in result.speed
    ]
    return "\n".join([*lines, *(f"  note: {note}" for note in result.notes)])


def _cosines(found: Agreement) -> str:
    return f"mean {found.mean:.4f}, 5 % below {found.low:.4f}, least {found.least:.4f}, {found.texts} texts"
