"""Files in int8, from the calibration to the proof: what is chosen, what is noted, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import run
from onnx import numpy_helper

from mra_export.checkpoint.load import load_checkpoint
from mra_export.errors import InputError, ParityError
from mra_export.export.int8 import Int8Request, is_int8
from mra_export.export.onnx_model import MODEL_FILE, OnnxModel, read_onnx
from mra_export.parity import fidelity
from mra_export.parity.fidelity import Limits
from mra_export.pipeline import quantize
from mra_export.pipeline.check import check
from mra_export.pipeline.check_int8 import Int8Check
from mra_export.pipeline.quantize import MOST_TEXTS, check_request, to_int8
from mra_export.pipeline.source import Proof
from mra_export.runners.onnxruntime import OnnxRuntimeRunner

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def few_strengths() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "STRENGTHS", (None, 0.8))
        yield


@pytest.fixture(scope="module")
def source(sentence_export: Path) -> OnnxModel:
    return read_onnx(sentence_export / MODEL_FILE)


@pytest.fixture(scope="module")
def made(source: OnnxModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[OnnxModel, Proof, list[str]]:
    proof, notes = Proof(), list[str]()
    target = tmp_path_factory.mktemp("int8") / "model.onnx"
    return to_int8(source, target, Int8Request(), judge=proof.judge, notes=notes), proof, notes


def test_the_default_is_within_its_limits_and_says_how_it_was_made(made: tuple[OnnxModel, Proof, list[str]]) -> None:
    model, proof, [note] = made
    [comparison] = proof.comparisons
    assert comparison.ok
    assert (comparison.metrics["row_error"], comparison.metrics["thread_error"]) == (0, 0)
    assert 1e-7 < 1 - (comparison.metrics["cosine_mean"] or 0) < 1e-3
    assert is_int8(model)
    assert model.metadata["int8.texts"] == "64"
    assert model.metadata["int8.limits"] == "int8"
    assert model.metadata["int8.smoothing"] in ("none", "0.8")
    assert len(model.metadata["int8.texts_sha256"]) == 64
    layers = len(model.layers)
    assert model.metadata["int8.float_layers"].split() == [f"layer.{i}.output.dense" for i in range(layers)]
    assert "in float: output.dense of layer 0 1" in note
    assert "loses most" in note


def test_the_same_input_gives_the_same_bytes(
    source: OnnxModel, made: tuple[OnnxModel, Proof, list[str]], tmp_path: Path
) -> None:
    again = to_int8(source, tmp_path / "model.onnx", Int8Request())
    assert again.path.read_bytes() == made[0].path.read_bytes()


def test_all_layers(source: OnnxModel, tmp_path: Path) -> None:
    texts = ("The quick brown fox", "Paris", " ", "jumped over the lazy dog")
    model = to_int8(source, tmp_path / "model.onnx", Int8Request(texts, every_layer=True), judge=Proof().judge)
    assert model.metadata["int8.float_layers"] == ""
    assert (model.metadata["int8.limits"], model.metadata["int8.texts"]) == ("int8-all", "3")
    count = sum(node.op_type == "QuantizeLinear" for node in model.proto.graph.node)
    assert count == 4 * len(model.layers)


def limit(monkeypatch: pytest.MonkeyPatch, **limits: Limits) -> None:
    monkeypatch.setattr(
        fidelity, "LIMITS", {**fidelity.LIMITS, **{name.replace("_", "-"): each for name, each in limits.items()}}
    )
    monkeypatch.setattr(quantize, "LIMITS", fidelity.LIMITS)


def test_layers_are_left_in_float_until_the_limits_hold(
    source: OnnxModel, made: tuple[OnnxModel, Proof, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = 1 - (made[1].comparisons[0].metrics["cosine_mean"] or 0)
    limit(monkeypatch, int8=Limits(1 - loss / 2, 0.0))
    proof, notes = Proof(), list[str]()
    model = to_int8(source, tmp_path / "model.onnx", Int8Request(), judge=proof.judge, notes=notes)
    assert proof.comparisons[0].ok
    before = set(made[0].metadata["int8.float_layers"].split())
    more = set(model.metadata["int8.float_layers"].split()) - before
    assert 0 < len(more) < 5 * len(model.layers)
    assert "beyond the limits as it was, so that these are in float too" in notes[1]
    first = made[2][0].partition("in int8 ")[2].split(" of layer ")[0]
    assert any(first.split(", ")[0] in name for name in more)


@pytest.mark.parametrize("every_layer", [True, False])
def test_beyond_the_limits(
    every_layer: bool, source: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, int8=Limits(1.0, 1.0), int8_all=Limits(1.0, 1.0))
    proof = Proof()
    with pytest.raises(ParityError, match=r"FAILED model\.onnx int8.*loses most"):
        to_int8(source, tmp_path / "model.onnx", Int8Request(every_layer=every_layer), judge=proof.judge)
    assert [each.ok for each in proof.comparisons] == [False]


@pytest.mark.parametrize(
    ("texts", "said"), [((), "The calibration has no text"), ((" ", "\t"), "has 2 texts, all of them blank")]
)
def test_no_text(texts: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_request(Int8Request(texts))


def test_of_very_many_texts_some_are_taken() -> None:
    texts = check_request(Int8Request(tuple(map(str, range(5 * MOST_TEXTS)))))
    assert texts == tuple(map(str, range(0, 5 * MOST_TEXTS, 5)))


def test_check_of_an_int8_directory(
    sentence_checkpoint: Path, sentence_export: Path, made: tuple[OnnxModel, Proof, list[str]], tmp_path: Path
) -> None:
    shutil.copytree(sentence_export, tmp_path / "onnx")
    file = tmp_path / "onnx" / MODEL_FILE
    shutil.copyfile(made[0].path, file)
    checkpoint = load_checkpoint(sentence_checkpoint)
    lost, operator, texts = check(checkpoint, [file], max_seq_len=40)
    assert lost.ok
    assert operator.ok
    assert texts.ok
    assert lost.tolerance["cosine_mean"] == 0.999
    assert lost.metrics["cosine_min"] < 0.9999999  # type: ignore[operator]
    assert set(operator.tolerance) == {"operator_error"}
    proto = onnx.load(file)
    for tensor in proto.graph.initializer:
        if tensor.name == "layer.0.attention.self.qkv.weight_int8":
            tensor.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(tensor), 1, axis=0), tensor.name))
    onnx.save(proto, file)
    damaged = read_onnx(file)
    judged = Int8Check.of(checkpoint, damaged, OnnxRuntimeRunner(read_onnx(sentence_export / MODEL_FILE)), None, print)
    assert judged.run(OnnxRuntimeRunner(damaged), "fp32", [], ())[0].ok is False


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--calibrate", "texts.txt"], "--calibrate is for --int8"),
        (["--int8", "--bf16"], "--int8 and --bf16 exclude each other"),
        (["--int8-all", "--calibrate", "blank.txt"], "has 2 texts, all of them blank"),
        (["--int8", "--calibrate", "nowhere.txt"], "nowhere.txt"),
        (["--int8"], "has no tokenizer"),
    ],
)
def test_what_the_command_refuses(
    arguments: list[str],
    said: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "texts.txt").write_text("one\n")
    assert run("onnx", tiny_checkpoint, "-o", tmp_path / "out", "--no-check", "-q", *arguments) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
