"""Dense checkpoints become MRA checkpoints that compute the same."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from dense_support import (
    COSINE,
    HEADS,
    assert_equal,
    batch,
    compare,
    cosines,
    run_mra,
    save,
    tiny,
    write_files,
)
from paths import REPO
from safetensors.torch import load_file

from mra_export.checkpoint.from_dense import convert as module
from mra_export.checkpoint.from_dense.convert import from_dense
from mra_export.checkpoint.from_dense.source import DENSE_FAMILIES
from mra_export.checkpoint.load import load_checkpoint
from mra_export.errors import InputError


@pytest.mark.parametrize("family", DENSE_FAMILIES)
@pytest.mark.parametrize(("suffix", "task", "settings"), HEADS)
def test_full_budget_equals_dense(
    tmp_path: Path, family: str, suffix: str, task: str, settings: dict[str, Any]
) -> None:
    dense = tiny(family, suffix, **settings)
    result = from_dense(save(dense, tmp_path / "dense"), tmp_path / "mra", block_per_row=4)
    assert (result.architecture, result.task) == (f"Mra{suffix}", task)
    assert (result.num_layers, result.max_position_embeddings, result.num_blocks) == (2, 128, 16)
    assert result.exact_up_to == 128
    assert_equal(dense, tmp_path / "mra", batch(dense.config, family, (128, 71, 32, 1)))


@pytest.mark.parametrize("family", DENSE_FAMILIES)
@pytest.mark.parametrize("head_dim", [8, 24, 32, 40])
def test_any_head_dim(tmp_path: Path, family: str, head_dim: int) -> None:
    """Below 32 transformers' MRA scales by 1 / sqrt(32): the conversion undoes it."""
    dense = tiny(family, "Model", head_dim=head_dim)
    from_dense(save(dense, tmp_path / "dense"), tmp_path / "mra", block_per_row=4)
    assert_equal(dense, tmp_path / "mra", batch(dense.config, family, (97, 40)))


@pytest.mark.parametrize("side", ["left", "holes"])
def test_bert_with_padding_anywhere(tmp_path: Path, side: str) -> None:
    dense = tiny("bert", "Model")
    from_dense(save(dense, tmp_path / "dense"), tmp_path / "mra", block_per_row=4)
    assert_equal(dense, tmp_path / "mra", batch(dense.config, "bert", (128, 50, 3), side=side))


@pytest.mark.parametrize("pad_token_id", [0, 3])
def test_roberta_positions_start_after_the_padding_id(tmp_path: Path, pad_token_id: int) -> None:
    dense = tiny("roberta", "Model", pad_token_id=pad_token_id, bos_token_id=4, eos_token_id=2)
    result = from_dense(save(dense, tmp_path / "dense"), tmp_path / "mra", block_per_row=4)
    assert result.max_position_embeddings == 128
    config = json.loads((tmp_path / "mra" / "config.json").read_text())
    assert (config["pad_token_id"], config["bos_token_id"], config["eos_token_id"]) == (pad_token_id, 4, 2)
    assert_equal(dense, tmp_path / "mra", batch(dense.config, "roberta", (128, 60)))


def test_a_small_budget_differs(tmp_path: Path) -> None:
    """So the tests above would notice if attention were wrong; up to `exact_up_to` it is exact all the same."""
    dense = tiny("bert", "Model")
    result = from_dense(save(dense, tmp_path / "dense"), tmp_path / "mra", block_per_row=1)
    assert (result.num_blocks, result.exact_up_to) == (4, 64)
    assert compare(dense, tmp_path / "mra", batch(dense.config, "bert", (128, 100)))[0] < 0.99
    assert_equal(dense, tmp_path / "mra", batch(dense.config, "bert", (64, 20)))


@pytest.mark.parametrize(("max_position", "exact"), [(32, 32), (96, 96), (100, 96), (128, 128)])
def test_max_position_shortens_the_table(tmp_path: Path, max_position: int, exact: int) -> None:
    dense = tiny("xlm-roberta", "Model")
    result = from_dense(save(dense, tmp_path / "dense"), tmp_path / "mra", block_per_row=99, max_position=max_position)
    assert (result.max_position_embeddings, result.exact_up_to) == (max_position, exact)
    assert any("not a multiple of 32" in note for note in result.notes) == bool(max_position % 32)
    weights = load_file(tmp_path / "mra" / "model.safetensors")
    assert weights["embeddings.position_embeddings.weight"].shape == (max_position + 2, 64)
    assert_equal(dense, tmp_path / "mra", batch(dense.config, "xlm-roberta", (exact, 17)))


def test_sparse_mode_with_the_full_budget_is_dense_too(tmp_path: Path) -> None:
    dense = tiny("bert", "Model")
    from_dense(save(dense, tmp_path / "dense"), tmp_path / "mra", block_per_row=4, approx_mode="sparse")
    assert json.loads((tmp_path / "mra" / "config.json").read_text())["approx_mode"] == "sparse"
    assert_equal(dense, tmp_path / "mra", batch(dense.config, "bert", (128, 9)))


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, bert: Path) -> None:
    first, second = (from_dense(bert, tmp_path / name) for name in ("a", "b"))
    assert first.files == second.files
    assert "model.safetensors" in first.files
    for name in first.files:
        assert (first.output / name).read_bytes() == (second.output / name).read_bytes(), name


