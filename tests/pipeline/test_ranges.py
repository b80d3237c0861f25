"""A float16 file whose tensors are beyond that type is refused by whatever makes or checks one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checkpoints import save_checkpoint
from command_line import run_json
from onnx import numpy_helper

from mra_export.errors import ParityError
from mra_export.export.half import convert
from mra_export.export.onnx_model import read_onnx
from mra_export.pipeline.check import check_alone
from mra_export.pipeline.ranges import file_range, fill_with_text, random_inputs
from mra_export.pipeline.source import Proof, in_dtype

BIAS = "model.encoder.layer.1.intermediate.dense.bias"
SAYS = "is beyond float16's range (ends at 65504, margin 2): layer 1, intermediate.dense: 600"
ADVICE = "float16 ends at 65504, and 32752 is allowed. Use --bf16."


@pytest.fixture(scope="module")
def loud(tiny_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported directory, float32, whose second layer reaches 60000."""
    folder = tmp_path_factory.mktemp("loud") / "onnx"
    shutil.copytree(tiny_export, folder)
    proto = onnx.load(folder / "onnx" / "model.onnx")
    (bias,) = (each for each in proto.graph.initializer if each.name == BIAS)
    bias.CopyFrom(numpy_helper.from_array(np.full(bias.dims, 60000, np.float32), BIAS))
    onnx.save(proto, folder / "onnx" / "model.onnx")
    return folder


@pytest.mark.parametrize("alone", [False, True], ids=["in its directory", "a file by itself"])
def test_a_conversion(alone: bool, loud: Path, tmp_path: Path) -> None:
    path = loud / "onnx" / "model.onnx"
    if alone:
        path = Path(shutil.copy(path, tmp_path))
    proof = Proof(otherwise="builds the engine")
    with pytest.raises(ParityError) as caught, in_dtype(read_onnx(path), "fp16", proof=proof, progress=print):
        pass
    text = str(caught.value)
    assert text.startswith(f"FAILED model.onnx fp16 {SAYS}")
    assert text.endswith(f"{ADVICE}\nNothing was written; --no-check builds the engine nevertheless.")
    assert [each.ok for each in proof.comparisons] == [False]
    with in_dtype(read_onnx(path), "bf16", proof=None, progress=print) as (model, _):
        assert model.dtype == "bf16"
    with in_dtype(read_onnx(path), "fp16", proof=None, progress=print) as (model, _):
        assert model.dtype == "fp16"


def test_a_file_that_is_float16_already(loud: Path, tmp_path: Path) -> None:
    half = convert(read_onnx(loud / "onnx" / "model.onnx"), "fp16", tmp_path / "half.onnx")
    with (
        pytest.raises(ParityError, match=r"intermediate\.dense: 600"),
        in_dtype(half, None, proof=Proof(), progress=print),
    ):
        pass
    proven = Proof(comparisons=[file_range(half)])  # as an export in the same command leaves it
    with in_dtype(half, "fp16", proof=proven, progress=print) as (model, comparison):
        assert (model, comparison) == (half, None)


def test_a_directory_without_its_checkpoint(loud: Path, tmp_path: Path) -> None:
    shutil.copytree(loud, tmp_path / "half")
    half = convert(read_onnx(loud / "onnx" / "model.onnx"), "fp16", tmp_path / "half" / "onnx" / "model.onnx")
    found = check_alone(half, max_seq_len=40)
    assert [each.ok for each in found] == [True, False]
    assert "layer 1, intermediate.dense: 600" in found[-1].notes[0]


def test_an_ordinary_file(tiny_export: Path, tmp_path: Path) -> None:
    model = read_onnx(tiny_export / "onnx" / "model.onnx")
    proof = Proof()
    with in_dtype(model, "fp16", proof=proof, progress=print) as (converted, comparison):
        assert converted.dtype == "fp16"
        assert comparison is not None
        assert comparison.ok
    assert [(each.ok, each.notes) for each in proof.comparisons] == [(True, [])]


def test_random_inputs(tiny_export: Path) -> None:
    model = read_onnx(tiny_export / "onnx" / "model.onnx")
    inputs = random_inputs(model, 5000)
    assert {name: value.shape for name, value in inputs.items()} == dict.fromkeys(model.inputs, (2, 256))
    assert inputs["input_ids"].max() < 120


