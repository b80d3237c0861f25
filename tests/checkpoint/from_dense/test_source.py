"""Dense checkpoints that cannot be converted are refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_support import (
    as_shards,
    assert_equal,
    batch,
    edit_config,
    edit_weights,
    save,
    tiny,
    write_files,
)

from mra_export.checkpoint.from_dense.convert import from_dense
from mra_export.checkpoint.from_dense.source import DENSE_FAMILIES
from mra_export.errors import InputError


def spoil(name: str, value: Any) -> Callable[[Path], None]:
    """Sets one value of a weight, or removes or replaces the weight."""

    def edit(weights: dict[str, torch.Tensor]) -> None:
        if value is None:
            del weights[name]
        elif isinstance(value, torch.Tensor):
            weights[name] = value
        else:
            weights[name].view(-1)[5] = value

    return lambda directory: edit_weights(directory, edit)


def config(**settings: Any) -> Callable[[Path], None]:
    return lambda directory: edit_config(directory, **settings)


def write(name: str, content: Any) -> Callable[[Path], None]:
    return lambda directory: write_files(directory, {name: content})


def lose_shard(directory: Path) -> None:
    as_shards(directory, "model.safetensors")
    next(directory.glob("model-00002*")).unlink()


def lose_file(index: str, content: Any) -> Callable[[Path], None]:
    """Leaves a damaged index in the place of the weights."""

    def change(directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        write_files(directory, {index: content})

    return change


def truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


WORDS = "bert.embeddings.word_embeddings.weight"


QUERY = "bert.encoder.layer.1.attention.self.query.weight"


REFUSED: dict[str, tuple[Callable[[Path], None], dict[str, Any], str]] = {
    "relative positions": (config(position_embedding_type="relative_key"), {}, "type='relative_key' cannot"),
    "alibi": (config(position_embedding_type="alibi"), {}, "position_embedding_type='alibi' cannot be converted"),
    "decoder": (config(is_decoder=True), {}, "is_decoder=true cannot be converted"),
    "cross attention": (config(add_cross_attention=True), {}, "add_cross_attention=true cannot be converted"),
    "own code": (config(auto_map={"AutoModel": "modeling.Own"}), {}, "its own model code .auto_map: AutoModel"),
    "distilbert": (config(model_type="distilbert"), {}, "model_type 'distilbert' cannot be converted: only .*bert"),
    "deberta": (config(model_type="deberta-v2"), {}, "model_type 'deberta-v2' cannot be converted"),
    "mra": (config(model_type="mra"), {}, "It already has MRA's attention"),
    "no model_type": (config(model_type=...), {}, "names no model_type"),
    "pretraining head": (config(architectures=["BertForPreTraining"]), {}, "BertForPreTraining has no .*--task"),
    "foreign class": (config(architectures=["JinaBertForMaskedLM"]), {}, "JinaBertForMaskedLM .*not transformers' own"),
    "foreign class, task": (config(architectures=["JinaBert"]), {"task": "fill-mask"}, "not transformers' own"),
    "head_dim": (config(num_attention_heads=16), {}, "head_dim=4 .*multiple of 8"),
    "heads do not divide": (config(num_attention_heads=3), {}, "hidden_size=64 .*num_attention_heads=3"),
    "activation": (config(hidden_act="gellu"), {}, "hidden_act='gellu' is unknown"),
    "short table": (config(max_position_embeddings=16), {}, "max_position=16 must be at least 32"),
    "table does not fit": (config(max_position_embeddings=256), {}, r"\(128, 64\), but config.json calls for \(256"),
    "vocabulary": (config(vocab_size=98), {}, r"word_embeddings.weight has the shape \(97, 64\)"),
    "config is no JSON": (write("config.json", "{"), {}, "config.json is not a valid configuration"),
    "NaN": (spoil(QUERY, math.nan), {}, "layer.1.attention.self.query.weight has 1 values that are NaN"),
    "infinite": (spoil("cls.predictions.bias", math.inf), {}, "cls.predictions.bias has 1 values that are NaN or inf"),
    "NaN beyond use": (spoil("bert.embeddings.position_embeddings.weight", math.nan), {"max_position": 32}, "NaN"),
    "missing weight": (spoil(QUERY, None), {}, "no weight encoder.layer.1.attention.self.query.weight"),
    "quantized": (spoil(QUERY, torch.zeros(64, 64, dtype=torch.int8)), {}, "is torch.int8: a quantized checkpoint"),
    "adapter": (spoil(QUERY.replace("weight", "lora_A.weight"), torch.zeros(4, 64)), {}, "query.lora_A.weight.*Merge"),
    "decoder differs": (spoil("cls.predictions.decoder.weight", torch.zeros(97, 64)), {}, "ties .* but the two differ"),
    "biases differ": (spoil("cls.predictions.decoder.bias", torch.ones(97)), {}, "are one parameter but differ"),
    "no decoder": (config(tie_word_embeddings=False), {}, "no weight cls.predictions.decoder.weight"),
    "no such head": (config(), {"task": "question-answering"}, "no weight qa_outputs.weight.*--task"),
    "unknown task": (config(), {"task": "translation"}, "task 'translation' is unknown"),
    "truncated weights": (truncate, {}, "model.safetensors cannot be read as weights"),
    "lost shard": (lose_shard, {}, "names model-00002-of-00002.safetensors, which is not in"),
    "bad index": (lose_file("model.safetensors.index.json", "[]"), {}, "not a valid index"),
    "bad shards": (lose_file("pytorch_model.bin.index.json", {"weight_map": []}), {}, "not a valid index"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), {}, "neither model.safetensors nor pytorch_model.bin"),
    "tokenizer config": (write("tokenizer_config.json", "{"), {}, "tokenizer_config.json is not valid JSON"),
    "tokenizer config list": (write("tokenizer_config.json", "[]"), {}, "must hold a JSON object"),
    "modules outside": (write("modules.json", [{"path": "../x"}]), {}, "names the folder '../x', which is outside"),
    "modules damaged": (write("modules.json", "{}{"), {}, "modules.json is not a valid list of modules"),
    "budget 0": (config(), {"block_per_row": 0}, "block_per_row=0 must be at least 1"),
    "mode": (config(), {"approx_mode": "dense"}, "approx_mode='dense' must be one of full, sparse"),
    "too short": (config(), {"max_position": 31}, "max_position=31 must be at least 32"),
    "too long": (config(), {"max_position": 129}, "max_position=129 is more than the 128 positions"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, bert: Path, case: str) -> None:
    change, arguments, message = REFUSED[case]
    change(bert)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        from_dense(bert, tmp_path / "mra", **arguments)
    assert sorted(tmp_path.iterdir()) == before, "something was left behind"


@pytest.mark.parametrize("family", DENSE_FAMILIES)
@pytest.mark.parametrize("activation", ["gelu", "relu", "tanh"])
@pytest.mark.parametrize("suffix", ["ForSequenceClassification", "ForMultipleChoice", "ForMaskedLM"])
def test_a_head_is_refused_exactly_where_its_formula_differs(
    tmp_path: Path, family: str, activation: str, suffix: str
) -> None:
    dense = tiny(family, suffix, hidden_act=activation)
    same = {
        "ForSequenceClassification": activation == "tanh",
        "ForMultipleChoice": False,
        "ForMaskedLM": family == "bert" or activation == "gelu",
    }[suffix]
    save(dense, tmp_path / "dense")
    if same:
        from_dense(tmp_path / "dense", tmp_path / "mra", block_per_row=4)
        assert_equal(dense, tmp_path / "mra", batch(dense.config, family, (70, 33)))
    else:
        with pytest.raises(InputError, match=f"{suffix} cannot be converted: its head .*--task feature-extraction"):
            from_dense(tmp_path / "dense", tmp_path / "mra")


def test_left_padding_of_roberta_is_refused(tmp_path: Path) -> None:
    dense = save(tiny("roberta", "Model"), tmp_path / "dense")
    write_files(dense, {"tokenizer_config.json": {"padding_side": "left"}})
    with pytest.raises(InputError, match='padding_side="left"'):
        from_dense(dense, tmp_path / "mra")
