"""A dense model as the teacher and an MRA model as the student: what both compute of a batch, and how far they are apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mra_export.checkpoint.adapter import has_adapter
from mra_export.checkpoint.files import first_line, locate
from mra_export.checkpoint.from_dense.source import DENSE_FAMILIES
from mra_export.checkpoint.layout import sentence_root
from mra_export.checkpoint.load import load_checkpoint, load_config, share_weights
from mra_export.checkpoint.module_torch import as_torch
from mra_export.checkpoint.text import read_contract
from mra_export.errors import InputError
from mra_export.families.mra import FAMILY
from mra_export.operators.mra2_attention.batched import mra2_attention_batched
from mra_export.quiet import quiet_transformers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from mra_export.checkpoint.load import Checkpoint
    from mra_export.fidelity.samples import Batch

__all__ = ["WEIGHTS", "Student", "Teacher", "distance", "load_pair"]

WEIGHTS = ("attention", "all", "last")
"""Which weights move: those of attention in the layers, all of the layers, or all of the last half of the layers."""
_VECTOR_WEIGHT = 10.0
"""Of 1 - cosine beside the layers' errors: it is what counts in the end, and some ten times smaller than they are."""


def load_pair(source: str | Path, teacher: str | Path) -> tuple[Checkpoint, Path]:
    """An MRA checkpoint, and the directory of a dense one of its shape.

    Args:
        source: the MRA checkpoint, a directory or a hub id.
        teacher: the dense one.

    Raises:
        InputError: they are something else, or the one cannot have been made from the other.
    """
    directory = locate(source)
    config = load_config(directory)
    if config.model_type != FAMILY.model_type:
        raise InputError(
            f"{source} is of model_type {config.model_type!r}, and only MRA checkpoints can be healed. `from-dense` makes one of a "
            "dense checkpoint."
        )
    dense = locate(teacher)
    theirs = load_config(dense)
    if theirs.model_type not in DENSE_FAMILIES:
        raise InputError(
            f"--teacher {teacher} is of model_type {theirs.model_type!r}, and a teacher is one of "
            f"{', '.join(DENSE_FAMILIES)}. Give the dense checkpoint that {source} was made from."
        )
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        ours, other = getattr(config, name), getattr(theirs, name)
        if ours != other:
            raise InputError(
                f"--teacher {teacher} has {name}={other}, {source} has {ours}: the one was not made from the other. Give the dense "
                "checkpoint that it was made from."
            )
    for each in (directory, dense):
        if has_adapter(each):
            raise InputError(f"{each} is an adapter beside its base model. Merge the two first.")
    return load_checkpoint(source), dense


class Teacher:
    """A dense checkpoint.

    Args:
        directory: the checkpoint, of one of `DENSE_FAMILIES`.
        device: where it runs.
        embedding: whether its vectors are `sentence_embedding`; else they are means of the token vectors.

    Raises:
        InputError: its weights cannot be loaded.
    """

    def __init__(self, directory: Path, device: str, *, embedding: bool) -> None:
        import torch
        from transformers import AutoModel

        try:
            with quiet_transformers():
                model = AutoModel.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
        except Exception as error:
            raise InputError(f"The weights in {directory} could not be loaded: {first_line(error)}") from error
        self._model = model.eval().requires_grad_(False).to(device)
        self._chain = _chain(directory, device) if embedding else None

    def run(self, batch: Batch) -> tuple[Sequence[Tensor], Tensor]:
        """As `Student.run`, without gradients."""
        import torch

        with torch.no_grad():
            output = self._model(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True)
            return output.hidden_states[1:], _vectors(self._chain, output.last_hidden_state, batch.mask)


class Student:
    """An MRA checkpoint whose weights move.

    Args:
        checkpoint: the model; its weights are those that move.
        device: where it runs.
        which: one of `WEIGHTS`.

    Attributes:
        plan: the attributes of each layer.
        device: where it runs.
        is_embedding: whether its vectors are what its modules make of token vectors; the encoder of another task gives means.
        moving: the weights that move, by the names that they have in the encoder.
    """

    def __init__(self, checkpoint: Checkpoint, device: str, which: str) -> None:
        self.plan = tuple(FAMILY.layer_attributes(checkpoint.config))
        self.device = device
        self._model = share_weights(checkpoint.model).base_model.to(device)
        FAMILY.replace_attention(self._model, self._attend)
        self.is_embedding = checkpoint.task.name == "feature-extraction"
        self._chain = _chain(checkpoint.directory, device) if self.is_embedding else None
        self._mask: Any = None
        self.moving: dict[str, nn.Parameter] = {
            name: weight for name, weight in self._model.named_parameters() if _moves(name, which, len(self.plan))
        }
        for weight in self.moving.values():
            weight.requires_grad_(True)

    def run(self, batch: Batch) -> tuple[Sequence[Tensor], Tensor]:
        """What it computes of a batch.

        Returns:
            The hidden states after each layer, [rows, seq_len, hidden_size], and the vectors, [rows, width]: `sentence_embedding`,
            or the mean of the token vectors.
        """
        self._mask = batch.mask
        hidden = self._model.embeddings(input_ids=batch.ids)
        states = []
        for layer in self._model.encoder.layer:
            result = layer(hidden)
            hidden = result[0] if isinstance(result, tuple) else result
            states.append(hidden)
        return states, _vectors(self._chain, hidden, batch.mask)

    def _attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        import torch

        with torch.autocast(query.device.type, enabled=False):  # blocks are selected in float32
            return mra2_attention_batched(query, key, value, self._mask, self.plan[layer])


def _moves(name: str, which: str, layers: int) -> bool:
    part = name.split(".")
    if part[:2] != ["encoder", "layer"]:
        return False
    return which == "all" or (part[3] == "attention" if which == "attention" else int(part[2]) >= layers // 2)


def _chain(directory: Path, device: str) -> nn.Module | None:
    """The modules after an encoder, whose weights stay; None where it has none."""
    modules = read_contract(directory).modules
    return as_torch(modules, sentence_root(directory)).to(device) if modules else None


def _vectors(chain: nn.Module | None, hidden: Tensor, mask: Tensor) -> Tensor:
    if chain is not None:
        return chain(hidden.float(), mask)
    weight = mask[:, :, None].float()
    return (hidden.float() * weight).sum(1) / weight.sum(1)


def distance(
    student: tuple[Sequence[Tensor], Tensor], teacher: tuple[Sequence[Tensor], Tensor], mask: Tensor
) -> Tensor:
    """How far a student is from its teacher, differentiable.

    The error of a layer is the squared difference of its hidden states over the square of the teacher's, both over the tokens of a
    text, so that layers and texts of any size count alike; it tells each layer what to mend. To the mean over the layers comes
    1 - cosine of the vectors, which is what is to become small, times 10: it is about as much smaller.

    Args:
        student: of `Student.run`.
        teacher: of `Teacher.run` for the same batch.
        mask: [rows, seq_len].

    Returns:
        The sum over the rows, a number.
    """
    import torch

    weight = mask[:, :, None].float()
    total = torch.zeros(mask.shape[0], device=mask.device)
    for ours, theirs in zip(student[0], teacher[0], strict=True):
        error = ((ours.float() - theirs.float()) ** 2 * weight).sum((1, 2))
        total = total + error / ((theirs.float() ** 2 * weight).sum((1, 2)) * len(teacher[0]))
    cosine = torch.nn.functional.cosine_similarity(student[1], teacher[1])
    return (total + _VECTOR_WEIGHT * (1 - cosine)).sum()