@pytest.mark.parametrize("family", DENSE_FAMILIES)
@pytest.mark.parametrize("suffix", ["ForSequenceClassification", "ForMultipleChoice", "ForMaskedLM"])
def test_task_feature_extraction_drops_any_head(tmp_path: Path, family: str, suffix: str) -> None:
    dense = tiny(family, suffix)
    result = from_dense(save(dense, tmp_path / "dense"), tmp_path / "mra", task="feature-extraction", block_per_row=4)
    assert (result.architecture, result.source_architecture) == (
        "MraModel",
        f"{DENSE_FAMILIES[family].class_prefix}Model",
    )
    assert any("does not use were left out" in note for note in result.notes)
    assert_equal(dense.base_model, tmp_path / "mra", batch(dense.config, family, (128, 33)))


def test_notes_name_what_was_left_out(tmp_path: Path) -> None:
    result = from_dense(save(tiny("bert", "Model"), tmp_path / "dense"), tmp_path / "mra")
    assert [note for note in result.notes if "pooler" in note]


def test_output_is_not_replaced_without_force(tmp_path: Path, bert: Path) -> None:
    write_files(tmp_path / "mra", {"precious": "data"})
    with pytest.raises(InputError, match=r"already exists.*--force"):
        from_dense(bert, tmp_path / "mra")
    assert (tmp_path / "mra" / "precious").is_file()
    from_dense(bert, tmp_path / "mra", force=True)
    assert not (tmp_path / "mra" / "precious").exists()


@pytest.mark.parametrize("where", [".", ".."])
def test_output_never_replaces_its_source(bert: Path, where: str) -> None:
    with pytest.raises(InputError, match="would replace the source"):
        from_dense(bert, bert / where, force=True)
    assert (bert / "model.safetensors").is_file()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_conversion_leaves_the_old_output(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    write_files(tmp_path / "mra", {"old": "data"})

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(module, "save_weights", fail)
    with pytest.raises((InputError, KeyboardInterrupt)):
        from_dense(bert, tmp_path / "mra", force=True)
    assert [path.name for path in tmp_path.rglob("*") if path.parent != bert] == ["dense", "mra", "old"]


# A model with trained weights.


SENTENCES = [
    "Cats.",
    "The harbour was quiet before dawn, and the first boats had already left.",
    "How do I reset a forgotten password?",
    "Add the flour slowly, stirring all the time, until the sauce thickens; then take it off the heat and let it rest.",
    "The committee postponed its decision until the auditors had examined the accounts of all three subsidiaries, "
    "because two of the figures that were presented in spring could not be reconciled with the bank statements.",
    "Ein Satz auf Deutsch.",
]


def embed(hidden: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """all-MiniLM's pooling: mean over tokens, length 1."""
    weight = mask[:, :, None].to(hidden.dtype)
    return torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=1).numpy()


def test_minilm_with_the_full_budget_is_minilm(tmp_path: Path, minilm_dense: Path) -> None:
    result = from_dense(minilm_dense, tmp_path / "mra", block_per_row=16)
    assert (result.architecture, result.num_layers, result.num_blocks) == ("MraModel", 6, 256)
    assert result.exact_up_to == result.max_position_embeddings == 512
    dense = transformers.AutoModel.from_pretrained(minilm_dense, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "mra")
    original = transformers.AutoTokenizer.from_pretrained(minilm_dense)
    assert tokenizer(SENTENCES)["input_ids"] == original(SENTENCES)["input_ids"]
    inputs = dict(tokenizer([*SENTENCES, " ".join(SENTENCES)], padding=True, return_tensors="pt"))
    mask = inputs["attention_mask"]
    assert mask.sum(1).min() < 8 < 96 < mask.sum(1).max(), "lengths are not mixed"
    assert_equal(dense, tmp_path / "mra", inputs)
    with torch.no_grad():
        expected = embed(dense(**inputs).last_hidden_state, mask)
    actual = embed(run_mra(load_checkpoint(tmp_path / "mra"), inputs).last_hidden_state, mask)
    assert cosines(actual, expected).min() >= COSINE
    # Embeddings of different sentences are far apart, so the line above says something.
    assert max(cosines(expected[i], expected[j]) for i, j in itertools.combinations(range(len(SENTENCES)), 2)) < 0.5


def test_minilm_loses_little_at_512_tokens(tmp_path: Path, minilm_dense: Path) -> None:
    """Pooled cosine to the dense model on real text, measured: 0.980 with 8 blocks per row, 0.950 with 4."""
    text = (REPO / "LICENSE").read_text()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_dense)
    ids = tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]
    chunks = [ids[start : start + 510] for start in (0, 510)]
    ends = (tokenizer.cls_token_id, tokenizer.sep_token_id)
    input_ids = torch.tensor([[ends[0], *chunk, ends[1]] for chunk in chunks])
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    dense = transformers.AutoModel.from_pretrained(minilm_dense, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = embed(dense(**inputs).last_hidden_state, inputs["attention_mask"])
    quality = {}
    for blocks in (8, 4):
        shutil.rmtree(tmp_path / "mra", ignore_errors=True)
        from_dense(minilm_dense, tmp_path / "mra", block_per_row=blocks)
        hidden = run_mra(load_checkpoint(tmp_path / "mra"), inputs).last_hidden_state
        quality[blocks] = cosines(embed(hidden, inputs["attention_mask"]), expected)
    assert quality[8].min() > 0.96
    assert quality[4].min() > 0.92
    assert quality[4].mean() < quality[8].mean() < 0.999
