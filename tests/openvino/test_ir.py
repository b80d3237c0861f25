"""OpenVINO's own files of exported models."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
from checkpoints import save_checkpoint

from mra_export.checkpoint.load import load_checkpoint
from mra_export.errors import DependencyError, InputError
from mra_export.export import onnx_model
from mra_export.export.exporter import export_onnx
from mra_export.export.onnx_model import OnnxModel, read_onnx
from mra_export.native.processor import read_processor
from mra_export.numerics import relative_error
from mra_export.openvino import core as core_module
from mra_export.openvino import ir as ir_module
from mra_export.openvino.ir import ARITHMETIC, IrModel, open_ir, read_ir, write_ir
from mra_export.outputs import file_sha256
from mra_export.runners.onnxruntime import OnnxRuntimeRunner
from mra_export.runners.openvino import IrRunner

pytestmark = pytest.mark.native
LIMITS = {"fp32": 1e-5, "bf16": 3e-2, "int8-weights": 6e-2}


@pytest.fixture(scope="module")
def model(tiny_export: Path) -> OnnxModel:
    return read_onnx(tiny_export / "onnx" / "model.onnx")


@pytest.fixture(scope="module")
def written(extension: Path, model: OnnxModel, tmp_path_factory: pytest.TempPathFactory) -> IrModel:
    return write_ir(model, tmp_path_factory.mktemp("ir") / "model.xml", library=extension)


@pytest.fixture
def copied(written: IrModel, tmp_path: Path) -> Path:
    for file in written.files:
        shutil.copy(file, tmp_path)
    return tmp_path / "model.xml"


def inputs_of(batch: int, seq_len: int) -> dict[str, np.ndarray]:
    mask = np.ones((batch, seq_len), np.int64)
    mask[-1, seq_len - seq_len // 3 :] = 0
    ids = np.random.default_rng(seq_len).integers(0, 100, (batch, seq_len))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def edit(path: Path, before: str, after: str) -> Path:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    return path


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("precision", LIMITS)
def test_it_computes_what_the_onnx_file_does(
    extension: Path, model: OnnxModel, precision: str, portable: bool, tmp_path: Path
) -> None:
    made = write_ir(model, tmp_path / "model.xml", precision=precision, portable=portable, library=extension)
    inputs = inputs_of(2, 64)  # of which every block is selected
    runner = IrRunner(made, library=extension)
    got, want = runner.run(inputs)["last_hidden_state"], OnnxRuntimeRunner(model).run(inputs)["last_hidden_state"]
    keep = inputs["attention_mask"] != 0
    error = relative_error(got[keep], want[keep])
    assert error <= LIMITS[precision]
    assert precision == "fp32" or error > 1e-4  # it was not float32
    assert ("stock" in runner.name) is portable
    assert made.files[1].stat().st_size < (1 if precision == "fp32" else 0.7) * model.path.stat().st_size
    compiled = open_ir(made, library=extension, threads=1)
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    fast = read_processor().is_bfloat16_fast
    assert hint == {"fp32": "f32", "bf16": "bf16"}[ARITHMETIC[precision] if fast else "fp32"]
    if precision == "int8-weights":
        assert int(compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) == 128


def test_it_says_what_it_is(written: IrModel, model: OnnxModel) -> None:
    assert written == read_ir(written.path)
    assert (written.precision, written.dtype, written.portable) == ("fp32", "fp32", False)
    assert written.release == core_module.release()
    assert written.onnx_sha256 == file_sha256(model.path)
    assert written.bin_sha256 == file_sha256(written.files[1])
    assert (written.inputs, written.outputs, written.task) == (model.inputs, model.outputs, model.task)
    assert written.attributes == model.attributes
    assert (written.position_limit, written.vocabulary) == (model.position_limit, model.vocabulary)
    assert written.input_axes["input_ids"] == ["?", "?"]
    assert written.options == model.options


def test_the_same_input_gives_the_same_bytes(
    extension: Path, model: OnnxModel, written: IrModel, tmp_path: Path
) -> None:
    again = write_ir(model, tmp_path / "model.xml", library=extension)
    assert [file.read_bytes() for file in again.files] == [file.read_bytes() for file in written.files]
    one, two = (
        write_ir(model, tmp_path / f"{name}.xml", precision="bf16", portable=True).path.read_bytes() for name in "ab"
    )
    assert one == two


def test_weights_in_a_file_of_their_own(
    extension: Path, model: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_model, "EXTERNAL_DATA_THRESHOLD", 1000)
    onnx_model.save_program(onnx_ir.load(model.path), tmp_path / "apart.onnx")
    apart = read_onnx(tmp_path / "apart.onnx")
    assert [file.name for file in apart.files] == ["apart.onnx", "apart.onnx_data"]
    inputs = inputs_of(2, 40)
    for portable in (False, True):
        made = write_ir(apart, tmp_path / "model.xml", portable=portable, library=extension)
        assert made.onnx_sha256 == file_sha256(*apart.files)
        got = IrRunner(made, library=extension).run(inputs)["last_hidden_state"]
        assert relative_error(got, OnnxRuntimeRunner(model).run(inputs)["last_hidden_state"]) <= 1e-5


def test_stock_openvino_runs_portable_files_only(written: IrModel, model: OnnxModel, tmp_path: Path) -> None:
    import openvino

    made = write_ir(model, tmp_path / "model.xml", portable=True)
    assert openvino.Core().compile_model(str(made.path), "CPU")(inputs_of(1, 8))
    with pytest.raises(RuntimeError, match="Mra2Attention"):
        openvino.Core().read_model(str(written.path))


def test_attention_layers_are_seen(extension: Path, written: IrModel, model: OnnxModel, tmp_path: Path) -> None:
    inputs = inputs_of(2, 75)
    got, want = IrRunner(written, library=extension).trace(inputs), OnnxRuntimeRunner(model).trace(inputs)
    assert len(got.layers) == len(want.layers) == 2
    for ours, theirs in zip(got.layers, want.layers, strict=True):
        for name in ("query", "key", "value", "context"):
            assert relative_error(getattr(ours, name), getattr(theirs, name)) <= 1e-5
    assert relative_error(got.outputs["last_hidden_state"], want.outputs["last_hidden_state"]) <= 1e-5
    portable = write_ir(model, tmp_path / "model.xml", portable=True)
    with pytest.raises(InputError, match=r"has 0 nodes of mra::Mra2Attention for 2 attention layers"):
        IrRunner(portable).trace(inputs)


def test_files_that_are_damaged_or_not_ours(copied: Path, tmp_path: Path) -> None:
    whole, weights = copied.read_text(), copied.with_suffix(".bin")

    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match):
            read_ir(copied)
        copied.write_text(whole)

    copied.write_text(whole[: len(whole) // 2])
    refused("model.xml is not a readable file of OpenVINO")
    copied.write_bytes(b"\xff\xfe\x00")
    refused("is not a readable file of OpenVINO")
    edit(copied, "mra_export>", "others>")
    refused("was not written by this tool. Write it with `mra-export openvino")
    edit(copied, '<format value="1" />', '<format value="2" />')
    refused(r'mra_export.format="2" must be one of 1\. It was written by mra-export .*: write it again')
    edit(copied, '<portable value="false" />', "")
    refused("lacks mra_export.portable")
    edit(copied, '<precision value="fp32" />', '<precision value="int4" />')
    refused('precision="int4" must be one of fp32, bf16, int8, int8-weights')
    edit(copied, '<family value="mra" />', '<family value="mamba" />')
    refused("the family 'mamba' is not known")
    edit(copied, "num_blocks", "num_rocks")
    refused("has attributes that are not the operator's")
    bytes_ = weights.read_bytes()
    weights.write_bytes(bytes_[:-1])
    refused(rf"model.bin has {len(bytes_) - 1} bytes, but model.xml was written with {len(bytes_)}. Copy it again")
    weights.unlink()
    refused("needs model.bin beside it")
    weights.write_bytes(bytes([bytes_[0] ^ 1]) + bytes_[1:])
    with pytest.raises(InputError, match=r"model\.bin was changed: its SHA-256 is not that in model\.xml"):
        read_ir(copied).check_weights()
    with pytest.raises(InputError, match=r"nothing\.xml does not exist"):
        read_ir(tmp_path / "nothing.xml")


def test_a_graph_of_a_newer_openvino_is_named_with_both_releases(extension: Path, copied: Path) -> None:
    edit(copied, 'type="MatMul" version="opset1"', 'type="MatMul" version="opset99"')
    edit(copied, f'<openvino value="{core_module.release()}" />', '<openvino value="2031.1.0" />')
    with pytest.raises(
        InputError, match=r"cannot read .*opset99.* It was written by OpenVINO 2031\.1\.0: install that"
    ):
        open_ir(read_ir(copied), library=extension)


def test_a_library_of_another_release_is_refused(
    extension: Path, written: IrModel, model: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_module, "release", lambda: "2031.1.0")
    with pytest.raises(DependencyError, match=r"was built for OpenVINO .*, and 2031\.1\.0 is installed"):
        open_ir(written, library=extension)
    open_ir(write_ir(model, tmp_path / "model.xml", portable=True))  # bound to none


def test_what_cannot_be_written(
    extension: Path, model: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "short", max_position_embeddings=32, num_hidden_layers=1))
    half = read_onnx(export_onnx(checkpoint, tmp_path / "half", dtype="fp16").model)
    with pytest.raises(InputError, match="is fp16, and a file for OpenVINO is made of fp32"):
        write_ir(half, tmp_path / "model.xml", library=extension)
    with pytest.raises(InputError, match="is fp32, and int8 is asked for"):
        write_ir(model, tmp_path / "model.xml", precision="int8", library=extension)
    monkeypatch.setitem(model.metadata, "precision", "int8")
    with pytest.raises(InputError, match="is int8, and bf16 is asked for"):
        write_ir(model, tmp_path / "model.xml", precision="bf16", library=extension)
    monkeypatch.setattr(ir_module, "operator_library", lambda path: (_ for _ in ()).throw(DependencyError("none")))
    monkeypatch.delitem(model.metadata, "precision")
    with pytest.raises(DependencyError, match="none"):
        write_ir(model, tmp_path / "model.xml")
    assert not list(tmp_path.glob("model.*"))
