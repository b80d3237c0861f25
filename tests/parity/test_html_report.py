"""The numbers of the report's tables, and what its plots are given."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, call

import pytest

from mra_export.errors import InputError
from mra_export.operators.judge import LayerReport
from mra_export.parity import html_report
from mra_export.parity.comparison import CaseReport, Comparison, LayerRange

LIMITS = {"operator_error": 2e-5, "input_error": 1e-4, "cosine_min": 0.99999}


def comparison(ok: bool | None = True, **settings: Any) -> Comparison:
    return Comparison(
        "PyTorch", "a file", settings.pop("metrics", {}), settings.pop("tolerance", LIMITS), ok, **settings
    )


def cells(page: str) -> list[list[str]]:
    """The rows of the page's tables."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]


def written(path: Path, *comparisons: Comparison) -> str:
    html_report.write_report(path, list(comparisons), title="a title", force=True)
    return path.read_text(encoding="utf-8")


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(html_report, "_plots", lambda shown: [f"<svg>{len(shown.cases)}</svg>"])
    metrics = {
        "relative_error": 1.23456e-5,
        "cosine_min": 0.99999875,
        "cosine_mean": 1.0,
        "rows": 12.0,
        "top1_agreement": None,
    }
    cases = [
        CaseReport("odd, 31", 31, None, 2.5e-7, 0.9999, 0.98765, 3, 4),
        CaseReport("b", 64, 1e-6, 0, 1.0, 1.0, 1, 2),
    ]
    ranges = [LayerRange("layer 0", "output.dense", 1234.5678), LayerRange("layer 1", "x", 40000.0)]
    return written(
        tmp_path / "report.html",
        comparison(metrics=metrics, cases=cases),
        comparison(
            False,
            metrics={"largest_value": 40000.0},
            tolerance={"largest_value": 32000.0},
            ranges=ranges,
            notes=["<b>"],
        ),
        comparison(None),
    )


def test_tables(page: str) -> None:
    assert cells(page) == [
        ["metric", "value", "limit"],
        ["relative error", "1.23e-05", "-"],
        ["cosine min", "0.9999988", "0.9999900"],
        ["cosine mean", "1.0000000", "-"],
        ["rows", "12", "-"],
        ["case", "tokens", "relative error", "largest error", "least cosine", "same choice", "rows judged"],
        ["odd, 31", "31", "-", "2.5e-07", "0.9999000", "98.77%", "3 of 4"],
        ["b", "64", "1e-06", "0", "1.0000000", "100.00%", "1 of 2"],
        ["metric", "value", "limit"],
        ["largest value", "4e+04", "3.2e+04"],
        ["layer", "tensor", "largest value", "of the limit"],
        ["layer 0", "output.dense", "1234.57", "3.9%"],
        ["layer 1", "x", "40000", "125.0%"],
        ["metric", "value", "limit"],
    ]


def test_verdicts_and_notes(page: str) -> None:
    found = re.findall(r'<h2><span class="(\w+)">([\w ]+)</span> a file against PyTorch</h2>', page)
    assert found == [("PASSED", "PASSED"), ("FAILED", "FAILED"), ("NOTJUDGED", "NOT JUDGED")]
    assert page.count("<h1>a title</h1>") == 1
    assert re.findall("<svg>.*</svg>", page) == ["<svg>2</svg>"]  # none where there are no cases
    assert "<p>&lt;b&gt;</p>" in page


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.989, "0.989"),
        (0.99, "0.9900000"),
        (1.01, "1.0100000"),
        (1.0125, "1.01"),
        (-0.5, "-0.5"),
        (-1.0, "-1.0000000"),
        (0.0, "0"),
    ],
)
def test_numbers_near_one_have_more_digits(value: float, shown: str, tmp_path: Path) -> None:
    page = written(tmp_path / "report.html", comparison(metrics={"cosine": value}, tolerance={}))
    assert cells(page)[1] == ["cosine", shown, "-"]


def test_an_old_report_is_replaced_only_by_force(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("old")
    with pytest.raises(InputError, match="already exists"):
        html_report.write_report(tmp_path / "a.html", [], title="new")
    html_report.write_report(tmp_path / "a.html", [], title="new", force=True)
    assert "<title>new</title>" in (tmp_path / "a.html").read_text()


def test_the_plot_of_layers_has_both_errors_their_limits_and_what_was_swapped() -> None:
    layers = [
        LayerReport("layer.0", input_error=0.5, operator_error=0.25, swapped_gap=0.0),
        LayerReport("layer.1", input_error=0.0, operator_error=1e-10, swapped_gap=0.125),
        LayerReport("layer.2", input_error=2.0, operator_error=0.75, swapped_gap=0.5),
    ]
    axes = MagicMock()
    html_report._plot_layers(axes, comparison(layers=layers))
    lines = [([*x], [*y], rest) for x, y, *rest in (each.args for each in axes.semilogy.call_args_list)]
    assert lines == [
        ([0, 1, 2], [0.25, 1e-9, 0.75], ["o-"]),
        ([0, 1, 2], [0.5, 1e-9, 2.0], ["o-"]),
        ([1, 2], [0.125, 0.5], ["x"]),
    ]
    labels = [each.kwargs["label"] for each in axes.semilogy.call_args_list]
    assert labels == ["operator error", "input error", "largest score gap swapped"]
    limits = [(each.args, each.kwargs["label"]) for each in axes.axhline.call_args_list]
    assert limits == [((2e-5,), "limit of operator error"), ((1e-4,), "limit of input error")]
    axes.set_xticks.assert_called_once_with([0, 1, 2])
    axes.set.assert_called_once()
    axes.legend.assert_called_once()
    axes = MagicMock()
    html_report._plot_layers(axes, comparison(layers=layers[:1]))
    assert len(axes.semilogy.call_args_list) == 2  # nothing was swapped


def test_the_plot_of_cosines_has_the_distances_and_the_limit() -> None:
    cases = [CaseReport("a", 31, 0, 0, 0.75, 1, 1, 1), CaseReport("b", 64, 0, 0, 1.0, 1, 1, 1)]
    axes = MagicMock()
    html_report._plot_cosine(axes, comparison(cases=cases, tolerance={"cosine_min": 0.5}))
    assert axes.loglog.call_args.args == ([31, 64], [0.25, 1e-16], "o")
    assert axes.axhline.call_args.args == (0.5,)
    low, high = axes.set_ylim.call_args.args
    assert (low, high) == (pytest.approx(1e-16 / 3, abs=0), pytest.approx(0.75))
    assert axes.set_xscale.call_args == call("log", base=2)
    axes.legend.assert_called_once()
    axes = MagicMock()
    html_report._plot_cosine(axes, comparison(cases=[CaseReport("a", 1, 0, 0, 1 - 1e-8, 1, 1, 1)], tolerance={}))
    axes.axhline.assert_not_called()
    assert axes.set_ylim.call_args.args == (
        pytest.approx(1e-13 / 3, abs=0),
        pytest.approx(3e-4),
    )  # as wide with small errors


@pytest.mark.parametrize(("layers", "panels"), [([], 1), ([LayerReport("layer.0")], 2)])
def test_a_figure_has_a_panel_for_layers_where_there_are_any(layers: list[LayerReport], panels: int) -> None:
    cases = [CaseReport("a", 31, 0, 0, 0.75, 1, 1, 1)]
    (figure,) = html_report._plots(comparison(cases=cases, layers=layers))
    assert re.findall(r'id="axes_(\d+)"', figure) == [str(each + 1) for each in range(panels)]
