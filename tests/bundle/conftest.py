"""A bundle that a test may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mra_export.bundle.manifest import Bundle


@pytest.fixture
def bundle(whole: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole.path, tmp_path / "bundle"))
