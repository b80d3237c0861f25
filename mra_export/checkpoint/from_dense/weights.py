"""Weights of a dense checkpoint as those of an MRA model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mra_export.errors import InputError
from mra_export.operators.mra2_attention.spec import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from mra_export.checkpoint.from_dense.source import DenseFamily
    from mra_export.checkpoint.tasks import Task

__all__ = ["POSITION_OFFSET", "Weights", "convert", "notes_on_weights", "save_weights"]

POSITION_OFFSET = 2
"""The first row of MRA's position table that is read (`MraEmbeddings`); the rows before it are written as zeros."""

_LAYER_WEIGHTS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)


class Weights:
    """The source's weights by their present-day names, without the encoder's prefix; remembers which were taken."""

    def __init__(self, weights: dict[str, Tensor], prefix: str) -> None:
        old_names = {".gamma": ".weight", ".beta": ".bias"}  # LayerNorm's, before 2019
        self._weights: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            for old, new in old_names.items():
                if name.endswith(f"LayerNorm{old}"):
                    name = name.removesuffix(old) + new
            self._weights[name.removeprefix(prefix)] = tensor
        self._taken: set[str] = set()
        self.dtypes: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def take(self, name: str, *shape: int) -> Tensor:
        """A weight in float32; refuses one that is missing, has another shape or is not finite."""
        import torch

        tensor = self._weights.get(name)
        if tensor is None:
            raise InputError(
                f"The checkpoint has no weight {name}, which its config.json or the task calls for. Take a complete "
                "one, or choose another --task."
            )
        if tuple(tensor.shape) != shape:
            raise InputError(
                f"The weight {name} has the shape {tuple(tensor.shape)}, but config.json calls for {shape}. "
                "The two are not of one checkpoint."
            )
        if not tensor.is_floating_point():
            raise InputError(f"The weight {name} is {tensor.dtype}: a quantized checkpoint cannot be converted.")
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise InputError(
                f"The weight {name} has {bad} values that are NaN or infinite, of {tensor.numel()}. "
                "The checkpoint is damaged, or training diverged; take another one."
            )
        self._taken.add(name)
        self.dtypes.add(str(tensor.dtype).removeprefix("torch."))
        return tensor.to(torch.float32)

    def left(self) -> list[str]:
        """Names that were not taken."""
        return sorted(set(self._weights) - self._taken)


def convert(
    weights: Weights, config: Any, family: DenseFamily, task: Task, first_row: int, length: int
) -> dict[str, Tensor]:
    """The MRA model's weights by name."""
    import torch

    hidden, inner = config.hidden_size, config.intermediate_size
    prefix = "" if task.name == "feature-extraction" else "mra."
    result: dict[str, Tensor] = {}

    def keep(name: str, *shape: int, to: str | None = None) -> None:
        result[prefix + name if to is None else to] = weights.take(name, *shape)

    keep("embeddings.word_embeddings.weight", config.vocab_size, hidden)
    keep("embeddings.token_type_embeddings.weight", config.type_vocab_size, hidden)
    keep("embeddings.LayerNorm.weight", hidden)
    keep("embeddings.LayerNorm.bias", hidden)
    table = weights.take("embeddings.position_embeddings.weight", config.max_position_embeddings, hidden)
    unread = torch.zeros((POSITION_OFFSET, hidden), dtype=torch.float32)
    rows = torch.cat([unread, table[first_row : first_row + length]])
    result[f"{prefix}embeddings.position_embeddings.weight"] = rows
    result[f"{prefix}embeddings.position_ids"] = torch.arange(length)[None] + POSITION_OFFSET

    for layer in range(config.num_hidden_layers):
        for part in _LAYER_WEIGHTS:
            name = f"encoder.layer.{layer}.{part}"
            outputs = inner if part == "intermediate.dense" else hidden
            inputs = inner if part == "output.dense" else hidden
            keep(f"{name}.weight", *((outputs,) if part.endswith("LayerNorm") else (outputs, inputs)))
            keep(f"{name}.bias", outputs)
        # transformers' MRA fills narrow heads up to 32 before it scales by 1 / sqrt(width): undone in the query.
        head_dim = hidden // config.num_attention_heads
        if head_dim < BLOCK_SIZE:
            for kind in ("weight", "bias"):
                name = f"{prefix}encoder.layer.{layer}.attention.self.query.{kind}"
                scaled = result[name].to(torch.float64) * math.sqrt(BLOCK_SIZE / head_dim)
                result[name] = scaled.to(torch.float32)

    for name, *shape in _head_weights(config, family, task):
        source, target = name
        keep(source, *shape, to=target)
    if task.name == "fill-mask":
        result.update(_decoder(weights, config, family))
    return result


