"""What `bench` measured as a picture: how much faster than dense attention each engine is, against the length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mra_export.errors import InputError
from mra_export.optional import require
from mra_export.outputs import staged_file
from mra_export.pipeline.bench_engines import DENSE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mra_export.pipeline.bench import BenchRow

__all__ = ["check_plot", "write_plot"]

_SUFFIXES = (".png", ".svg", ".pdf")
_COLORS = {
    "fp32": "#4477aa",
    "bf16": "#228833",
    "int8": "#ee6677",
    "int8+bf16": "#ccbb44",
    "int8-all": "#aa3377",
    "int8-all+bf16": "#66ccee",
}
"""Of the precisions, told apart by the colour-blind too (Paul Tol's bright scheme)."""

_MORE_COLORS = ("#ee7733", "#777777")


def check_plot(path: Path) -> None:
    """Refuses a picture that cannot be written, before anything is timed for it.

    Raises:
        InputError: the name ends with no type of picture that is known.
        DependencyError: matplotlib is not installed.
    """
    if path.suffix not in _SUFFIXES:
        raise InputError(f"{path} must end with one of {', '.join(_SUFFIXES)}: the picture's type follows from it.")
    require("matplotlib", "A plot needs matplotlib, which is not installed. Install it with `pip install matplotlib`.")


def write_plot(path: Path, panels: Mapping[str, Sequence[BenchRow]], *, title: str, force: bool = False) -> None:
    """Writes the picture; dense attention is dashed, the colours tell the precisions apart and the markers the runtimes.

    Args:
        path: the file.
        panels: what stands above each, and what it shows.
        title: above all.
        force: whether an existing file is replaced.

    Raises:
        InputError: the file cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    shown = {row.precision for rows in panels.values() for row in rows}
    colors = _COLORS | dict(zip(sorted(shown - set(_COLORS)), _MORE_COLORS, strict=False))
    figure = Figure(figsize=(5.2 * len(panels) + 3.4, 4.8), layout="constrained")
    labels: dict[str, Any] = {}
    for axes, (name, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for backend in dict.fromkeys(row.backend for row in rows):
            own = sorted((row for row in rows if row.backend == backend), key=lambda row: row.seq_len)
            (line,) = axes.plot(
                [row.seq_len for row in own],
                [row.faster_than_dense_cpu for row in own],
                "--" if own[0].attention == DENSE else "-",
                marker={"onnxruntime": "o", "openvino": "s"}.get(own[0].runtime, "^"),
                markersize=5,
                color=colors.get(own[0].precision, "#777777"),
                alpha=0.45 if "function body" in backend else 1.0,
            )
            labels.setdefault(backend, line)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({row.seq_len for row in rows}), minor=False)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("tokens")
        axes.set_ylabel(f"times faster than {DENSE}, ONNX Runtime {rows[0].precision}, in processor time", fontsize=8)
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.3)
    figure.legend(list(labels.values()), list(labels), loc="outside right center", fontsize=8, handlelength=3.5)
    figure.suptitle(title, fontsize=10)
    settings: dict[str, Any] = {"metadata": {"Date": None}} if path.suffix == ".svg" else {}
    with staged_file(path, force=force) as stage, mpl.rc_context({"svg.hashsalt": "mra-export"}):
        figure.savefig(stage, format=path.suffix[1:], dpi=130, **settings)
