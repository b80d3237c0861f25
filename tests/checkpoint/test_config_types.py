"""A config.json that is not what transformers means is refused by the name of the setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bundle_support import run
from checkpoints import save_checkpoint
from dense_support import edit_config, write_files

from mra_export.checkpoint.files import locate
from mra_export.checkpoint.from_dense.convert import from_dense
from mra_export.checkpoint.load import load_checkpoint, load_config
from mra_export.errors import InputError

WRONG: list[tuple[str, Any, str]] = [
    ("max_position_embeddings", "512", 'max_position_embeddings="512" must be an integer'),
    ("max_position_embeddings", 128.0, "max_position_embeddings=128.0 must be an integer"),
    ("max_position_embeddings", None, "max_position_embeddings=null must be an integer"),
    ("max_position_embeddings", [128], r"max_position_embeddings=\[128\] must be an integer"),
    ("hidden_size", True, "hidden_size=true must be an integer"),
    ("num_attention_heads", {"a": 1}, "num_attention_heads=.* must be an integer"),
    ("vocab_size", "97", 'vocab_size="97" must be an integer'),
    ("num_hidden_layers", "2", 'num_hidden_layers="2" must be an integer'),
    ("intermediate_size", 96.5, "intermediate_size=96.5 must be an integer"),
    ("type_vocab_size", None, "type_vocab_size=null must be an integer"),
    ("layer_norm_eps", "1e-12", 'layer_norm_eps="1e-12" must be a number'),
    ("hidden_act", 5, "hidden_act=5 must be a text"),
    ("hidden_act", ["gelu"], "hidden_act=.* must be a text"),
    ("pad_token_id", "0", 'pad_token_id="0" must be an integer'),
    ("architectures", 5, "architectures=5 must be a list of classes"),
    ("architectures", [None], r"architectures=\[null\] must be a list of classes"),
    ("architectures", {"a": 1}, "architectures=.* must be a list of classes"),
    ("model_type", ["bert"], r'model_type=\["bert"\] must be a text'),
    ("model_type", 5, "model_type=5 must be a text"),
    ("model_type", None, "names no model_type"),
    ("model_type", "", "names no model_type"),
]


@pytest.mark.parametrize(("name", "value", "reason"), WRONG)
def test_a_setting_of_another_type_is_named(name: str, value: Any, reason: str, bert: Path, tmp_path: Path) -> None:
    edit_config(bert, **{name: value})
    with pytest.raises(InputError, match=reason) as caught:
        from_dense(bert, tmp_path / "mra")
    assert str(bert / "config.json") in str(caught.value)


@pytest.mark.parametrize(("name", "value", "reason"), WRONG[:2])
def test_onnx_refuses_it_too(
    name: str, value: Any, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = save_checkpoint(tmp_path / "mra", max_position_embeddings=128)
    edit_config(directory, **{name: value})
    code, result = run("onnx", directory, "-o", tmp_path / "onnx", capsys=capsys)
    assert (code, "must be an integer" in result["error"]) == (2, True)


@pytest.mark.parametrize(
    ("architectures", "model_type"),
    [
        (["BertForMaskedLM"], "bert"),
        ("BertModel", "bert"),
        (["RobertaForSequenceClassification"], "roberta"),
        (["XLMRobertaModel"], "xlm-roberta"),
        (["MraModel"], "mra"),
    ],
)
def test_the_missing_model_type_is_told_from_the_class(architectures: Any, model_type: str, bert: Path) -> None:
    edit_config(bert, architectures=architectures, model_type=...)
    with pytest.raises(InputError, match=rf'names no model_type, .* it is "model_type": "{model_type}"; add that\.'):
        load_config(bert)


@pytest.mark.parametrize("architectures", [None, [], "", ["JinaBertModel"], ["Bertram"]])
def test_nothing_is_guessed(architectures: Any, bert: Path) -> None:
    edit_config(bert, architectures=architectures, model_type=...)
    with pytest.raises(InputError, match=r'names no model_type, .* Add "model_type" there, for example "bert"'):
        load_config(bert)


@pytest.mark.parametrize(
    ("architectures", "expected", "task"),
    [
        ("BertForMaskedLM", "BertForMaskedLM", "fill-mask"),
        ("BertModel", "BertModel", "feature-extraction"),
        (["BertModel"], "BertModel", "feature-extraction"),
        (None, "BertModel", "feature-extraction"),
        ([], "BertModel", "feature-extraction"),
        ("", "BertModel", "feature-extraction"),
        (..., "BertModel", "feature-extraction"),
    ],
)
def test_the_class_of_a_dense_model(architectures: Any, expected: str, task: str, bert: Path, tmp_path: Path) -> None:
    edit_config(bert, architectures=architectures)
    result = from_dense(bert, tmp_path / "mra")
    assert (result.source_architecture, result.task) == (expected, task)


@pytest.mark.parametrize("architectures", ["MraModel", ["MraModel"], None, [], ...])
@pytest.mark.slow
def test_the_class_of_an_mra_model(architectures: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = save_checkpoint(tmp_path / "mra", max_position_embeddings=32, num_hidden_layers=1)
    edit_config(directory, architectures=architectures)
    checkpoint = load_checkpoint(directory)
    assert checkpoint.task.name == "feature-extraction"
    assert checkpoint.config.architectures in (["MraModel"], None)
    code, result = run("bundle", directory, "-o", tmp_path / "bundle", "--no-check", capsys=capsys)
    assert code == 0, result
    code, result = run("check", tmp_path / "bundle", capsys=capsys)
    assert (code, result["ok"]) == (0, True), result


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("model_max_length", "512", 'model_max_length="512" must be a number'),
        ("model_max_length", [512], r"model_max_length=\[512\] must be a number"),
        ("model_max_length", True, "model_max_length=true must be a number"),
        ("padding_side", 1, "padding_side=1 must be a text"),
        ("truncation_side", ["left"], "truncation_side=.* must be a text"),
        ("tokenizer_class", {"a": 1}, "tokenizer_class=.* must be a text"),
        ("do_lower_case", "false", 'do_lower_case="false" must be true or false'),
        ("do_lower_case", 0, "do_lower_case=0 must be true or false"),
        ("strip_accents", "no", 'strip_accents="no" must be true or false'),
    ],
)
def test_a_setting_of_the_tokenizer(name: str, value: Any, expected: str, bert: Path, tmp_path: Path) -> None:
    write_files(bert, {"tokenizer_config.json": {name: value}})
    with pytest.raises(InputError, match=expected) as caught:
        from_dense(bert, tmp_path / "mra")
    assert str(bert / "tokenizer_config.json") in str(caught.value)


@pytest.mark.parametrize("settings", [{"model_max_length": 1e30}, {"model_max_length": 512.0}, {"strip_accents": None}])
def test_what_tokenizers_have(settings: dict[str, Any], bert: Path) -> None:
    write_files(bert, {"tokenizer_config.json": settings})
    assert locate(bert) == bert


@pytest.mark.parametrize("settings", [{"pad_token_id": None}, {"eos_token_id": [1, 2]}, {"extra": "x"}])
def test_what_transformers_takes_is_taken(settings: dict[str, Any], bert: Path) -> None:
    edit_config(bert, **settings)
    config = load_config(bert)
    assert {name: getattr(config, name) for name in settings} == settings
