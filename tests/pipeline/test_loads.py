"""An exported file is parsed once by whatever a command does with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from mra_export.cli import cli


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that `onnx.load` was called with."""
    names: list[str] = []
    load = onnx.load

    def counted(file: Any, *arguments: Any, **named: Any) -> Any:
        names.append(str(file))
        return load(file, *arguments, **named)

    monkeypatch.setattr(onnx, "load", counted)
    return names


def test_an_engine_of_another_type(tiny_export: Path, plugin: Path, rtx: Any, tmp_path: Path, loads: list[str]) -> None:
    """The source, the source with its weights to convert, the converted file."""
    library = ["--backend", "rtx", "--plugin-lib", str(plugin)]
    cli.main(
        ["trt", str(tiny_export), "-o", str(tmp_path / "m.engine"), "--fp16", "-q", *library], standalone_mode=False
    )
    assert 1 <= len(loads) <= 3, loads
    assert len([name for name in loads if name.startswith(str(tiny_export))]) <= 2


def test_a_bundle_of_an_exported_directory(tiny_export: Path, tmp_path: Path, loads: list[str]) -> None:
    """The source, and what was copied of it."""
    cli.main(["bundle", str(tiny_export), "-o", str(tmp_path / "b"), "-q"], standalone_mode=False)
    assert 1 <= len(loads) <= 2, loads
