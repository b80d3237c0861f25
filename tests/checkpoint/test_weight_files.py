"""Which files the weights are in, and what is said of one that is missing, cut off or was never fetched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_support import as_hub_cache
from checkpoints import save_checkpoint
from dense_support import as_shards, write_files
from safetensors.torch import load_file

from mra_export.checkpoint.from_dense.convert import from_dense
from mra_export.checkpoint.load import load_checkpoint
from mra_export.checkpoint.module_torch import load_weights
from mra_export.checkpoint.weight_files import read_weights, weight_files
from mra_export.errors import InputError

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"


@pytest.fixture
def mra(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "mra", max_position_embeddings=32, num_hidden_layers=1)


def also_as_bin(directory: Path, **change: float) -> None:
    weights = {
        name: tensor + change.get("shift", 0) for name, tensor in load_file(directory / "model.safetensors").items()
    }
    torch.save(weights, directory / "pytorch_model.bin")


def test_one_format_is_taken_as_transformers_takes_it(mra: Path) -> None:
    expected = load_checkpoint(mra).model.state_dict()
    also_as_bin(mra, shift=1.0)
    write_files(mra, {"model.fp16.safetensors": "x", "adapter_model.safetensors": "x", "training_args.bin": "x"})
    assert weight_files(mra) == [mra / "model.safetensors"]
    for name, tensor in load_checkpoint(mra).model.state_dict().items():
        assert torch.equal(tensor, expected[name])
    (mra / "model.safetensors").unlink()
    assert weight_files(mra) == [mra / "pytorch_model.bin"]
    name = "encoder.layer.0.output.dense.weight"
    torch.testing.assert_close(load_checkpoint(mra).model.state_dict()[name], expected[name] + 1)
    (mra / "pytorch_model.bin").unlink()
    assert weight_files(mra) == []


@pytest.mark.parametrize("ending", ["model.safetensors", "pytorch_model.bin"])
def test_shards(ending: str, mra: Path) -> None:
    expected = load_file(mra / "model.safetensors")
    as_shards(mra, ending)
    stem, _, kind = ending.rpartition(".")
    assert [path.name for path in weight_files(mra)] == [f"{stem}-0000{i}-of-00002.{kind}" for i in (1, 2)]
    found = read_weights(mra)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "a pointer": ({"model.safetensors": POINTER}, r"model\.safetensors is a pointer of Git LFS, not the file itself"),
    "an older pointer": (
        {"model.safetensors": None, "pytorch_model.bin": POINTER},
        r"pytorch_model\.bin is a pointer of Git LFS",
    ),
    "a shard's pointer": (
        {"model.safetensors": None, "model.safetensors.index.json": {"weight_map": {"a": "s.safetensors"}},
         "s.safetensors": POINTER},
        r"s\.safetensors is a pointer of Git LFS",
    ),
    "the index's pointer": (
        {"model.safetensors": None, "model.safetensors.index.json": POINTER},
        r"index\.json is not a valid index of weight files: it is a pointer of Git LFS",
    ),
    "a lost shard": (
        {"model.safetensors": None, "model.safetensors.index.json": {"weight_map": {"a": "gone.safetensors"}}},
        r"names gone\.safetensors, which is not in",
    ),
    "a shard elsewhere": (
        {"model.safetensors": None, "model.safetensors.index.json": {"weight_map": {"a": "../x.safetensors"}}},
        r"not a valid index of weight files: weight_map must name the files beside it",
    ),
    "an index of numbers": (
        {"model.safetensors": None, "model.safetensors.index.json": {"weight_map": {"a": 1}}},
        r"not a valid index of weight files",
    ),
    "an empty index": (
        {"model.safetensors": None, "model.safetensors.index.json": {"weight_map": {}}},
        r"not a valid index of weight files",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_wrong_is_said_of_each_kind_of_checkpoint(case: str, mra: Path, bert: Path, tmp_path: Path) -> None:
    files, reason = DAMAGED[case]
    for directory in (mra, bert):
        for name, content in files.items():
            (directory / name).unlink(missing_ok=True)
            if content is not None:
                write_files(directory, {name: content})
    with pytest.raises(InputError, match=reason):
        load_checkpoint(mra)
    with pytest.raises(InputError, match=reason):
        from_dense(bert, tmp_path / "out")


def test_a_pointer_in_a_modules_folder(tmp_path: Path) -> None:
    write_files(tmp_path, {"2_Dense/pytorch_model.bin": POINTER})
    with pytest.raises(
        InputError, match=r"2_Dense/pytorch_model\.bin cannot be read as weights: it is a pointer of Git LFS"
    ):
        load_weights(tmp_path / "2_Dense")


def test_the_hubs_cache_is_a_checkpoint(mra: Path, bert: Path, tmp_path: Path) -> None:
    expected = load_checkpoint(mra).model.state_dict()
    found = load_checkpoint(as_hub_cache(mra, tmp_path / "cache")).model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    shutil.rmtree(tmp_path / "cache")
    from_dense(bert, tmp_path / "expected")
    result = from_dense(as_hub_cache(bert, tmp_path / "cache"), tmp_path / "out")
    for name in result.files:
        path = tmp_path / "out" / name
        assert not path.is_symlink()
        assert path.read_bytes() == (tmp_path / "expected" / name).read_bytes()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "mra"