def _head_weights(config: Any, family: DenseFamily, task: Task) -> Iterator[tuple[Any, ...]]:
    """((name in the source, name in MRA), *shape) of the weights of a head, the decoder's excepted."""
    hidden, labels = config.hidden_size, config.num_labels
    roberta = family.fairseq_positions
    if task.name == "fill-mask":
        ours = "cls.predictions.transform"
        dense, norm = ("lm_head.dense", "lm_head.layer_norm") if roberta else (f"{ours}.dense", f"{ours}.LayerNorm")
        yield (f"{dense}.weight", f"{ours}.dense.weight"), hidden, hidden
        yield (f"{dense}.bias", f"{ours}.dense.bias"), hidden
        yield (f"{norm}.weight", f"{ours}.LayerNorm.weight"), hidden
        yield (f"{norm}.bias", f"{ours}.LayerNorm.bias"), hidden
    elif task.name == "text-classification":
        first, last = ("classifier.dense", "classifier.out_proj") if roberta else ("pooler.dense", "classifier")
        yield (f"{first}.weight", "classifier.dense.weight"), hidden, hidden
        yield (f"{first}.bias", "classifier.dense.bias"), hidden
        yield (f"{last}.weight", "classifier.out_proj.weight"), labels, hidden
        yield (f"{last}.bias", "classifier.out_proj.bias"), labels
    elif task.name == "token-classification":
        yield ("classifier.weight", "classifier.weight"), labels, hidden
        yield ("classifier.bias", "classifier.bias"), labels
    elif task.name == "question-answering":
        yield ("qa_outputs.weight", "qa_outputs.weight"), 2, hidden
        yield ("qa_outputs.bias", "qa_outputs.bias"), 2


def _decoder(weights: Weights, config: Any, family: DenseFamily) -> dict[str, Tensor]:
    """The projection to the vocabulary, whose weight is the word embedding's where the two are tied."""
    import torch

    head = "lm_head" if family.fairseq_positions else "cls.predictions"
    target = "cls.predictions"
    vocab, hidden = config.vocab_size, config.hidden_size
    tied = getattr(config, "tie_word_embeddings", True) is not False
    # One parameter under two names; only an untied decoder has a bias of its own, and then the other is not used.
    names = [name for name in (f"{head}.decoder.bias", f"{head}.bias") if name in weights] or [f"{head}.bias"]
    biases = [weights.take(name, vocab) for name in names]
    if tied and not torch.equal(biases[0], biases[-1]):
        raise InputError(
            f"The weights {names[0]} and {names[-1]} are one parameter but differ. The checkpoint is damaged."
        )
    result = {f"{target}.bias": biases[0]}
    name = f"{head}.decoder.weight"
    if not tied:
        result[f"{target}.decoder.weight"] = weights.take(name, vocab, hidden)
        result[f"{target}.decoder.bias"] = biases[0].clone()
    elif name in weights and not torch.equal(
        weights.take(name, vocab, hidden), weights.take("embeddings.word_embeddings.weight", vocab, hidden)
    ):
        raise InputError(
            f"config.json ties {name} to the word embeddings, but the two differ. "
            "Set tie_word_embeddings to false there if the model was trained so."
        )
    return result


def notes_on_weights(weights: Weights, config: Any, task: Task) -> list[str]:
    """Refuses weights of the encoder that found no place; says which others were left out."""
    dropped: list[str] = []
    layers = 0
    for name in weights.left():
        if name.endswith(("position_ids", "token_type_ids")):
            continue
        part = name.split(".")
        if name.startswith("encoder.layer.") and part[2].isdigit() and int(part[2]) >= config.num_hidden_layers:
            layers = max(layers, int(part[2]) + 1)
        elif name.startswith(("encoder.", "embeddings.")):
            raise InputError(
                f"The checkpoint has a weight {name} that transformers' model of this kind does not use and MRA has "
                "no place for. Merge adapters into the weights first, or take a plain checkpoint."
            )
        else:
            dropped.append(name)
    notes = []
    if layers:
        kept = config.num_hidden_layers
        notes.append(f"There are weights of {layers} layers, but config.json says {kept}: so many has the result.")
    if any(name.startswith("pooler.") for name in dropped):
        notes.append("The pooler (pooler_output) was left out: MRA has none. last_hidden_state does not depend on it.")
    heads = sorted({name.split(".")[0] for name in dropped if not name.startswith("pooler.")})
    if heads:
        notes.append(f"Weights that {task.name} does not use were left out: {', '.join(heads)}.")
    halves = sorted(weights.dtypes - {"float32"})
    if halves:
        notes.append(f"Weights in {' and '.join(halves)} were written as float32, in which transformers' MRA runs.")
    return notes


def save_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Writes model.safetensors."""
    from safetensors.torch import save_file

    # Sorted by name, and each weight a buffer of its own, so that the bytes depend on nothing but the values.
    save_file({name: weights[name].contiguous() for name in sorted(weights)}, path, metadata={"format": "pt"})
