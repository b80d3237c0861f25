"""A dense checkpoint, the MRA one made of it and the file exported of that give the same vectors where nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dense_support import write_files
from fidelity_support import LAYERS, letters, save_dense

from mra_export.checkpoint.from_dense.convert import from_dense
from mra_export.checkpoint.load import Checkpoint, load_checkpoint
from mra_export.errors import InputError
from mra_export.export.exporter import export_onnx
from mra_export.fidelity.encoders import open_encoder

TEXTS = letters([250, 30, 90, 64, 5, 33])
MODULES = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ],
    "1_Pooling/config.json": {
        "word_embedding_dimension": 64,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
    },
}


def test_without_loss_the_vectors_are_the_dense_models(full: Checkpoint, dense: Path) -> None:
    before, after = open_encoder(dense), open_encoder(full.directory)
    rows, tokens = before.encode(TEXTS)
    assert tokens.tolist() == [250, 30, 90, 64, 5, 33]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0)
    np.testing.assert_allclose(after.encode(TEXTS)[0], rows, atol=1e-5)
    assert (before.plan, len(after.plan), before.longest, after.longest) == ((), LAYERS, 256, 256)


def test_each_text_has_the_vector_that_it_has_alone(dense: Path) -> None:
    model = open_encoder(dense)
    together, _ = model.encode(TEXTS)
    for text, row in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(model.encode([text])[0][0], row, atol=1e-5)


def test_the_modules_of_sentence_transformers_count(tmp_path: Path) -> None:
    source = save_dense(tmp_path / "dense")
    mean = open_encoder(source).encode(TEXTS)[0]
    write_files(source, MODULES)
    from_dense(source, tmp_path / "mra")
    first = open_encoder(source).encode(TEXTS)[0]
    assert np.abs(first - mean).max() > 0.01
    np.testing.assert_allclose(open_encoder(tmp_path / "mra").encode(TEXTS)[0], first, atol=1e-5)


@pytest.mark.slow
def test_an_exported_file(tmp_path: Path, dense: Path) -> None:
    from_dense(dense, tmp_path / "mra", block_per_row=2)
    export_onnx(load_checkpoint(tmp_path / "mra"), tmp_path / "onnx")
    expected = open_encoder(tmp_path / "mra")
    exported = open_encoder(tmp_path / "onnx")
    np.testing.assert_allclose(exported.encode(TEXTS)[0], expected.encode(TEXTS)[0], atol=1e-5)
    assert [vars(each) for each in exported.plan] == [pytest.approx(vars(each)) for each in expected.plan]
    assert (exported.longest, exported.name) == (256, "onnx")


def test_another_of_our_families(tmp_path: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.YosoConfig(
        vocab_size=33,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    transformers.YosoModel(config).save_pretrained(tmp_path)
    write_files(tmp_path, {"vocab.txt": (save_dense(tmp_path / "d") / "vocab.txt").read_text()})
    write_files(tmp_path, {"tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}})
    model = open_encoder(tmp_path)
    assert (model.plan, model.longest) == ((), 64)
    assert model.encode(letters([20, 40]))[0].shape == (2, 32)


def test_queries_and_documents_have_their_prompts(tmp_path: Path) -> None:
    source = save_dense(tmp_path / "dense")
    prompts = {"prompts": {"query": "a ", "passage": "b c ", "other": "d d d "}, "default_prompt_name": "other"}
    write_files(source, {"config_sentence_transformers.json": prompts})
    model = open_encoder(source)
    assert model.encode(["e"], "query")[1].tolist() == [4]
    assert model.encode(["e"], "document")[1].tolist() == [5]
    write_files(source, {"config_sentence_transformers.json": {**prompts, "prompts": {"other": "d d d "}}})
    assert open_encoder(source).encode(["e"], "query")[1].tolist() == [6]


def test_no_texts_no_vectors(dense: Path) -> None:
    rows, tokens = open_encoder(dense).encode([])
    assert (len(rows), len(tokens)) == (0, 0)


def test_what_gives_no_vectors_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(InputError, match="has no tokenizer, and without one no text"):
        open_encoder(tiny_checkpoint).encode(["a"])
    adapter = save_dense(tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (adapter / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="is an adapter beside its base model"):
        open_encoder(adapter)
    broken = save_dense(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="could not be loaded"):
        open_encoder(broken)
