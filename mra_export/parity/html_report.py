"""The parity check as one self-contained HTML page with plots."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from mra_export.outputs import staged_file
from mra_export.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from mra_export.parity.comparison import Comparison

__all__ = ["write_report"]

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h2 { font-size: 1.1rem; margin-top: 2.5rem } svg { max-width: 100%; height: auto }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums }
td, th { border-bottom: 1px solid #ddd; padding: .2rem .8rem .2rem 0; text-align: left; font-weight: normal }
th { color: #666 } .PASSED { color: #0a7d2c } .FAILED { color: #c00; font-weight: bold } .NOTJUDGED { color: #946200 }
</style></head><body>
<h1>{{ title }}</h1>
<p>mra-export {{ version }}. Choice and arithmetic are judged apart: errors are those with the same choice in
both models.</p>
{% for c in comparisons %}
<h2><span class="{{ c.verdict|replace(' ', '') }}">{{ c.verdict }}</span> {{ c.candidate }} against {{ c.reference }}</h2>
{% for note in c.notes %}<p>{{ note }}</p>{% endfor %}
<table><tr><th>metric</th><th>value</th><th>limit</th></tr>
{% for name, value, limit in c.metrics %}<tr><td>{{ name }}</td><td>{{ value }}</td><td>{{ limit }}</td></tr>{% endfor %}
</table>
{% if c.ranges %}<table><tr><th>layer</th><th>tensor</th><th>largest value</th><th>of the limit</th></tr>
{% for row in c.ranges %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</table>{% endif %}
{% for plot in c.plots %}{{ plot|safe }}{% endfor %}
{% if c.cases %}<table><tr><th>case</th><th>tokens</th><th>relative error</th><th>largest error</th><th>least cosine</th>
<th>same choice</th><th>rows judged</th></tr>
{% for row in c.cases %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</table>{% endif %}
{% endfor %}
</body></html>
"""


def write_report(path: Path, comparisons: list[Comparison], *, title: str, force: bool = False) -> None:
    """Writes the page.

    Args:
        path: the .html file.
        comparisons: what it shows.
        title: heading of the page.
        force: whether an existing file is replaced.

    Raises:
        InputError: the file cannot be written.
    """
    from jinja2 import Environment

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}" if abs(value) < 0.99 or value > 1.01 else f"{value:.7f}"

    shown = [
        {
            "candidate": c.candidate,
            "reference": c.reference,
            "verdict": {True: "PASSED", False: "FAILED", None: "NOT JUDGED"}[c.ok],
            "notes": c.notes,
            "metrics": [
                (name.replace("_", " "), number(value), number(c.tolerance.get(name)))
                for name, value in c.metrics.items()
                if value is not None
            ],
            "ranges": [
                (r.name, r.tensor, f"{r.largest:.6g}", f"{r.largest / c.tolerance['largest_value']:.1%}")
                for r in c.ranges
            ],
            "plots": _plots(c) if c.cases else [],
            "cases": [
                (
                    case.name,
                    case.seq_len,
                    number(case.relative_error),
                    number(case.max_abs_error),
                    number(case.cosine_min),
                    f"{case.selection_agreement:.2%}",
                    f"{case.judged_rows} of {case.rows}",
                )
                for case in c.cases
            ],
        }
        for c in comparisons
    ]
    page = Environment(autoescape=True).from_string(_PAGE).render(title=title, version=__version__, comparisons=shown)
    with staged_file(path, force=force) as stage:
        stage.write_text(page, encoding="utf-8")


def _plots(comparison: Comparison) -> list[str]:
    """Error against layer, where there are layers, and distance from cosine 1 by length: SVG texts."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, 2 if comparison.layers else 1, squeeze=False)[0]
    if comparison.layers:
        _plot_layers(panels[0], comparison)
    _plot_cosine(panels[-1], comparison)
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "mra-export"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return [text.getvalue()[text.getvalue().index("<svg") :]]


def _plot_layers(axes: Axes, comparison: Comparison) -> None:
    index = range(len(comparison.layers))
    for name, color in (("operator_error", "tab:blue"), ("input_error", "tab:orange")):
        values = [max(getattr(layer, name), 1e-9) for layer in comparison.layers]
        axes.semilogy(index, values, "o-", color=color, label=name.replace("_", " "))
        axes.axhline(comparison.tolerance[name], color=color, linestyle=":", label=f"limit of {name.replace('_', ' ')}")
    swapped = [(i, layer.swapped_gap) for i, layer in enumerate(comparison.layers) if layer.swapped_gap > 0]
    if swapped:
        axes.semilogy(*zip(*swapped, strict=True), "x", color="tab:gray", label="largest score gap swapped")
    axes.set(xlabel="layer", ylabel="error", title="Error against layer")
    axes.set_xticks(list(index))
    axes.legend(fontsize=8)


def _plot_cosine(axes: Axes, comparison: Comparison) -> None:
    lengths = [case.seq_len for case in comparison.cases]
    distances = [max(1.0 - case.cosine_min, 1e-16) for case in comparison.cases]
    axes.loglog(lengths, distances, "o", label="least of a case")
    if "cosine_min" in comparison.tolerance:
        axes.axhline(1.0 - comparison.tolerance["cosine_min"], linestyle=":", color="tab:red", label="limit")
    axes.set(xlabel="tokens", ylabel="1 - cosine", title="Distance of embeddings by length")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(min(1e-13, *distances) / 3, max(1e-4, *distances) * 3)
    axes.legend(fontsize=8)
