"""The PyTorch model: transformers' own, and the same with the specification's operator as its attention."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.numerics import relative_error
from mra_export.trace import Array, Inputs, LayerTrace, Trace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from mra_export.checkpoint.load import Checkpoint
    from mra_export.checkpoint.modules import Module

__all__ = ["SpecificationRunner", "TransformersRunner"]


class _TorchRunner:
    """What the two PyTorch runners share: outputs as the exported model names them, layers seen through hooks."""

    def __init__(self, checkpoint: Checkpoint, model: Any, modules: Sequence[Module]) -> None:
        from mra_export.checkpoint.layout import sentence_root
        from mra_export.checkpoint.module_torch import as_torch

        self.checkpoint = checkpoint
        self.model = model
        self._chain = as_torch(modules, sentence_root(checkpoint.directory)).to(model.device) if modules else None

    def run(self, inputs: Inputs) -> dict[str, Array]:
        return self._run(inputs, None)

    def trace(self, inputs: Inputs) -> Trace:
        layers: list[LayerTrace] = []
        outputs = self._run(inputs, layers)
        return Trace(outputs, layers)

    def _run(self, inputs: Inputs, layers: list[LayerTrace] | None) -> dict[str, Array]:
        raise NotImplementedError

    def run_operator(self, attributes: Any, tensors: Sequence[Array], mask: Array) -> Array | None:
        return None

    def _forward(self, inputs: Inputs, extra: dict[str, Any], layers: list[LayerTrace] | None) -> dict[str, Array]:
        import torch

        device = self.model.device
        tensors = {name: torch.from_numpy(value).to(device) for name, value in inputs.items()}
        extra = {name: value.to(device) for name, value in extra.items()}
        with torch.no_grad(), _watch(self.checkpoint.family.attention_modules(self.model), layers):
            result = self.model(**tensors, **extra)
            outputs = {name: result[name].float() for name in self.checkpoint.task.outputs}
            if self._chain is not None:
                outputs["sentence_embedding"] = self._chain(outputs["last_hidden_state"], tensors["attention_mask"])
        return {name: value.cpu().numpy() for name, value in outputs.items()}


class TransformersRunner(_TorchRunner):
    """The unmodified transformers model, made to run as its family says; float32, on the GPU if torch has one.

    Args:
        checkpoint: the model.
        modules: what follows it, with the checkpoint's weights; none for token vectors alone.
        kernel_sources: as for the family's `transformers_setup`.

    Attributes:
        notes: what was found out about the model while it ran.
    """

    def __init__(
        self, checkpoint: Checkpoint, modules: Sequence[Module] = (), *, kernel_sources: Path | None = None
    ) -> None:
        import torch
        import transformers

        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = checkpoint.model if device == "cpu" else copy.deepcopy(checkpoint.model).to(device)
        super().__init__(checkpoint, model, modules)
        self._setup = checkpoint.family.transformers_setup(checkpoint.config, device, kernel_sources)
        self.notes: list[str] = []
        with self._setup.kernels() as kernels:
            self._setup.probe(self.model)
        self.name = f"PyTorch, transformers {transformers.__version__}" + (f" ({kernels} kernels)" if kernels else "")

    def _run(self, inputs: Inputs, layers: list[LayerTrace] | None) -> dict[str, Array]:
        with self._setup.kernels():
            if self._setup.one_by_one:
                return self._run_one_by_one(inputs, layers)
            mask = inputs["attention_mask"]
            with self._setup.mended(self.model, mask.reshape(-1, mask.shape[-1])):
                outputs = self._forward(inputs, {}, layers)
            if self._setup.unmended is not None and not self.notes and not mask.all():
                self.notes.append(
                    self._setup.unmended(self._difference(outputs, self._forward(inputs, {}, None), mask))
                )
            return outputs

    def _difference(self, expected: dict[str, Array], actual: dict[str, Array], mask: Array) -> float:
        """Largest relative error of an output at tokens."""
        found = 0.0
        for name, want in expected.items():
            keep = mask != 0 if name in self.checkpoint.task.outputs and self.checkpoint.task.per_token else ...
            found = max(found, relative_error(actual[name][keep], want[keep]))
        return found

    def _run_one_by_one(self, inputs: Inputs, layers: list[LayerTrace] | None) -> dict[str, Array]:
        """Each example alone, at the length that the family fills it to."""
        flat = {name: value.reshape(-1, value.shape[-1]) for name, value in inputs.items()}
        rows, seq_len = flat["input_ids"].shape
        length = self._setup.filled_length(seq_len)
        is_choice = self.checkpoint.task.name == "multiple-choice"
        tokens = self.checkpoint.task.outputs if self.checkpoint.task.per_token else ()
        results, traces = [], []
        for row in range(rows):
            one = {name: np.pad(value[row : row + 1], ((0, 0), (0, length - seq_len))) for name, value in flat.items()}
            extra = self._setup.arguments(one, length)
            if is_choice:
                one = {name: value[:, None] for name, value in one.items()}
            seen: list[LayerTrace] | None = None if layers is None else []
            with self._setup.mended(self.model, one["attention_mask"].reshape(1, length)):
                outputs = self._forward(one, extra, seen)
            results.append({name: v[:, :seq_len] if name in tokens else v for name, v in outputs.items()})
            traces.append(seen)
        if layers is not None:
            for per_layer in zip(*(t or [] for t in traces), strict=True):
                fields = ("query", "key", "value", "context")
                stacked = [np.concatenate([getattr(layer, f)[:, :seq_len] for layer in per_layer]) for f in fields]
                layers.append(LayerTrace(*stacked))
        merged = {name: np.concatenate([r[name] for r in results]) for name in results[0]}
        if is_choice:
            merged["logits"] = merged["logits"].reshape(inputs["input_ids"].shape[:2])
        return merged


class SpecificationRunner(_TorchRunner):
    """The transformers model with the specification's operator as its attention; float32, batches as they are.

    Attributes:
        choices: per layer the discrete choice that its attention is to take, as `Judge.operator` returns it (for MRA
            the selected blocks, bool [batch, num_heads, blocks, blocks]), or None.
    """

    def __init__(self, checkpoint: Checkpoint, modules: Sequence[Module] = ()) -> None:
        from mra_export.checkpoint.load import share_weights

        super().__init__(checkpoint, share_weights(checkpoint.model), modules)
        self.name = "specification"
        self.choices: list[Any] | None = None
        self._mask: torch.Tensor | None = None
        self._layers: list[LayerTrace] | None = None
        self._attributes = checkpoint.family.layer_attributes(checkpoint.config)
        checkpoint.family.replace_attention(self.model, self._attend)

    def _attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *constants: torch.Tensor
    ) -> torch.Tensor:
        assert self._mask is not None
        family = self.checkpoint.family
        choice = self.choices[layer] if self.choices is not None else None
        tensors = (query, key, value, *constants)
        context = family.attend(self._attributes[layer], tensors, self._mask, choice)
        if self._layers is not None:
            self._layers.append(LayerTrace(*(t.float().numpy() for t in (query, key, value, context))))
        return context

    def _run(self, inputs: Inputs, layers: list[LayerTrace] | None) -> dict[str, Array]:
        import torch

        mask = torch.from_numpy(inputs["attention_mask"])
        self._mask = mask.reshape(-1, mask.shape[-1])
        self._layers = layers
        try:
            return self._forward(inputs, {}, None)
        finally:
            self._mask = self._layers = None


@contextlib.contextmanager
def _watch(modules: list[tuple[str, Any]], layers: list[LayerTrace] | None) -> Iterator[None]:
    """Appends to `layers` what transformers' attention modules see; does nothing if it is None."""
    if layers is None:
        yield
        return
    handles = []
    for _, module in modules:
        seen: dict[str, Array] = {}

        def keep(name: str, seen: dict[str, Array] = seen) -> Any:
            return lambda _module, _args, out: seen.__setitem__(name, out.float().cpu().numpy())

        def finish(_module: Any, _args: Any, out: Any, seen: dict[str, Array] = seen) -> None:
            layers.append(LayerTrace(seen["query"], seen["key"], seen["value"], out[0].float().cpu().numpy()))

        handles += [getattr(module, name).register_forward_hook(keep(name)) for name in ("query", "key", "value")]
        handles.append(module.register_forward_hook(finish))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
