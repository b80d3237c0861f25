"""What the tests of engines start from."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model(tiny_export: Path) -> Path:
    return tiny_export / "onnx" / "model.onnx"
