"""`mra-export from-dense`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mra_export.cli.options import TASK_NAMES, force_option, output_option, output_options
from mra_export.cli.output import print_notes, print_result

__all__ = ["from_dense_command"]


@click.command("from-dense")
@click.argument("source", metavar="SRC")
@output_option("The checkpoint directory to write.")
@click.option(
    "--block-per-row", type=int, help="Full-resolution blocks per 32 tokens, in all layers.  [default: what pays]"
)
@click.option(
    "--mean-block-per-row", type=float, metavar="N", help="On average over the layers, placed where it loses least."
)
@click.option("--target-cosine", type=float, metavar="X", help="Mean cosine with SRC's vectors, at the least cost.")
@click.option(
    "--texts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What the model is to serve, as embed reads it, to choose budgets by.  [default: documentation in Python]",
)
@click.option(
    "--report", type=click.Path(path_type=Path), metavar="FILE.html", help="What the search measured, as a page."
)
@click.option("--max-position", type=int, help="Longest sequence, in tokens.  [default: as SRC]")
@click.option("--task", type=click.Choice(TASK_NAMES), default="auto", show_default=True, help="The head to convert.")
@force_option
@output_options
def from_dense_command(
    source: str,
    output: Path,
    block_per_row: int | None,
    mean_block_per_row: float | None,
    target_cosine: float | None,
    texts: Path | None,
    report: Path | None,
    max_position: int | None,
    task: str,
    force: bool,
    **shown: Any,
) -> None:
    """A BERT, RoBERTa or XLM-R checkpoint with its attention replaced by MRA: same weights, same names.

    \b
    Example:
      mra-export from-dense ./all-MiniLM-L6-v2 -o ./minilm-mra
      mra-export from-dense ./all-MiniLM-L6-v2 -o ./minilm-mra --texts ./documents.jsonl --target-cosine 0.99
    """
    from mra_export.cli.console import progress
    from mra_export.embedding.input import read_texts
    from mra_export.outputs import check_target
    from mra_export.pipeline.convert_dense import from_dense

    if report is not None:
        check_target(report, force=force, sources=[Path(source)])
    with progress(quiet=shown["quiet"]) as step:
        step(f"converting {source}")
        result = from_dense(
            source,
            output,
            task=task,
            block_per_row=block_per_row,
            mean_block_per_row=mean_block_per_row,
            target_cosine=target_cosine,
            texts=None if texts is None else list(read_texts(texts)),
            max_position=max_position,
            force=force,
            progress=step,
        )
    outputs = [str(output)]
    if report is not None and result.measured is not None:
        from mra_export.fidelity.report import write_search

        write_search(
            report, result.measured, result.notes, title=f"{output.name}, from {Path(source).name}", force=force
        )
        outputs.append(str(report))
    elif report is not None:
        print_notes(["nothing was measured, so there is no report: --mean-block-per-row and --target-cosine measure."])
    blocks = sorted(set(result.layer_num_blocks))
    shown_blocks = str(blocks[0]) if len(blocks) == 1 else ", ".join(map(str, result.layer_num_blocks))
    text = f"{output}: {result.architecture}, {result.num_layers} layers, {shown_blocks} blocks per head"
    notes = "".join(f"\n  note: {note}" for note in result.notes)
    print_result(
        "from-dense",
        text + notes,
        shown["as_json"],
        outputs=outputs,
        notes=list(result.notes),
        num_blocks=list(result.layer_num_blocks),
        measured=result.measured,
    )
