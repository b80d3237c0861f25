"""`mra-export heal`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mra_export.cli.options import force_option, output_option, output_options
from mra_export.cli.output import print_result

__all__ = ["heal_command"]

_FILE = click.Path(path_type=Path)


@click.command("heal")
@click.argument("source", metavar="CKPT")
@click.option("--teacher", metavar="SRC", required=True, help="The dense checkpoint that CKPT was made from.")
@output_option("The checkpoint directory to write.")
@click.option(
    "--texts",
    type=_FILE,
    metavar="FILE",
    help="What the model is to serve, as embed reads it.  [default: documentation in Python]",
)
@click.option(
    "--steps", type=int, metavar="N", help="Of training.  [default: 400, or all that --minutes leaves time for]"
)
@click.option("--minutes", type=float, metavar="M", help="When training ends.  [default: after --steps]")
@click.option("--texts-per-step", type=int, default=8, show_default=True, help="Whose gradients make a step.")
@click.option("--learning-rate", type=float, default=1e-4, show_default=True, help="At its highest.")
@click.option(
    "--weights",
    type=click.Choice(["attention", "all", "last"]),
    default="attention",
    show_default=True,
    help="What is trained of the layers: attention, all of them, or all of their last half.",
)
@click.option("--evaluate-every", type=int, metavar="N", default=20, show_default=True, help="Steps.")
@click.option(
    "--patience", type=int, default=10, show_default=True, help="Evaluations without a better one that end it."
)
@click.option("--plot", type=_FILE, metavar="FILE.png", help="Write the learning curve as a picture.")
@force_option
@output_options
def heal_command(
    source: str,
    teacher: str,
    output: Path,
    texts: Path | None,
    plot: Path | None,
    force: bool,
    as_json: bool,
    verbose: bool,
    quiet: bool,
    **recipe: Any,
) -> None:
    """Trains an MRA checkpoint to give its dense model's vectors again, and writes the step that is best on held-out texts.

    The result is never worse than CKPT on these texts: where no step is better, nothing is written, and that is an error. After an
    interruption the same command goes on.

    \b
    Example:
      mra-export heal ./minilm-mra --teacher ./all-MiniLM-L6-v2 --texts ./documents.jsonl -o ./minilm-healed
    """
    from dataclasses import asdict

    from mra_export.cli.console import progress
    from mra_export.embedding.input import read_texts
    from mra_export.outputs import check_target
    from mra_export.pipeline.heal import heal

    if plot is not None:
        from mra_export.pipeline.bench_plot import check_plot
        from mra_export.pipeline.heal_plot import write_curve

        check_plot(plot)
        check_target(plot, force=force, sources=[Path(source), Path(teacher)])
    with progress(quiet=quiet) as step:
        result = heal(
            source,
            output,
            teacher=teacher,
            texts=None if texts is None else list(read_texts(texts)),
            force=force,
            progress=step,
            **recipe,
        )
    if plot is not None:
        write_curve(plot, result, title=output.name, force=force)
    before, after = result.before, result.after
    text = (
        f"{output}: mean cosine {before.mean:.4f} -> {after.mean:.4f}, least {before.least:.4f} -> {after.least:.4f} on "
        f"{result.held_out} held-out texts, step {result.best_step} of {result.steps}"
    )
    print_result(
        "heal",
        text + "".join(f"\n  note: {note}" for note in result.notes),
        as_json,
        outputs=[str(output), *([] if plot is None else [str(plot)])],
        steps=result.steps,
        best_step=result.best_step,
        before=_agreement(before),
        after=_agreement(after),
        curve=[asdict(point) for point in result.curve],
        ended=result.ended,
        texts=result.texts,
        held_out=result.held_out,
        notes=list(result.notes),
    )


def _agreement(point: Any) -> dict[str, float]:
    return {name: getattr(point, name) for name in ("mean", "low", "least")}
