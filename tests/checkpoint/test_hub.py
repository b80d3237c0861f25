"""What is fetched from the hub, by its client's own filter and without a network."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from mra_export.checkpoint.files import locate
from mra_export.errors import InputError

NAME = "someone/model"
MINILM = [
    ".gitattributes",
    "1_Pooling/config.json",
    "README.md",
    "config.json",
    "config_sentence_transformers.json",
    "data_config.json",
    "model.safetensors",
    "modules.json",
    "onnx/model.onnx",
    "onnx/model_O1.onnx",
    "onnx/model_qint8_avx512.onnx",
    "openvino/openvino_model.bin",
    "openvino/openvino_model.xml",
    "pytorch_model.bin",
    "rust_model.ot",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tf_model.h5",
    "tokenizer.json",
    "tokenizer_config.json",
    "train_script.py",
    "vocab.txt",
]
"""A repository as sentence-transformers/all-MiniLM-L6-v2 has it."""
LISTING = [{"path": "", "type": "sentence_transformers.models.Transformer"}]


def listing(**folders: str) -> str:
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in folders.items()]
    return json.dumps(modules)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[set[str], int]]:
    """What of a repository's files comes, and in how many calls."""

    def fetched(names: Sequence[str], *, weights: bool = True, **contents: str) -> tuple[set[str], int]:
        cache = tmp_path / "cache"
        calls: list[dict[str, Any]] = []

        def snapshot_download(repo_id: str, **options: Any) -> str:
            assert repo_id == NAME
            calls.append(options)
            for name in filter_repo_objects(names, **options):
                path = cache / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(contents.get(name, "{}" if name.endswith(".json") else ""))
            return str(cache)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        locate(NAME, weights=weights)
        return {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()}, len(calls)

    return fetched


CARD = {"README.md", "config.json"}


def test_one_format_of_weights_and_no_other_exports(hub: Any) -> None:
    found, calls = hub(
        MINILM, **{"modules.json": listing(Transformer="", Pooling="1_Pooling", Normalize="2_Normalize")}
    )
    assert found == CARD | {
        "1_Pooling/config.json", "config_sentence_transformers.json", "model.safetensors", "modules.json",
        "sentence_bert_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
    }  # fmt: skip
    assert calls <= 2


def test_without_weights(hub: Any) -> None:
    found, _ = hub([*MINILM, "model.safetensors.index.json"], weights=False, **{"modules.json": json.dumps(LISTING)})
    assert not [name for name in found if name.endswith((".safetensors", ".bin", ".index.json"))]
    assert {"config.json", "vocab.txt"} <= found


ONLY: dict[str, tuple[list[str], set[str]]] = {
    "safetensors": (["model.safetensors", "pytorch_model.bin"], {"model.safetensors"}),
    "no safetensors": (["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"], {"pytorch_model.bin"}),
    "shards": (
        ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
         "pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
        {"model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"},
    ),
    "other shards": (
        ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
        {"pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"},
    ),
    "variants": (
        ["model.safetensors", "model.fp16.safetensors", "model.fp16-00001-of-00002.safetensors", "pytorch_model.fp16.bin",
         "model.safetensors.index.fp16.json", "consolidated.safetensors", "training_args.bin", "optimizer.bin"],
        {"model.safetensors"},
    ),
    "training": (
        ["model.safetensors", "checkpoint-500/model.safetensors", "checkpoint-500/config.json",
         "checkpoint-500/tokenizer.json", "checkpoint-500/1_Pooling/config.json", "runs/x.json"],
        {"model.safetensors"},
    ),
    "adapter": (
        ["model.safetensors", "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"],
        {"model.safetensors", "adapter_config.json", "adapter_model.safetensors"},
    ),
    "old adapter": (
        ["model.safetensors", "adapter_config.json", "adapter_model.bin"],
        {"model.safetensors", "adapter_config.json", "adapter_model.bin"},
    ),
    "licence": (["model.safetensors", "LICENSE.txt", "NOTICE"], {"model.safetensors", "LICENSE.txt", "NOTICE"}),
}  # fmt: skip


@pytest.mark.parametrize("case", ONLY)
def test_what_comes_of_a_plain_repository(case: str, hub: Any) -> None:
    there, wanted = ONLY[case]
    found, calls = hub(["README.md", "config.json", "onnx/model.onnx", "onnx/config.json", "openvino/x.bin", *there])
    assert found == CARD | wanted
    assert calls <= 2


FOLDERS: dict[str, tuple[dict[str, str], list[str], set[str]]] = {
    "old layout": (
        {"Transformer": "0_Transformer", "Pooling": "1_Pooling"},
        ["0_Transformer/config.json", "0_Transformer/pytorch_model.bin", "0_Transformer/tf_model.h5", "0_Transformer/vocab.txt",
         "0_Transformer/sentence_bert_config.json", "1_Pooling/config.json", "0_Transformer/onnx/model.onnx"],
        {"0_Transformer/config.json", "0_Transformer/pytorch_model.bin", "0_Transformer/vocab.txt",
         "0_Transformer/sentence_bert_config.json", "1_Pooling/config.json"},
    ),
    "other name": (
        {"Transformer": "parts/encoder", "Pooling": "pool"},
        ["parts/encoder/config.json", "parts/encoder/model.safetensors", "parts/encoder/tokenizer.json", "pool/config.json",
         "parts/decoder/model.safetensors"],
        {"parts/encoder/config.json", "parts/encoder/model.safetensors", "parts/encoder/tokenizer.json", "pool/config.json"},
    ),
    "other name, other format": (
        {"Transformer": "encoder"},
        ["encoder/config.json", "encoder/pytorch_model.bin"],
        {"encoder/config.json", "encoder/pytorch_model.bin"},
    ),
    "dense": (
        {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense", "LayerNorm": "10_LayerNorm"},
        ["config.json", "model.safetensors", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors",
         "2_Dense/pytorch_model.bin", "10_LayerNorm/config.json", "10_LayerNorm/model.safetensors"],
        {"config.json", "model.safetensors", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors",
         "10_LayerNorm/config.json", "10_LayerNorm/model.safetensors"},
    ),
    "old dense": (
        {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense"},
        ["config.json", "pytorch_model.bin", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/pytorch_model.bin",
         "1_Pooling/pytorch_model.bin"],
        {"config.json", "pytorch_model.bin", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/pytorch_model.bin"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_the_folders_of_modules(case: str, hub: Any) -> None:
    modules, there, wanted = FOLDERS[case]
    more = ["modules.json", "checkpoint-500/config.json", "checkpoint-500/pytorch_model.bin", "train.csv"]
    found, calls = hub([*there, *more], **{"modules.json": listing(**modules)})
    assert found == wanted | {"modules.json"}
    assert calls <= 3


def test_a_repository_without_a_model(hub: Any) -> None:
    with pytest.raises(InputError, match=r"has no config\.json, so it is not a checkpoint"):
        hub(["README.md", "data.parquet"])


def test_the_cache_of_a_model_is_not_its_snapshot(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--someone--model" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--someone--model" / "blobs").mkdir()
    with pytest.raises(InputError, match=f"is the hub's cache of a model, not a checkpoint. Give {snapshot}"):
        locate(tmp_path / "models--someone--model")


def test_what_the_client_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise OSError("no such\n  repository")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        InputError, match=r"someone/model is neither a directory here .* from the hub: no such repository"
    ):
        locate(NAME)
