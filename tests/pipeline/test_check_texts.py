"""Texts through a checkpoint's sentence-transformers files and through the exported directory: what differs is named."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sentence_support import edit_json

from mra_export.checkpoint.load import Checkpoint, load_checkpoint
from mra_export.checkpoint.module_torch import as_torch
from mra_export.checkpoint.text import read_contract
from mra_export.export.onnx_model import MODEL_FILE, read_onnx
from mra_export.parity.comparison import Comparison
from mra_export.pipeline.check import check
from mra_export.pipeline.check_texts import _sentence_transformers, check_texts
from mra_export.runners.onnxruntime import OnnxRuntimeRunner
from mra_export.runners.torch import TransformersRunner

Edit = Callable[[Path], None]


@pytest.fixture(scope="module")
def loaded(sentence_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(sentence_checkpoint)


@pytest.fixture(params=["sentence-transformers", "definition"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the reference is made by; the second as if the package were not installed."""
    if request.param == "definition":
        monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    else:
        pytest.importorskip("sentence_transformers", reason="the package sentence-transformers is not installed")
    return request.param


def compared(loaded: Checkpoint, directory: Path, runner: Any = None) -> Comparison:
    model = read_onnx(directory / MODEL_FILE)
    reference = TransformersRunner(loaded, read_contract(directory).modules)
    found = check_texts(loaded, model, reference, runner or OnnxRuntimeRunner(model))
    assert found is not None
    return found


@pytest.mark.slow
def test_the_export_does_what_the_checkpoint_says(loaded: Checkpoint, sentence_export: Path, by: str) -> None:
    found = compared(loaded, sentence_export)
    assert found.ok is True
    assert found.metrics["ids_agreement"] == 1
    assert found.metrics["relative_error"] < 1e-5
    assert found.metrics["cosine_min"] > 0.999999
    assert found.candidate == "tokenizer.json + model.onnx fp32, ONNX Runtime (function body)"
    if by == "definition":
        assert found.reference == "transformers' tokenizer and sentence-transformers' modules by their definition"
        assert [note.partition(".")[0] for note in found.notes] == ["sentence-transformers is not installed"]
    else:
        package = importlib.import_module("sentence_transformers")
        assert (found.reference, found.notes) == (f"sentence-transformers {package.__version__}", [])


def in_tokenizer(change: Callable[[dict[str, Any]], Any]) -> Edit:
    def edit(directory: Path) -> None:
        content = json.loads((directory / "tokenizer.json").read_text())
        change(content)
        (directory / "tokenizer.json").write_text(json.dumps(content))

    return edit


def in_file(name: str, **settings: Any) -> Edit:
    return lambda directory: edit_json(directory / name, **settings)


