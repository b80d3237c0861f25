"""What the tests of the pipeline start from."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import save_checkpoint


@pytest.fixture(scope="session")
def model(tiny_export: Path) -> Path:
    return tiny_export / "onnx" / "model.onnx"


@pytest.fixture
def short_checkpoint(tmp_path: Path) -> Path:
    """Compared in a moment: one layer and 32 tokens."""
    return save_checkpoint(tmp_path / "short", max_position_embeddings=32, num_hidden_layers=1)
