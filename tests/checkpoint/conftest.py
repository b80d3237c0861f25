"""A BERT that a test may spoil."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_support import save, tiny


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny models: threads that wait for each other cost more than they do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bert_model() -> Any:
    return tiny("bert", "ForMaskedLM")


@pytest.fixture
def bert(tmp_path: Path, bert_model: Any) -> Path:
    """A BERT checkpoint that a test may spoil."""
    return save(bert_model, tmp_path / "dense")