BARE = [{"Sequence": {"id": "A", "type_id": 0}}]
SENTENCE, LENGTH = "config_sentence_transformers.json", "sentence_bert_config.json"


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (in_file(LENGTH, do_lower_case=False), "do_lower_case"),
        (in_file(LENGTH, max_seq_length=20), "max_seq_length"),
        (in_file(SENTENCE, default_prompt_name=None), "default_prompt_name"),
        (in_file(SENTENCE, prompts={"query": "question: ", "passage": "Passage "}), "prompts"),
        (in_file(SENTENCE, truncate_dim=29), r"modules \(Truncate\)"),
        (in_file("1_Pooling/config.json", pooling_mode=["mean", "cls", "lasttoken"]), r"modules \(Pooling\)"),
        (in_file("3_Dense/config.json", use_residual=False), r"modules \(Dense\)"),
        (in_tokenizer(lambda content: content["truncation"].update(direction="Left")), "truncation_side"),
        (in_tokenizer(lambda content: content["normalizer"]["normalizers"].pop(0)), "do_lower_case"),
        (
            in_tokenizer(lambda content: content["normalizer"]["normalizers"][1].update(strip_accents=True)),
            "strip_accents",
        ),
        (
            in_tokenizer(lambda content: content["normalizer"]["normalizers"][1].update(handle_chinese_chars=False)),
            "tokenize_chinese_chars",
        ),
        (in_tokenizer(lambda content: content["post_processor"].update(single=BARE)), "post_processor"),
    ],
)
@pytest.mark.slow
def test_a_difference_names_the_setting(
    edit: Edit, named: str, loaded: Checkpoint, sentence_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    shutil.copytree(sentence_export, tmp_path / "x")
    edit(tmp_path / "x")
    found = compared(loaded, tmp_path / "x")
    assert found.ok is False
    assert found.notes[0].startswith("The exported directory does not do what ")
    assert found.notes[0].partition(" says by ")[2] == named.replace("\\", "") + "."


class Other:
    """The file, but for its vectors."""

    def __init__(self, directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
        self.model = read_onnx(directory / MODEL_FILE)
        self.inner, self.change, self.name = OnnxRuntimeRunner(self.model), change, "other"

    def run(self, inputs: Any) -> dict[str, Any]:
        outputs = self.inner.run(inputs)
        return {**outputs, **self.change(outputs)}


@pytest.mark.parametrize(
    ("change", "ok", "note"),
    [
        (
            lambda out: {"sentence_embedding": out["sentence_embedding"] * 1.01},
            False,
            "texts get another vector from the modules",
        ),
        (
            lambda out: {"sentence_embedding": out["sentence_embedding"] * np.nan},
            False,
            "texts get another vector from the modules",
        ),
        (
            lambda out: {"sentence_embedding": out["sentence_embedding"][:, :7]},
            False,
            "have 7 numbers, the checkpoint's 30",
        ),
        (lambda out: {"last_hidden_state": out["last_hidden_state"] + 1}, True, None),
    ],
)
@pytest.mark.slow
def test_vectors_are_compared_too(
    change: Any, ok: bool, note: str | None, loaded: Checkpoint, sentence_export: Path, by: str
) -> None:
    found = compared(loaded, sentence_export, Other(sentence_export, change))
    assert found.ok is ok
    assert (note is None) or any(note in each for each in found.notes)


def test_what_the_encoder_computes_is_for_others_to_judge(loaded: Checkpoint, sentence_export: Path, by: str) -> None:
    """Token vectors and, by the same modules, embeddings that are not the checkpoint's."""
    modules = as_torch(read_contract(sentence_export).modules, sentence_export)

    def change(outputs: dict[str, Any]) -> dict[str, Any]:
        hidden = outputs["last_hidden_state"] + np.float32(0.5) * np.sin(np.arange(64, dtype=np.float32))
        vector = modules(torch.from_numpy(hidden), torch.ones(hidden.shape[:2], dtype=torch.int64))
        return {"last_hidden_state": hidden, "sentence_embedding": vector.numpy()}

    found = compared(loaded, sentence_export, Other(sentence_export, change))
    assert found.ok is True
    assert any("differ by what the encoder computes, which the other comparisons judge" in note for note in found.notes)
    assert found.metrics["relative_error"] > 1e-3


def test_nothing_is_compared_without_the_files(tiny_checkpoint: Path, tiny_export: Path, sentence_export: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    model = read_onnx(tiny_export / MODEL_FILE)
    assert check_texts(checkpoint, model, TransformersRunner(checkpoint), OnnxRuntimeRunner(model)) is None


@pytest.mark.slow
def test_check_has_the_comparison_as_its_last(loaded: Checkpoint, sentence_export: Path) -> None:
    found = check(loaded, [sentence_export / MODEL_FILE], max_seq_len=40)
    assert [c.ok for c in found] == [True, True, True]
    assert found[-1].candidate.startswith("tokenizer.json + model.onnx")


@pytest.mark.parametrize("installed", [True, False])
def test_what_to_do_is_said_where_it_helps(installed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise KeyError("name")

    stand_in = SimpleNamespace(SentenceTransformer=load, __version__="6.2.0")
    monkeypatch.setitem(sys.modules, "sentence_transformers", stand_in if installed else None)
    model, why = _sentence_transformers(tmp_path)
    assert model is None
    assert why.startswith("sentence-transformers does not load " if installed else "sentence-transformers is not ")
    assert ("pip install 'mra-export[check]'" in why) is not installed
