"""Where the checkout and the tests' own data are."""

from __future__ import annotations

from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
TESTS = REPO / "tests"
GOLDEN_DIR = TESTS / "golden" / "mra2_attention"
