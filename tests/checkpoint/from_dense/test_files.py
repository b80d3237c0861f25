"""Files beside the weights: tokenizer, labels, model card, what sentence-transformers reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from dense_support import (
    VOCABULARY,
    edit_config,
    save,
    tiny,
    write_files,
)

from mra_export.checkpoint.from_dense.convert import from_dense
from mra_export.checkpoint.load import load_checkpoint


def test_tokenizer_and_sentence_transformers_files_come_along(tmp_path: Path, bert: Path) -> None:
    files = {
        "vocab.txt": VOCABULARY,
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "model_max_length": 512, "do_lower_case": True},
        "modules.json": [{"idx": 0, "path": ""}, {"idx": 1, "path": "1_Pooling"}, {"idx": 2, "path": "2_Dense"}],
        "1_Pooling/config.json": {"word_embedding_dimension": 64},
        "2_Dense/config.json": {"in_features": 64},
        "2_Dense/model.safetensors": "weights",
        "sentence_bert_config.json": {"max_seq_length": 100, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {"query": "q: "}},
        "LICENSE": "licence",
        "training_args.json": {},
    }
    write_files(bert, files)
    result = from_dense(bert, tmp_path / "mra", task="feature-extraction")
    carried = set(files) - {"tokenizer_config.json", "training_args.json"}
    written = {"config.json", "model.safetensors", "README.md", "tokenizer_config.json", "tokenizer.json"}
    assert set(result.files) == carried | written
    for name in carried:
        assert (tmp_path / "mra" / name).read_bytes() == (bert / name).read_bytes(), name
    settings = json.loads((tmp_path / "mra" / "tokenizer_config.json").read_text())
    assert settings == {"tokenizer_class": "BertTokenizer", "model_max_length": 128, "do_lower_case": True}


@pytest.mark.parametrize(
    ("tokenizer_config", "config", "expected"),
    [
        ({}, {}, "BertTokenizer"),
        (None, {}, "BertTokenizer"),
        ({"do_lower_case": True}, {"tokenizer_class": "ElectraTokenizer"}, "ElectraTokenizer"),
        ({"tokenizer_class": "ElectraTokenizer"}, {"tokenizer_class": "BertTokenizer"}, "ElectraTokenizer"),
    ],
)
def test_tokenizer_class_is_written(
    tmp_path: Path, bert: Path, tokenizer_config: dict[str, Any] | None, config: dict[str, Any], expected: str
) -> None:
    write_files(bert, {"vocab.txt": VOCABULARY})
    if tokenizer_config is not None:
        write_files(bert, {"tokenizer_config.json": tokenizer_config})
    edit_config(bert, **config)
    from_dense(bert, tmp_path / "mra")
    settings = json.loads((tmp_path / "mra" / "tokenizer_config.json").read_text())
    assert (settings["tokenizer_class"], settings["model_max_length"]) == (expected, 128)


def test_auto_tokenizer_gives_the_same_ids_and_stops_at_the_table(tmp_path: Path, bert: Path) -> None:
    write_files(bert, {"vocab.txt": VOCABULARY})
    from_dense(bert, tmp_path / "mra", max_position=64)
    ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "mra")
    theirs = transformers.AutoTokenizer.from_pretrained(bert)
    text = ["cat dog a b", "Dog!", "cat " * 300]
    assert ours(text)["input_ids"][:2] == theirs(text)["input_ids"][:2]
    assert len(ours(text, truncation=True)["input_ids"][2]) == 64


def test_length_limits_follow_max_position(tmp_path: Path, bert: Path) -> None:
    write_files(bert, {"sentence_bert_config.json": {"max_seq_length": 100, "do_lower_case": False}})
    result = from_dense(bert, tmp_path / "mra", max_position=64)
    settings = json.loads((tmp_path / "mra" / "sentence_bert_config.json").read_text())
    assert settings == {"max_seq_length": 64, "do_lower_case": False}
    assert any("from 100 to 64" in note for note in result.notes)


def test_labels_come_along(tmp_path: Path) -> None:
    labels = {i: f"tag{i}" for i in range(12)}
    dense = tiny("roberta", "ForTokenClassification", id2label=labels, label2id={v: k for k, v in labels.items()})
    from_dense(save(dense, tmp_path / "dense"), tmp_path / "mra")
    assert load_checkpoint(tmp_path / "mra").config.id2label == labels


def test_model_card_keeps_the_licence_and_says_what_changed(tmp_path: Path, bert: Path) -> None:
    write_files(bert, {"README.md": "---\nlicense: mit\n---\n\n# The dense model\n"})
    from_dense(bert, tmp_path / "mra", block_per_row=2)
    card = (tmp_path / "mra" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n---\n")
    assert "BertForMaskedLM -> MraForMaskedLM, max_position_embeddings 128, block_per_row 2" in card
    assert card.index("Converted by") < card.index("# The dense model")
    assert str(tmp_path) not in card
