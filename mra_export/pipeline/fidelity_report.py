"""What `fidelity` found as one self-contained HTML page: cosines by length and by text, neighbours, retrieval."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mra_export.fidelity.report import Table, write_page

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from mra_export.pipeline.fidelity import FidelityResult

__all__ = ["write_fidelity"]


def write_fidelity(path: Path, result: FidelityResult, *, force: bool = False) -> None:
    """Writes the page.

    Args:
        path: the .html file.
        result: what it shows.
        force: whether an existing file is replaced.

    Raises:
        InputError: the file cannot be written.
    """

    def draw_texts(axes: Axes) -> None:
        axes.semilogy(result.tokens, [max(1 - cosine, 1e-8) for cosine in result.cosines], ".", markersize=3, alpha=0.6)
        axes.set(xlabel="tokens", ylabel="1 - cosine", title="Each text by its length")

    def draw_neighbours(axes: Axes) -> None:
        names = [str(count) for count in result.neighbours]
        axes.bar(names, list(result.neighbours.values()), color="#4477aa")
        axes.set(xlabel="nearest neighbours", ylabel="share that stays", title="Neighbours", ylim=(0, 1.02))

    def draw_retrieval(axes: Axes) -> None:
        assert result.retrieval is not None
        names = list(result.retrieval["dense"])
        for shift, (which, color) in enumerate((("dense", "#777777"), ("mra", "#4477aa"), ("mixed", "#ccbb44"))):
            places = [place + 0.27 * shift for place in range(len(names))]
            axes.bar(places, list(result.retrieval[which].values()), 0.25, label=which, color=color)
        axes.set_xticks([place + 0.27 for place in range(len(names))], names)
        axes.set(title=f"Retrieval, {result.queries} queries", ylim=(0, 1.02))
        axes.legend(fontsize=8)

    heads = ["", "texts", "mean", "5 % below", "least"]
    every = [
        ("all", result.agreement),
        *((f"{row.first} to {row.last} tokens", row.agreement) for row in result.lengths),
    ]
    rows = [
        [name, each.texts, *(f"{value:.5f}" for value in (each.mean, each.low, each.least))] for name, each in every
    ]
    worst = [[place, count, f"{cosine:.5f}"] for place, count, cosine in result.worst]
    tables: list[Table] = [
        ("Cosine by length", heads, rows),
        ("The texts that lose most", ["text", "tokens", "cosine"], worst),
    ]
    if result.speed:
        timed = [
            [
                row.seq_len,
                row.backend,
                f"{row.latency_ms:.2f}",
                f"{row.faster_than_dense:.2f}",
                f"{row.faster_than_dense_cpu:.2f}",
            ]
            for row in result.speed
        ]
        tables.append(("Speed", ["tokens", "", "ms", "faster than dense", "in processor time"], timed))
    plots = [draw_texts]
    if result.neighbours:
        plots.append(draw_neighbours)
    if result.retrieval is not None:
        plots.append(draw_retrieval)
        measures = list(result.retrieval["dense"])
        numbers = [[name, *(f"{each[m]:.4f}" for m in measures)] for name, each in result.retrieval.items()]
        tables.append(("Retrieval; mixed: the dense model's queries, the other's texts", ["", *measures], numbers))
    write_page(path, f"{result.mra} against {result.dense}", result.notes, plots, tables, force=force)
