"""`mra-export openvino`: a directory that stock clients load, compared before it gets its name; and `check` of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoints import save_checkpoint
from command_line import run, run_json

from mra_export.checkpoint.load import load_checkpoint
from mra_export.errors import InputError, ParityError
from mra_export.export.int8 import linears_of, quantize
from mra_export.export.onnx_model import read_onnx
from mra_export.openvino.ir import IR_FILE, read_ir, write_ir
from mra_export.parity import fidelity
from mra_export.pipeline.check import check, find_artifacts
from mra_export.pipeline.export_openvino import export_openvino

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("extension")]


@pytest.fixture(scope="module")
def written(extension: Path, sentence_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("openvino") / "written"
    export_openvino(sentence_export, output, precision="bf16", prove=False)
    return output


def test_the_directory_is_that_of_the_onnx_file(sentence_export: Path, written: Path) -> None:
    def files(root: Path) -> dict[str, bytes]:
        found = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
        return {name: path.read_bytes() for name, path in found.items() if not name.startswith(("onnx/", "openvino/"))}

    assert files(written) == files(sentence_export)
    assert {"config.json", "modules.json", "1_Pooling/config.json", "tokenizer.json"} <= set(files(written))
    assert sorted(path.name for path in (written / "openvino").iterdir()) == [
        "openvino_model.bin",
        "openvino_model.xml",
    ]
    assert find_artifacts([written]) == [written / IR_FILE]


def test_it_says_what_it_wrote(sentence_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "written"
    code, result = run_json(capsys, "openvino", sentence_export, "-o", output, "--int8-weights", "--portable")
    assert code == 0, result
    assert set(result) == {
        "ok", "command", "outputs", "model", "task", "precision", "portable", "openvino", "attention_nodes", "size_bytes", "notes",
        "comparisons",
    }  # fmt: skip
    ir = read_ir(output / IR_FILE)
    assert result["outputs"] == [str(output)]
    assert result["model"] == str(ir.path)
    assert (result["precision"], result["portable"], result["openvino"]) == ("int8-weights", True, ir.release)
    assert result["size_bytes"] == sum(file.stat().st_size for file in ir.files)
    assert result["attention_nodes"] == len(ir.attributes)
    lost = result["comparisons"][0]
    assert lost["ok"]
    assert lost["tolerance"]["cosine_mean"] == 0.998
    assert 0.998 <= lost["metrics"]["cosine_mean"] < 0.999999
    assert any('"INFERENCE_PRECISION_HINT": "f32"' in note for note in result["notes"])

    before = ir.path.read_bytes()
    assert run("openvino", sentence_export, "-o", output, "--bf16", "-q") == 2
    assert "already exists" in capsys.readouterr().err
    assert ir.path.read_bytes() == before
    assert run("openvino", sentence_export, "-o", output, "--no-check", "--force", "-q") == 0
    assert read_ir(output / IR_FILE).precision == "fp32"


@pytest.mark.slow
def test_a_checkpoint_is_compared_with_what_was_written(short_checkpoint: Path, tmp_path: Path) -> None:
    found: list = []
    export_openvino(short_checkpoint, tmp_path / "written", comparisons=found)
    assert all(comparison.ok for comparison in found)
    ours = [c for c in found if c.candidate.startswith("openvino_model.xml fp32, OpenVINO (native operator)")]
    assert [c.reference.split(",")[0] for c in ours] == ["PyTorch", "specification", "model.onnx fp32"]


def test_what_loses_too_much_is_not_written(
    sentence_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fidelity.LIMITS, "int8-weights", fidelity.Limits(0.9999999, 0.9999999))
    with pytest.raises(ParityError, match=r"(?s)openvino_model\.xml int8-weights, OpenVINO .*Nothing was written"):
        export_openvino(sentence_export, tmp_path / "written", precision="int8-weights")
    assert not list(tmp_path.iterdir())


def test_a_file_without_its_directory(tiny_export: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone" / "model.onnx"
    alone.parent.mkdir()
    shutil.copy(tiny_export / "onnx" / "model.onnx", alone)
    found: list = []
    result = export_openvino(alone, tmp_path / "written", comparisons=found)
    assert "has no config.json" in result.notes[0]
    assert [comparison.ok for comparison in found] == [True]
    assert [path.name for path in (tmp_path / "written").iterdir()] == ["openvino"]


def test_a_file_of_int8_stays_int8(sentence_export: Path, tmp_path: Path) -> None:
    model = read_onnx(sentence_export / "onnx" / "model.onnx")
    ranges = {linear.source: np.full(linear.in_features, 8, np.float32) for linear in linears_of(model)}
    shutil.copytree(sentence_export, tmp_path / "int8")
    quantize(model, ranges, tmp_path / "int8" / "onnx" / "model.onnx")
    result = export_openvino(tmp_path / "int8", tmp_path / "written", prove=False)
    assert (result.precision, read_ir(result.model).precision) == ("int8", "int8")
    with pytest.raises(InputError, match="is int8, and bf16 is asked for"):
        export_openvino(tmp_path / "int8", tmp_path / "other", precision="bf16")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "int8-weights"])
def test_check_judges_what_was_written(
    precision: str, sentence_checkpoint: Path, sentence_export: Path, written: Path, tmp_path: Path
) -> None:
    folder = written
    if precision != "bf16":
        folder = tmp_path / "written"
        export_openvino(sentence_export, folder, precision=precision, prove=False)
    found = check(load_checkpoint(sentence_checkpoint), find_artifacts([folder]), max_seq_len=64)
    assert [comparison.ok for comparison in found] == [True] * 3
    assert all(f"openvino_model.xml {precision}, OpenVINO (native operator)" in c.candidate for c in found)
    assert found[-1].candidate.startswith("tokenizer.json + ")
    assert (found[0].tolerance == {"relative_error": 8e-2}) is (precision == "bf16")


def test_check_names_what_is_another_model(
    tiny_checkpoint: Path, tiny_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of another configuration, changed, and with the weights of another model: this is told by the comparison alone."""
    output = tmp_path / "model.xml"
    write_ir(read_onnx(tiny_export / "onnx" / "model.onnx"), output)
    other = save_checkpoint(tmp_path / "other", num_hidden_layers=1)
    assert run("check", other, output, "-q") == 2
    assert "model.xml has 2 attention nodes, the checkpoint 1 layers" in capsys.readouterr().err
    seed = save_checkpoint(tmp_path / "seed", seed=1)
    code, result = run_json(capsys, "check", seed, output, "--max-seq-len", 32)
    assert code == 3
    assert "the difference starts in" in json.dumps(result["comparisons"])
    weights = output.with_suffix(".bin")
    weights.write_bytes(bytes([weights.read_bytes()[0] ^ 1]) + weights.read_bytes()[1:])
    assert run("check", tiny_checkpoint, output, "-q") == 2
    assert "model.bin was changed" in capsys.readouterr().err


def test_bad_usage(tiny_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "written"
    for arguments, message in (
        (["--bf16", "--int8-weights"], "--bf16 and --int8-weights exclude each other"),
        (["--int8", "--bf16"], "--int8 and --bf16 exclude each other"),
        (["--opset", "20"], "--opset is for a checkpoint"),
        (["--plugin-lib", tmp_path / "nothing.so"], "nothing.so does not exist"),
    ):
        assert run("openvino", tiny_export, "-o", target, "-q", *arguments) == 2
        assert message in capsys.readouterr().err
    assert run("openvino", tiny_export, "-o", tiny_export, "--force", "-q") == 2
    assert "is, holds or belongs to the input" in capsys.readouterr().err
    assert not target.exists()
