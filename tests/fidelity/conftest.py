"""A small dense model with a tokenizer, and its conversion with all blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
from fidelity_support import save_dense

from mra_export.checkpoint.from_dense.convert import from_dense
from mra_export.checkpoint.load import Checkpoint, load_checkpoint


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dense(tmp_path_factory.mktemp("dense") / "dense")


@pytest.fixture(scope="session")
def full(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    output = tmp_path_factory.mktemp("full") / "mra"
    from_dense(dense, output)
    return load_checkpoint(output)
