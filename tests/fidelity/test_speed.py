"""Where MRA pays is what the committed benchmark says."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from paths import REPO

from mra_export.fidelity.speed import PAYS, SOURCE, _table, example_of_loss, faster_than_dense, pays_from


def test_the_figures_are_those_of_the_page() -> None:
    command = [sys.executable, str(REPO / "scripts" / "generate_facts.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0
    rows = json.loads((REPO / SOURCE).with_suffix(".json").read_text())["model"]
    expected = {row["seq_len"]: {blocks: row[str(blocks)]["vs_dense"] for blocks in (4, 8, 16)} for row in rows}
    assert set(_table()) == set(expected)
    for tokens, row in expected.items():
        assert _table()[tokens] == {blocks: pytest.approx(factor, abs=5e-4) for blocks, factor in row.items()}


def test_the_example_of_a_loss_is_that_of_the_page() -> None:
    rows = json.loads((REPO / "docs" / "benchmarks" / "fidelity.json").read_text())["rows"]
    mean = {row["name"]: row["mean"] for row in rows}
    shown = f"keeps a mean cosine of {mean['8, even']:.3f} with 8 and {mean['4, even']:.3f} with 4 blocks per row"
    assert example_of_loss() == f"all-MiniLM-L6-v2 at 512 tokens {shown} (docs/benchmarks/fidelity.md)"


def test_it_pays_where_a_fifth_is_won() -> None:
    for tokens, row in _table().items():
        assert (max(row.values()) >= PAYS) == (tokens >= pays_from())
    assert 512 < pays_from() <= 1024


def test_the_nearest_measurement() -> None:
    assert faster_than_dense(520, 7) == (512, 8, _table()[512][8])
    assert faster_than_dense(100_000, 100) == (8192, 16, _table()[8192][16])
