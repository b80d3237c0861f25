"""What is read of an exported file."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from mra_export.errors import InputError
from mra_export.export.half import convert
from mra_export.export.onnx_model import find_onnx, read_onnx


def test_the_limit_is_read_from_the_configuration_or_from_the_file(model: Path, tmp_path: Path) -> None:
    assert read_onnx(model).position_limit == 256
    shutil.copy(model, tmp_path / "alone.onnx")
    assert read_onnx(tmp_path / "alone.onnx").position_limit == 256  # the table of positions
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 100}')
    assert read_onnx(tmp_path / "alone.onnx").position_limit == 100
    (tmp_path / "config.json").write_text("not json")
    assert read_onnx(tmp_path / "alone.onnx").position_limit == 256


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n")
    with pytest.raises(InputError, match=r"model\.onnx is a pointer of Git LFS, not the file itself"):
        read_onnx(path)


def test_a_directory_that_is_no_export_is_a_checkpoint(tiny_checkpoint: Path, tiny_export: Path) -> None:
    assert find_onnx(tiny_checkpoint) is None
    assert find_onnx(tiny_export) == tiny_export / "onnx" / "model.onnx"


@pytest.mark.parametrize("first", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_the_type_is_that_of_the_weights_and_not_of_a_constant(first: int, model: Path, tmp_path: Path) -> None:
    """A half file keeps some constants in float32; which of its tensors stands first says nothing."""
    half = convert(read_onnx(model), "fp16", tmp_path / "half.onnx").path
    for path, expected in ((half, "fp16"), (model, "fp32")):
        proto = onnx.load(path)
        proto.graph.initializer.insert(0, helper.make_tensor("constant", first, [2], [1.0, 2.0]))
        onnx.save(proto, tmp_path / "other.onnx")
        assert read_onnx(tmp_path / "other.onnx").dtype == expected
