"""What is printed of comparisons."""

from __future__ import annotations

import pytest

from mra_export.cli.tables import print_comparisons
from mra_export.parity.comparison import Comparison


def test_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """As in the name of an extra to be installed."""
    note = "Install it with `pip install 'mra-export[check]'`."
    comparison = Comparison("a[b]", "c[red]d", {"relative_error": 1e-7}, {"relative_error": 1e-4}, True, notes=[note])
    print_comparisons([comparison])
    assert capsys.readouterr().out.splitlines() == [
        "PASSED c[red]d against a[b]",
        "  relative error 1.0e-07 (<= 0.0001)",
        f"  note: {note}",
    ]
