"""Dense checkpoints, damaged ones among them, and the comparison of a model with its conversion."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from measures import relative_error
from safetensors.torch import load_file, save_file

from mra_export.checkpoint.from_dense.source import DENSE_FAMILIES
from mra_export.checkpoint.load import Checkpoint, load_checkpoint
from mra_export.checkpoint.tasks import TASKS
from mra_export.operators.mra2_attention.reference import mra2_attention

COSINE = 0.99999


def tiny(family: str, suffix: str, *, heads: int = 2, head_dim: int = 32, positions: int = 128, **settings: Any) -> Any:
    """A dense model with random weights whose attention is far from uniform."""
    torch.manual_seed(7)
    prefix = DENSE_FAMILIES[family].class_prefix
    pad = settings.setdefault("pad_token_id", 0 if family == "bert" else 1)
    config = getattr(transformers, f"{prefix}Config")(
        **{
            "vocab_size": 97,
            "hidden_size": heads * head_dim,
            "num_hidden_layers": 2,
            "num_attention_heads": heads,
            "intermediate_size": 96,
            "max_position_embeddings": positions if family == "bert" else positions + pad + 1,
            "type_vocab_size": 2 if family == "bert" else 1,
            "initializer_range": 0.03,
            "layer_norm_eps": 1e-12 if family == "bert" else 1e-5,
            **settings,
        }
    )
    model = getattr(transformers, prefix + suffix)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zero at initialization, which would hide a bias that is lost
                parameter.normal_(0, 0.1)
            elif ".self.query." in name or ".self.key." in name:
                parameter.mul_(6)  # logits with a standard deviation of about 2
            elif ".self.value." in name or ".attention.output.dense." in name:
                parameter.mul_(4)  # as large as what they are added to
            if "position_embeddings" in name or "token_type" in name:
                parameter.normal_(0, 0.2)
    return model


def batch(config: Any, family: str, lengths: tuple[int, ...], *, side: str = "right") -> dict[str, torch.Tensor]:
    """Random ids, padded on one side, or with holes in the middle."""
    rng = np.random.default_rng(3)
    width = max(lengths)
    mask = np.zeros((len(lengths), width), dtype=np.int64)
    for row, length in enumerate(lengths):
        if side == "holes":
            mask[row, np.sort(rng.permutation(width)[:length])] = 1
        else:
            mask[row, :length] = 1
    if side == "left":
        mask = mask[:, ::-1].copy()
    ids = rng.integers(5, config.vocab_size, mask.shape)
    result = {"input_ids": np.where(mask, ids, config.pad_token_id), "attention_mask": mask}
    if config.type_vocab_size > 1:
        result["token_type_ids"] = rng.integers(0, config.type_vocab_size, mask.shape)
    return {name: torch.from_numpy(value) for name, value in result.items()}


def run_mra(checkpoint: Checkpoint, inputs: dict[str, torch.Tensor]) -> Any:
    """The converted model with the reference operator as its attention."""
    attributes = checkpoint.family.layer_attributes(checkpoint.config)
    mask = inputs["attention_mask"]
    checkpoint.family.replace_attention(
        checkpoint.model, lambda layer, q, k, v: mra2_attention(q, k, v, mask, attributes[layer])
    )
    with torch.no_grad():
        return checkpoint.model(**inputs)


def outputs_of(result: Any, task: str, mask: torch.Tensor) -> list[np.ndarray]:
    """The task's outputs as rows to be compared: tokens that are not padding, or examples."""
    values = [result[name] for name in TASKS[task].outputs]
    if task == "text-classification":
        return [value.numpy() for value in values]
    if task == "question-answering":  # [batch, seq_len]: one row per example
        return [torch.where(mask.bool(), value, 0.0).numpy() for value in values]
    return [value[mask.bool()].numpy() for value in values]


def cosines(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Cosine of each row, in float64."""
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def compare(dense: Any, directory: Path, inputs: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Lowest cosine and largest relative error of the converted model's outputs against the dense model's."""
    checkpoint = load_checkpoint(directory)
    with torch.no_grad():
        expected = outputs_of(dense(**inputs), checkpoint.task.name, inputs["attention_mask"])
    actual = outputs_of(run_mra(checkpoint, inputs), checkpoint.task.name, inputs["attention_mask"])
    pairs = list(zip(actual, expected, strict=True))
    return min(float(cosines(*p).min()) for p in pairs), max(relative_error(*p) for p in pairs)


def assert_equal(dense: Any, directory: Path, inputs: dict[str, torch.Tensor]) -> None:
    cosine, error = compare(dense, directory, inputs)
    assert cosine >= COSINE, f"cosine {cosine}"
    assert error <= 2e-4, f"relative error {error}"


def save(model: Any, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory


HEADS = [
    ("Model", "feature-extraction", {}),
    ("ForMaskedLM", "fill-mask", {}),
    ("ForMaskedLM", "fill-mask", {"tie_word_embeddings": False}),
    ("ForSequenceClassification", "text-classification", {"hidden_act": "tanh", "num_labels": 3}),
    ("ForTokenClassification", "token-classification", {"num_labels": 5}),
    ("ForQuestionAnswering", "question-answering", {}),
]


def edit_config(directory: Path, **settings: Any) -> None:
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def edit_weights(directory: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = directory / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})


def as_shards(directory: Path, ending: str) -> None:
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    stem = ending.removesuffix(".safetensors").removesuffix(".bin")
    names = sorted(weights)
    placed = {name: f"{stem}-0000{1 + i % 2}-of-00002.{ending.rsplit('.', 1)[1]}" for i, name in enumerate(names)}
    for file in set(placed.values()):
        part = {name: weights[name] for name in names if placed[name] == file}
        save_file(part, directory / file) if ending.endswith("safetensors") else torch.save(part, directory / file)
    (directory / f"{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def write_files(directory: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content if isinstance(content, str) else json.dumps(content))


VOCABULARY = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "cat", "dog"])
