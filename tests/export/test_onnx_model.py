"""What is read of an exported file."""

from __future__ import annotations

import shutil
from pathlib import Path

from mra_export.export.onnx_model import find_onnx, read_onnx


def test_the_limit_is_read_from_the_configuration_or_from_the_file(model: Path, tmp_path: Path) -> None:
    assert read_onnx(model).position_limit == 256
    shutil.copy(model, tmp_path / "alone.onnx")
    assert read_onnx(tmp_path / "alone.onnx").position_limit == 256  # the table of positions
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 100}')
    assert read_onnx(tmp_path / "alone.onnx").position_limit == 100
    (tmp_path / "config.json").write_text("not json")
    assert read_onnx(tmp_path / "alone.onnx").position_limit == 256


def test_a_directory_that_is_no_export_is_a_checkpoint(tiny_checkpoint: Path, tiny_export: Path) -> None:
    assert find_onnx(tiny_checkpoint) is None
    assert find_onnx(tiny_export) == tiny_export / "onnx" / "model.onnx"
