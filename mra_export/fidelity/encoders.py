"""Texts to vectors with a model of any kind: a dense checkpoint, one of ours, or an exported file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.checkpoint.adapter import has_adapter
from mra_export.checkpoint.files import first_line, locate
from mra_export.checkpoint.from_dense.source import DENSE_FAMILIES, dense_family, positions
from mra_export.checkpoint.layout import sentence_root
from mra_export.checkpoint.load import Checkpoint, load_checkpoint, load_config
from mra_export.checkpoint.module_torch import as_torch
from mra_export.checkpoint.text import read_contract
from mra_export.errors import InputError
from mra_export.export.onnx_model import OnnxModel, find_onnx, read_onnx
from mra_export.families.mra import FAMILY
from mra_export.fidelity.layered import LayeredModel
from mra_export.fidelity.samples import batches_of, token_ids
from mra_export.quiet import quiet_transformers
from mra_export.runners.onnxruntime import OnnxRuntimeRunner
from mra_export.runners.torch import SpecificationRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mra_export.fidelity.samples import Batch
    from mra_export.trace import Array, Inputs

__all__ = ["Encoder", "open_encoder"]

PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""Kind of text -> names of the prompt that sentence-transformers puts before it, the first that there is."""


class Encoder(ABC):
    """A model that gives vectors.

    Attributes:
        name: for people.
        directory: of its tokenizer.
        longest: tokens that it has positions for.
        plan: of an MRA model the attributes of each layer, else empty.
    """

    def __init__(self, name: str, directory: Path, longest: int, plan: Sequence[Any] = ()) -> None:
        self.name, self.directory, self.longest, self.plan = name, directory, longest, tuple(plan)

    def encode(
        self, texts: Sequence[str], kind: str = "document", say: Callable[[str], None] = lambda _: None
    ) -> tuple[Array, Array]:
        """The vectors of texts, each as it has it alone.

        Args:
            texts: the texts.
            kind: of `PROMPTS`.
            say: called with a line now and then.

        Returns:
            float64 [texts, width] of length 1: `sentence_embedding`, or the mean of the token vectors; and the tokens of each.

        Raises:
            InputError: the model has no tokenizer.
        """
        ids = token_ids(self.directory, texts, self.longest, PROMPTS[kind])
        if ids is None:
            raise InputError(f"{self.directory} has no tokenizer, and without one no text can be given to the model.")
        vectors: list[Array] = [np.zeros(0)] * len(texts)
        done = told = 0
        for batch in batches_of(ids):
            for place, vector in zip(batch.places, self.vectors(batch), strict=True):
                vectors[place] = vector
            done += len(batch.places)
            if done - told >= _TELL or done == len(texts):
                told = done
                say(f"{self.name}: {done} of {len(texts)} texts")
        rows = np.stack(vectors) if vectors else np.zeros((0, 0))
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
        return rows, np.array([len(each) for each in ids])

    @abstractmethod
    def vectors(self, batch: Batch) -> Array:
        """float64 [rows, width] of a batch."""


_TELL = 200
"""Texts from one line of progress to the next."""


class _Layered(Encoder):
    """An MRA checkpoint, batch by batch."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        plan = FAMILY.layer_attributes(checkpoint.config)
        super().__init__(name, checkpoint.directory, FAMILY.max_seq_len(checkpoint.config), plan)
        self._model = LayeredModel(checkpoint)

    def vectors(self, batch: Batch) -> Array:
        return self._model.vectors(batch, [self.plan])[0]


class _Run(Encoder):
    """What gives outputs by name: another of our checkpoints, or an exported file."""

    def __init__(self, runner: Any, names: Sequence[str], *facts: Any) -> None:
        super().__init__(*facts)
        self._runner, self._names = runner, names

    def vectors(self, batch: Batch) -> Array:
        outputs = self._runner.run(_inputs(batch, self._names))
        if "sentence_embedding" in outputs:
            return np.asarray(outputs["sentence_embedding"], np.float64)
        return _mean(outputs["last_hidden_state"], batch)


class _Dense(Encoder):
    """A dense checkpoint in transformers."""

    def __init__(self, directory: Path, config: Any, name: str) -> None:
        import torch
        from transformers import AutoModel

        if has_adapter(directory):
            raise InputError(
                f"{directory} is an adapter beside its base model. Merge the two, or give what `from-dense` makes of them."
            )
        super().__init__(name, directory, positions(config, dense_family(config))[1])
        try:
            with quiet_transformers():
                model = AutoModel.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
        except Exception as error:
            raise InputError(f"The weights in {directory} could not be loaded: {first_line(error)}") from error
        self._model = model.eval().requires_grad_(False)
        modules = read_contract(directory).modules
        self._chain = as_torch(modules, sentence_root(directory)) if modules else None

    def vectors(self, batch: Batch) -> Array:
        import torch

        with torch.no_grad():
            hidden = self._model(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
            if self._chain is not None:
                return np.asarray(self._chain(hidden, batch.mask).double().numpy())
        return _mean(hidden.numpy(), batch)


def open_encoder(source: str | Path, *, library: Path | None = None) -> Encoder:
    """A model that gives vectors.

    Args:
        source: a checkpoint (BERT, RoBERTa, XLM-R or one of our families), a hub id, an ONNX directory or an .onnx file.
        library: the ONNX Runtime library; None to run the function body.

    Raises:
        InputError: it cannot be read, or gives no vectors.
        DependencyError: ONNX Runtime is missing.
    """
    name = Path(source).name or str(source)
    if (file := find_onnx(Path(source))) is not None:
        return _exported(read_onnx(file), name, library)
    directory = locate(source)
    config = load_config(directory)
    if config.model_type in DENSE_FAMILIES:
        return _Dense(directory, config, name)
    checkpoint = load_checkpoint(source, task="feature-extraction")
    if checkpoint.family is FAMILY:
        return _Layered(checkpoint, name)
    modules = read_contract(checkpoint.directory).modules
    longest = checkpoint.family.max_seq_len(checkpoint.config)
    names = ("input_ids", "attention_mask")
    return _Run(SpecificationRunner(checkpoint, modules), names, name, checkpoint.directory, longest)


def _exported(model: OnnxModel, name: str, library: Path | None) -> Encoder:
    if not {"sentence_embedding", "last_hidden_state"} & set(model.outputs):
        raise InputError(
            f"{model.path} has the outputs {', '.join(model.outputs)}, and no vectors. Export it with --task feature-extraction."
        )
    runner = OnnxRuntimeRunner(model, library=library if model.nodes else None)
    plan = model.attributes if model.family is FAMILY else ()
    return _Run(runner, model.inputs, name, model.directory, model.position_limit or 512, plan)


def _inputs(batch: Batch, names: Sequence[str]) -> Inputs:
    mask = batch.mask.numpy()
    every = {"input_ids": batch.ids.numpy(), "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}
    return {name: every[name] for name in names}


def _mean(hidden: Array, batch: Batch) -> Array:
    weight = batch.mask.numpy()[:, :, None].astype(np.float64)
    return np.asarray((hidden.astype(np.float64) * weight).sum(axis=1) / weight.sum(axis=1))
