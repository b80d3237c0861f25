"""What is lost, and by which layer, as self-contained HTML pages with plots."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from mra_export.outputs import staged_file
from mra_export.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

__all__ = ["write_page", "write_search"]

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h2 { font-size: 1.1rem; margin-top: 2.5rem } svg { max-width: 100%; height: auto }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums }
td, th { border-bottom: 1px solid #ddd; padding: .2rem .8rem .2rem 0; text-align: left; font-weight: normal }
th { color: #666 }
</style></head><body>
<h1>{{ title }}</h1>
<p>mra-export {{ version }}</p>
{% for note in notes %}<p>{{ note }}</p>{% endfor %}
{% for plot in plots %}{{ plot|safe }}{% endfor %}
{% for heading, head, rows in tables %}
<h2>{{ heading }}</h2>
<table><tr>{% for cell in head %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</table>
{% endfor %}
</body></html>
"""

Table = tuple[str, list[str], list[list[Any]]]
"""Heading, heads of the columns, rows."""


def write_page(
    path: Path,
    title: str,
    notes: Sequence[str],
    plots: Sequence[Callable[[Axes], None]],
    tables: Sequence[Table],
    *,
    force: bool = False,
) -> None:
    """Writes a page.

    Args:
        path: the .html file.
        title: its heading.
        notes: sentences below it.
        plots: each draws into its own axes; they stand side by side.
        tables: below them.
        force: whether an existing file is replaced.

    Raises:
        InputError: the file cannot be written.
    """
    from jinja2 import Environment

    page = Environment(autoescape=True).from_string(_PAGE)
    text = page.render(title=title, version=__version__, notes=notes, plots=_drawn(plots), tables=tables)
    with staged_file(path, force=force) as stage:
        stage.write_text(text, encoding="utf-8")


def _drawn(plots: Sequence[Callable[[Axes], None]]) -> list[str]:
    """The plots as one SVG text, the same for the same numbers."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    if not plots:
        return []
    figure = Figure(figsize=(5.5 * len(plots), 3.8), layout="constrained")
    for axes, draw in zip(figure.subplots(1, len(plots), squeeze=False)[0], plots, strict=True):
        draw(axes)
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "mra-export"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return [text.getvalue()[text.getvalue().index("<svg") :]]


def write_search(
    path: Path, measured: dict[str, Any], notes: Sequence[str], *, title: str, force: bool = False
) -> None:
    """Writes what a search for budgets measured: the loss of each layer alone, and what a cost keeps.

    Args:
        path: the .html file.
        measured: `FromDenseResult.measured`.
        notes: of the conversion.
        title: heading of the page.
        force: whether an existing file is replaced.

    Raises:
        InputError: the file cannot be written.
    """
    sensitivity = measured.get("sensitivity", [])
    curve = {float(mean): cosine for mean, cosine in measured["curve"].items()}

    def draw_layers(axes: Axes) -> None:
        for layer, losses in enumerate(sensitivity):
            points = [(int(level), max(loss, 1e-7)) for level, loss in losses.items() if loss > 0]
            if points:
                axes.plot(*zip(*points, strict=True), "o-", markersize=3, label=f"layer {layer}")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set(xlabel="blocks per row in this layer alone", ylabel="1 - mean cosine", title="Sensitivity by layer")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.legend(fontsize=7)

    def draw_curve(axes: Axes) -> None:
        axes.plot(list(curve), list(curve.values()), "o-", label="placed by sensitivity")
        if "judged_by" in measured:
            cost = measured["mean_block_per_row"]
            axes.plot(cost, measured["judged_by"]["mean"], "s", color="tab:green", label="the choice, other texts")
            axes.plot(cost, measured["even"]["mean"], "x", color="tab:red", label="one budget, other texts")
        axes.set(xlabel="blocks per row, mean over layers", ylabel="mean cosine", title="Quality against cost")
        axes.legend(fontsize=8)

    tables: list[Table] = []
    if "judged_by" in measured:
        heads = ["", "mean", "5 % below", "least", "texts"]
        titles = {"chosen_by": "texts that chose", "judged_by": "other texts", "even": "one budget for all layers"}
        rows = [
            [text, *(f"{measured[key][name]:.5f}" for name in ("mean", "low", "least")), measured[key]["texts"]]
            for key, text in titles.items()
        ]
        tables.append(("Cosine with the dense model", heads, rows))
        fields = ("num_blocks", "initial_prior_first_n_blocks", "initial_prior_diagonal_n_blocks")
        chosen = [[layer, *each] for layer, each in enumerate(zip(*(measured[name] for name in fields), strict=True))]
        tables.append(("The budgets", ["layer", "blocks", "first blocks", "diagonal blocks"], chosen))
    plots = ([draw_layers] if sensitivity else []) + [draw_curve]
    write_page(path, title, notes, plots, tables, force=force)
