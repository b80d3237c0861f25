"""A bundle, an input and what an uninterrupted run makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from embed_support import (
    TEXTS,
    write_lines,
)

from mra_export.embedding.run import embed


@pytest.fixture(scope="module")
def bundle(embed_bundle: Path) -> Path:
    return embed_bundle


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("lines") / "texts.txt", TEXTS)


@pytest.fixture(scope="module")
def expected(bundle: Path, lines: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of the output of an uninterrupted run in chunks of 20 rows."""
    output = tmp_path_factory.mktemp("expected") / "vectors.npy"
    embed(bundle, lines, output, chunk_rows=20, threads=1)
    return output.read_bytes()
