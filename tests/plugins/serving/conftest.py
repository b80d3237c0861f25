"""Fixtures of the serving tests, a pytest plugin of theirs: bundles, made once for both test processes, and drivers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_support import Driver, native_library, once


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the processes of one pytest-xdist run have in common."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if base.name.startswith("popen-") else base) / "serving"


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, shared_folder: Path) -> Path:
    """Two layers, vectors of 64 numbers, mean pooling; without a tokenizer."""
    from mra_export.pipeline.create_bundle import create_bundle

    with once(shared_folder / "tiny") as is_to_make:
        if is_to_make:
            create_bundle(tiny_checkpoint, shared_folder / "tiny", library=native_library(), check=False)
    return shared_folder / "tiny"


@pytest.fixture(scope="session")
def minilm_bundle(request: pytest.FixtureRequest, shared_folder: Path) -> Path:
    """all-MiniLM-L6-v2 with MRA attention, with its tokenizer."""
    from mra_export.pipeline.create_bundle import create_bundle

    with once(shared_folder / "minilm") as is_to_make:
        if is_to_make:
            checkpoint = request.getfixturevalue("minilm")
            create_bundle(checkpoint, shared_folder / "minilm", library=native_library(), check=False)
    return shared_folder / "minilm"


@pytest.fixture(params=["shared", "static"])
def any_driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Driver]:
    """The optimized shared library, and the static one under AddressSanitizer and UBSan."""
    with Driver(request.param, tmp_path) as process:
        yield process


@pytest.fixture
def shared_driver(tmp_path: Path) -> Iterator[Driver]:
    with Driver("shared", tmp_path) as process:
        yield process


@pytest.fixture
def sanitized_driver(tmp_path: Path) -> Iterator[Driver]:
    with Driver("static", tmp_path) as process:
        yield process
