"""The forms in which weights come, and what becomes of each of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from dense_support import (
    HEADS,
    as_shards,
    assert_equal,
    batch,
    edit_config,
    edit_weights,
    save,
    tiny,
)
from safetensors.torch import load_file

from mra_export.checkpoint.from_dense.convert import from_dense
from mra_export.checkpoint.from_dense.source import DENSE_FAMILIES
from mra_export.checkpoint.tasks import TASKS


@pytest.mark.parametrize("family", DENSE_FAMILIES)
@pytest.mark.parametrize(("suffix", "task", "settings"), HEADS)
def test_transformers_loads_it_without_a_missing_or_unexpected_weight(
    tmp_path: Path, family: str, suffix: str, task: str, settings: dict[str, Any]
) -> None:
    from_dense(save(tiny(family, suffix, **settings), tmp_path / "dense"), tmp_path / "mra")
    auto = getattr(transformers, TASKS[task].auto_class)
    model, info = auto.from_pretrained(tmp_path / "mra", output_loading_info=True)
    assert type(model).__name__ == f"Mra{suffix}"
    assert not any(info.values()), info
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    if settings.get("tie_word_embeddings") is False:
        decoder, words = model.cls.predictions.decoder.weight, model.get_input_embeddings().weight
        assert not torch.equal(decoder, words)


def test_weights_keep_their_names_and_values(tmp_path: Path) -> None:
    """All but the position table, of which the rows move by two."""
    dense = save(tiny("bert", "Model"), tmp_path / "dense")
    from_dense(dense, tmp_path / "mra")
    before, after = load_file(dense / "model.safetensors"), load_file(tmp_path / "mra" / "model.safetensors")
    table = "embeddings.position_embeddings.weight"
    for name, tensor in before.items():
        if name.startswith("pooler."):
            assert name not in after
        elif name == table:
            assert torch.equal(after[name][2:], tensor)
            assert not after[name][:2].any()
        else:
            assert torch.equal(after[name], tensor), name
    assert set(after) - set(before) == {"embeddings.position_ids"}


def as_bin(directory: Path) -> None:
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def as_2018(directory: Path) -> None:
    """LayerNorm's old names, the next-sentence head and an explicit decoder, as in bert-base-uncased's file."""

    def edit(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            if "LayerNorm" in name:
                new = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
                weights[new] = weights.pop(name)
        weights["cls.seq_relationship.weight"] = torch.ones(2, 64)
        weights["cls.seq_relationship.bias"] = torch.ones(2)
        weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"].clone()
        weights["bert.embeddings.position_ids"] = torch.arange(128)[None]

    edit_weights(directory, edit)


FORMS: dict[str, Callable[[Path], None]] = {
    "bin": as_bin,
    "sharded safetensors": lambda d: as_shards(d, "model.safetensors"),
    "sharded bin": lambda d: as_shards(d, "pytorch_model.bin"),
    "2018": as_2018,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_weight_file(tmp_path: Path, bert: Path, form: str) -> None:
    from_dense(bert, tmp_path / "expected")
    FORMS[form](bert)
    from_dense(bert, tmp_path / "mra")
    assert (tmp_path / "mra/model.safetensors").read_bytes() == (tmp_path / "expected/model.safetensors").read_bytes()


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    dense = tiny("bert", "Model").half()
    result = from_dense(save(dense, tmp_path / "dense"), tmp_path / "mra", block_per_row=4)
    assert any("float16 were written as float32" in note for note in result.notes)
    assert_equal(dense.float(), tmp_path / "mra", batch(dense.config, "bert", (80, 33)))


def test_only_the_layers_that_config_names(tmp_path: Path, bert: Path) -> None:
    edit_config(bert, num_hidden_layers=1)
    result = from_dense(bert, tmp_path / "mra", block_per_row=4)
    assert any("weights of 2 layers" in note and "says 1" in note for note in result.notes)
    dense = transformers.BertForMaskedLM.from_pretrained(bert).eval()
    assert_equal(dense, tmp_path / "mra", batch(dense.config, "bert", (64, 33)))
