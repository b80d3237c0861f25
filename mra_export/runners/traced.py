"""Exported files whose attention layers can be seen, and their operator alone."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.dtypes import onnx_type
from mra_export.export.onnx_model import beside_weights
from mra_export.trace import Array, LayerTrace, Trace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mra_export.export.onnx_model import OnnxModel
    from mra_export.families._base import OnnxLayer

__all__ = ["operator_feeds", "operator_model", "operator_note", "split_trace", "traceable"]


def operator_feeds(tensors: Sequence[Array], mask: Array, kind: Any) -> dict[str, Array]:
    """The inputs of `Family.operator_model` from query, key, value and the mask."""
    feeds = {name: tensor.astype(kind) for name, tensor in zip(("query", "key", "value"), tensors, strict=True)}
    return {**feeds, "attention_mask": mask.astype(np.int32)}


def operator_note(operator: str, model: OnnxModel) -> str:
    """How the custom operator is computed, for the name of a runner; nothing where the file has none."""
    return f" ({operator})" if model.nodes else ""


def operator_model(model: OnnxModel, attributes: Any, tensors: Sequence[Array], dtype: str) -> Any:
    """The one node of a file's operator with the file's own function bodies, or None."""
    return model.family.operator_model(attributes, tensors[0].shape[2], dtype, model.opset, model.functions)


def split_trace(model: OnnxModel, named: dict[str, Array]) -> Trace:
    """The outputs of a `traceable` file, by name, as the model's own outputs and what its layers saw."""
    layers = [LayerTrace(*(named[name] for name in _layer_values(layer))) for layer in model.layers]
    return Trace({name: named[name] for name in model.outputs}, layers)


def _layer_values(layer: OnnxLayer) -> tuple[str, ...]:
    return layer.query, layer.key, layer.value, layer.context


@contextlib.contextmanager
def traceable(model: OnnxModel) -> Iterator[Path]:
    """A temporary copy of a model whose attention nodes' inputs and outputs are outputs of the graph."""
    import onnx

    outputs = model.proto.graph.output
    own = len(outputs)
    present = {o.name for o in outputs}
    with contextlib.ExitStack() as stack:
        try:
            for name in dict.fromkeys(name for layer in model.layers for name in _layer_values(layer)):
                if name not in present:
                    outputs.append(onnx.helper.make_tensor_value_info(name, onnx_type(model.dtype), None))
            path = stack.enter_context(beside_weights(model, model.proto))
        finally:
            del outputs[own:]
        yield path
