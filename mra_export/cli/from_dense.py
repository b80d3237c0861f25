"""`mra-export from-dense`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mra_export.cli.options import TASK_NAMES, force_option, output_option, output_options
from mra_export.cli.output import print_result

__all__ = ["from_dense_command"]


@click.command("from-dense")
@click.argument("source", metavar="SRC")
@output_option("The checkpoint directory to write.")
@click.option("--block-per-row", type=int, default=4, show_default=True, help="Full-resolution blocks per 32 tokens.")
@click.option("--max-position", type=int, help="Longest sequence, in tokens.  [default: as SRC]")
@click.option("--task", type=click.Choice(TASK_NAMES), default="auto", show_default=True, help="The head to convert.")
@force_option
@output_options
def from_dense_command(
    source: str, output: Path, block_per_row: int, max_position: int | None, task: str, force: bool, **shown: Any
) -> None:
    """A BERT, RoBERTa or XLM-R checkpoint with its attention replaced by MRA: same weights, same names.

    \b
    Example:
      mra-export from-dense ./all-MiniLM-L6-v2 -o ./minilm-mra --block-per-row 8
    """
    from mra_export.checkpoint.from_dense.convert import from_dense
    from mra_export.cli.console import progress

    with progress(quiet=shown["quiet"]) as report:
        report(f"converting {source}")
        result = from_dense(
            source, output, task=task, block_per_row=block_per_row, max_position=max_position, force=force
        )
    text = f"{output}: {result.architecture}, {result.num_layers} layers, {result.num_blocks} blocks per head"
    notes = "".join(f"\n  note: {note}" for note in result.notes)
    print_result("from-dense", text + notes, shown["as_json"], outputs=[str(output)], notes=list(result.notes))
