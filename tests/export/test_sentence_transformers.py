"""A sentence-transformers directory with every setting, converted and exported: the same text gets the same vector."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_support import by_definition, edit_json
from tokenizers import Tokenizer

from mra_export.checkpoint.from_dense.convert import from_dense
from mra_export.checkpoint.load import load_checkpoint
from mra_export.checkpoint.modules import Dense, LayerNorm, Normalize, Pooling, Truncate
from mra_export.checkpoint.text import read_contract
from mra_export.errors import InputError
from mra_export.export.exporter import export_onnx
from mra_export.export.half import convert
from mra_export.export.onnx_model import MODEL_FILE, read_onnx
from mra_export.runners.onnx_reference import OnnxReferenceRunner
from mra_export.runners.onnxruntime import OnnxRuntimeRunner
from mra_export.runners.torch import TransformersRunner

TEXTS = ["Paris", "The QUICK brown Fox", "", "café CAFÉ 我们 \U0001f600", "first " * 20 + "Omega", "query: word [SEP]"]


@pytest.fixture
def source(sentence_source: Path) -> Path:
    return sentence_source


@pytest.fixture
def checkpoint(sentence_checkpoint: Path) -> Path:
    return sentence_checkpoint


@pytest.fixture
def exported(sentence_export: Path) -> Path:
    return sentence_export


def encode(directory: Path, texts: list[str], file: Path = MODEL_FILE) -> np.ndarray[Any, Any]:
    """What a server does that reads tokenizer.json and the prompt."""
    made = Tokenizer.from_file(str(directory / "tokenizer.json"))
    session = onnxruntime.InferenceSession(str(directory / file))
    rows = []
    for text in texts:
        encoded = made.encode("query: " + text)
        values = {
            "input_ids": encoded.ids,
            "attention_mask": encoded.attention_mask,
            "token_type_ids": encoded.type_ids,
        }
        rows.append(
            session.run(["sentence_embedding"], {name: np.array([value]) for name, value in values.items()})[0][0]
        )
    return np.array(rows)


@pytest.mark.slow
def test_the_vectors_are_those_of_the_definition(source: Path, exported: Path) -> None:
    texts = TEXTS[:-1]  # a special token would have to keep its capitals
    expected = np.array([by_definition(source, "query: " + text) for text in texts])
    np.testing.assert_allclose(encode(exported, texts), expected, rtol=0, atol=2e-6)
    assert np.abs(expected[0] - expected[1]).max() > 0.01


def test_the_vectors_are_those_of_sentence_transformers(source: Path, exported: Path) -> None:
    package = pytest.importorskip("sentence_transformers", reason="the package sentence-transformers is not installed")
    expected = package.SentenceTransformer(str(source), device="cpu").encode(TEXTS, batch_size=1)
    np.testing.assert_allclose(encode(exported, TEXTS), expected, rtol=0, atol=2e-6)


def test_the_directories_say_what_the_source_says(source: Path, checkpoint: Path, exported: Path) -> None:
    expected = read_contract(source)
    assert expected.modules == (
        Pooling(("weightedmean", "cls", "lasttoken")),
        Dense("3_Dense", 192, 40, residual=True),
        LayerNorm("4_LayerNorm", 40),
        Normalize(),
        Truncate(30),
    )
    for directory in (checkpoint, exported):
        assert read_contract(directory) == expected
        assert [path.name for path in directory.glob("sentence_*_config.json")] == ["sentence_bert_config.json"]
    folders = [entry["path"] for entry in json.loads((exported / "modules.json").read_text())]
    assert folders == ["", "1_Pooling", "3_Dense", "4_LayerNorm", "4_Normalize"]
    assert (exported / "3_Dense" / "model.safetensors").is_file()
    settings = json.loads((exported / "tokenizer.json").read_text())
    assert settings["truncation"] == {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
    assert settings["padding"] is None


def test_a_half_export_computes_the_modules_in_float32(checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    model = convert(read_onnx(exported / MODEL_FILE), "fp16", tmp_path / "model.onnx")
    kinds = [i.data_type for i in onnx.load(str(model.path)).graph.initializer if set(i.dims) == {40, 192}]
    assert kinds == [onnx.TensorProto.FLOAT] * 2
    shutil.copy(exported / "tokenizer.json", tmp_path)
    want, got = encode(exported, TEXTS), encode(tmp_path, TEXTS, Path("model.onnx"))
    assert (np.sum(want * got, axis=1) / np.linalg.norm(want, axis=1) / np.linalg.norm(got, axis=1)).min() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_an_export_in_a_half_type_keeps_the_modules_float32(dtype: str, checkpoint: Path, tmp_path: Path) -> None:
    result = export_onnx(load_checkpoint(checkpoint), tmp_path / "o", dtype=dtype)
    kinds = {i.name: i.data_type for i in onnx.load(str(result.model)).graph.initializer if 40 in i.dims}
    assert kinds
    assert set(kinds.values()) == {onnx.TensorProto.FLOAT}
    ids = np.arange(64)[None] + 5  # onnx's evaluator gathers among fewer than 64 tokens only
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    runner = OnnxReferenceRunner if dtype == "bf16" else OnnxRuntimeRunner
    vector = runner(read_onnx(result.model)).run(inputs)["sentence_embedding"]
    expected = TransformersRunner(load_checkpoint(checkpoint), read_contract(checkpoint).modules).run(inputs)
    np.testing.assert_allclose(vector, expected["sentence_embedding"], rtol=0, atol=0.05)


@pytest.mark.slow
def test_another_pooling_keeps_what_follows_where_it_fits(checkpoint: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    with pytest.raises(InputError, match=r"3_Dense/config.json takes vectors of 192 numbers, but 64 come in"):
        export_onnx(loaded, tmp_path / "o", pooling="max")
    shutil.copytree(checkpoint, tmp_path / "c")
    entries = json.loads((checkpoint / "modules.json").read_text())
    (tmp_path / "c" / "modules.json").write_text(
        json.dumps([e for e in entries if e["path"] not in ("3_Dense", "4_LayerNorm")])
    )
    result = export_onnx(load_checkpoint(tmp_path / "c"), tmp_path / "o", pooling="max")
    assert read_contract(result.directory).modules == (Pooling(("max",)), Normalize(), Truncate(30))
    assert read_onnx(result.model).metadata["pooling"] == "max"
    bare = export_onnx(load_checkpoint(tmp_path / "c"), tmp_path / "bare", pooling="none")
    assert bare.outputs == ("last_hidden_state",)
    assert not list(bare.directory.glob("*_*/"))


def test_settings_that_cannot_be_honoured_end_the_export(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "c")
    edit_json(tmp_path / "c" / "sentence_bert_config.json", query_expansion={"length": 8})
    loaded = load_checkpoint(tmp_path / "c")
    with pytest.raises(InputError, match=r"query_expansion=.* changes vectors and is not offered"):
        export_onnx(loaded, tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_what_cannot_be_exported_is_said_when_it_is_converted(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "s")
    edit_json(tmp_path / "s" / "config_sentence_transformers.json", model_type="SparseEncoder", temperature=1)
    result = from_dense(tmp_path / "s", tmp_path / "m", block_per_row=2, max_position=32)
    assert any(
        "No embeddings can be exported of this" in note and "model_type='SparseEncoder'" in note
        for note in result.notes
    )
    edit_json(tmp_path / "s" / "config_sentence_transformers.json", model_type=...)
    result = from_dense(tmp_path / "s", tmp_path / "m", block_per_row=2, force=True)
    assert any("has temperature, which is not known here" in note for note in result.notes)


def test_a_head_that_gives_no_embeddings_is_said(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "s")
    edit_json(tmp_path / "s" / "config.json", architectures=["BertForMaskedLM"])
    weights = load_file(tmp_path / "s" / "model.safetensors")
    hidden, words = 64, weights["embeddings.word_embeddings.weight"]
    head = {"dense.weight": torch.eye(hidden), "dense.bias": torch.zeros(hidden)}
    head |= {"LayerNorm.weight": torch.ones(hidden), "LayerNorm.bias": torch.zeros(hidden)}
    made = {f"bert.{name}": value for name, value in weights.items()}
    made |= {f"cls.predictions.transform.{name}": value for name, value in head.items()}
    save_file({**made, "cls.predictions.bias": torch.zeros(len(words))}, tmp_path / "s" / "model.safetensors")
    result = from_dense(tmp_path / "s", tmp_path / "m", block_per_row=2)
    assert result.task == "fill-mask"
    assert "modules.json is for embeddings, and fill-mask gives none: --task feature-extraction does." in result.notes
