"""What `heal` measured as a picture: the cosines on the held-out texts and the loss on the others, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mra_export.outputs import staged_file

if TYPE_CHECKING:
    from pathlib import Path

    from mra_export.pipeline.heal import HealResult

__all__ = ["write_curve"]


def write_curve(path: Path, result: HealResult, *, title: str, force: bool = False) -> None:
    """Writes the picture.

    Args:
        path: the file, of a type that `bench_plot.check_plot` passes.
        result: what came of it.
        title: above it.
        force: whether an existing file is replaced.

    Raises:
        InputError: the file cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    axes = figure.subplots()
    steps = [point.step for point in result.curve]
    for name, label, style in (("mean", "mean", "o-"), ("low", "5 % below", "s--"), ("least", "least", "v:")):
        axes.plot(
            steps, [getattr(point, name) for point in result.curve], style, color="#4477aa", markersize=4, label=label
        )
    axes.axvline(result.best_step, color="#228833", alpha=0.5, label=f"written: step {result.best_step}")
    axes.set(xlabel="step", ylabel=f"cosine with the dense model, {result.held_out} held-out texts")
    axes.grid(alpha=0.3)
    losses = axes.twinx()
    trained = [(point.step, point.loss) for point in result.curve if point.loss is not None]
    losses.plot(*zip(*trained, strict=True), "-", color="#ee6677", alpha=0.7, label="loss")
    losses.set(ylabel="loss on the texts of the steps between", ylim=(0, None))
    lines = [*axes.get_lines(), *losses.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], fontsize=8, loc="center right")
    axes.set_title(title, fontsize=10)
    settings: dict[str, Any] = {"metadata": {"Date": None}} if path.suffix == ".svg" else {}
    with staged_file(path, force=force) as stage, mpl.rc_context({"svg.hashsalt": "mra-export"}):
        figure.savefig(stage, format=path.suffix[1:], dpi=130, **settings)