@pytest.mark.slow
def test_every_command_refuses_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    import transformers

    checkpoint = save_checkpoint(tmp_path / "c", max_position_embeddings=32)
    model: Any = transformers.MraModel.from_pretrained(checkpoint)
    layer = model.encoder.layer[1]
    with torch.no_grad():
        layer.intermediate.dense.weight *= 40000
        layer.intermediate.dense.bias.fill_(60000)
        layer.output.dense.weight *= 1e-4
    model.save_pretrained(checkpoint)
    for command in ("onnx", "bundle"):
        code, result = run_json(capsys, command, checkpoint, "-o", tmp_path / "o", "--fp16")
        assert code == 3
        assert "model.onnx fp16 is beyond float16's range" in result["error"]
        assert "layer 1, intermediate.dense: " in result["error"]
        assert "Use --bf16." in result["error"]
        assert "too small for float16: encoder.layer.1.output.dense.weight" in result["error"]
        (found,) = (each for each in result["comparisons"] if "largest_value" in each["metrics"])
        assert found["ok"] is False
        assert [each["name"] for each in found["layers"]] == ["embeddings", "layer 0", "layer 1"]
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert run_json(capsys, "onnx", checkpoint, "-o", tmp_path / "o", "--fp16", "--no-check")[0] == 0
    report = tmp_path / "report.html"
    code, result = run_json(capsys, "check", checkpoint, tmp_path / "o", "--report", report)
    assert code == 3
    assert "layer 1, intermediate.dense: " in result["error"]
    page = report.read_text()
    assert "<td>layer 1</td><td>intermediate.dense</td>" in page
    code, result = run_json(capsys, "bundle", tmp_path / "o", "-o", tmp_path / "b")
    assert code == 3
    assert "layer 1, intermediate.dense: " in result["error"]


@pytest.mark.parametrize("source", ["directory", "file"])
def test_an_engine(source: str, loud: Path, plugin: Path, rtx: Any, tmp_path: Path, capsys: Any) -> None:
    model = loud if source == "directory" else Path(shutil.copy(loud / "onnx" / "model.onnx", tmp_path / "m.onnx"))
    before = sorted(tmp_path.iterdir())
    arguments = ["trt", model, "-o", tmp_path / "m.engine", "--backend", "rtx", "--plugin-lib", plugin, "--fp16"]
    code, result = run_json(capsys, *arguments)
    assert code == 3
    assert SAYS in result["error"]
    assert [each["ok"] for each in result["comparisons"]] == [False]
    assert sorted(tmp_path.iterdir()) == before


def test_the_manifest_of_an_engine(tiny_export: Path, plugin: Path, rtx: Any, tmp_path: Path, capsys: Any) -> None:
    options = ["--backend", "rtx", "--plugin-lib", plugin]
    code, _ = run_json(capsys, "trt", tiny_export, "-o", tmp_path / "m.engine", "--fp16", *options)
    assert code == 0
    found = json.loads((tmp_path / "m.engine.json").read_text())["range"]
    assert found["limit"] == 32752
    assert 0.5 < found["largest"] < 50
    assert [each["name"] for each in found["layers"]] == ["embeddings", "layer 0", "layer 1"]
    assert found["tensor"] in [f"{each['name']}, {each['tensor']}" for each in found["layers"]]


def test_the_text_of_a_directory(tiny_export: Path, tmp_path: Path) -> None:
    from embed_support import save_tokenizer

    folder = tmp_path / "export"
    shutil.copytree(tiny_export, folder)
    model = read_onnx(folder / "onnx" / "model.onnx")
    inputs = [random_inputs(model, 40, 3)]
    assert not fill_with_text(inputs, folder / "tokenizer.json", model.vocabulary)
    save_tokenizer(folder / "tokenizer.json")
    assert not fill_with_text(inputs, folder / "tokenizer.json", 20)  # of another model
    assert fill_with_text(inputs, folder / "tokenizer.json", model.vocabulary)
    assert inputs[0]["input_ids"][:, 0].tolist() == [0, 0, 0]  # <s>
    assert inputs[0]["input_ids"][:, -1].tolist() == [2, 2, 2]  # </s>


def test_weights_beside_the_file(tiny_export: Path, tmp_path: Path) -> None:
    half = convert(read_onnx(tiny_export / "onnx" / "model.onnx"), "fp16", tmp_path / "half.onnx")
    onnx.save(onnx.load(half.path), tmp_path / "m.onnx", save_as_external_data=True, location="data", size_threshold=0)
    assert file_range(read_onnx(tmp_path / "m.onnx")).ranges == file_range(half).ranges
