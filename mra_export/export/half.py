"""Converts a float32 export to float16 or bfloat16, where there is no checkpoint at hand to export again.

What comes out is what an export in that type gives: ids int64, outputs float32, pooling in float32, and everything before it
in the half type. The attention nodes and their function bodies follow the type of their inputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.dtypes import DTYPES, MASKED
from mra_export.errors import InputError
from mra_export.export.onnx_model import OnnxModel, read_onnx, save_program

if TYPE_CHECKING:
    import onnx_ir as ir


__all__ = ["LARGEST_FLOAT16", "convert", "too_small", "weightless_values"]

LARGEST_FLOAT16 = 65504.0
MOST_LOST = 0.01
"""Share of a tensor's values that may become 0 in float16 without a word; of weights around 0.02 it is one in a million."""
LARGEST_LOSS = 1e-3
"""Relative error that a tensor may have in float16 without a word; rounding alone gives 2e-4."""

_LARGEST_CONSTANT = 16
"""Elements of an initializer that is a constant of the graph (an axis, an epsilon) and no weight."""


def convert(model: OnnxModel, dtype: str, target: Path, *, lost: list[str] | None = None) -> OnnxModel:
    """Writes a float32 export in a half type.

    Args:
        model: the export; fp32.
        dtype: "fp16" or "bf16".
        target: the file to write.
        lost: takes what `too_small` says of weights and constants.

    Returns:
        The written file.

    Raises:
        InputError: the file is not float32, has a weight that float16 cannot hold, or an operator that has no half type.
    """
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes.common import ShapeInferencePass

    if model.precision != "fp32":
        raise InputError(f"{model.path} is {model.precision}; only fp32 is converted, what was rounded once stays so.")
    program = ir.load(model.path)
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(program)
    graph = program.graph
    kept = _kept_nodes(graph)
    lost = lost if lost is not None else []
    _convert_weights(graph, kept, dtype, lost)
    half = ir.DataType[DTYPES[dtype].onnx]
    narrow: set[ir.Value] = set()  # computed in the half type
    widened: dict[ir.Value, ir.Value] = {}  # the same in float32, for what is kept
    for node in list(graph):
        if node in kept:
            for index, value in enumerate(node.inputs):
                if value in narrow:
                    if value not in widened:
                        widened[value] = _cast(f"{value.name}_fp32", value)
                        graph.insert_before(node, _producer(widened[value]))
                    node.replace_input_with(index, widened[value])
            continue
        _convert_attributes(node, dtype, model, lost)
        for value in node.outputs:
            if value.dtype != ir.DataType.FLOAT:
                continue
            value.dtype = half
            if value.is_graph_output():
                name, value.name = value.name, f"{value.name}_{dtype}"
                wide = _cast(str(name), value)
                ir.convenience.replace_all_uses_with(value, wide, replace_graph_outputs=True)
                _producer(wide).replace_input_with(0, value)
                graph.insert_after(node, _producer(wide))
            else:
                narrow.add(value)
    program.metadata_props["dtype"] = dtype
    try:
        save_program(program, target)
    except OSError as error:
        raise InputError(
            f"{target} could not be written: {error.strerror or error}. Free some space, or set TMPDIR to a larger folder."
        ) from error
    try:
        onnx.checker.check_model(str(target), full_check=True)
    except Exception as error:
        raise InputError(
            f"{model.path} cannot be converted to {dtype}: {str(error).splitlines()[0]} Export the checkpoint again with "
            f"`mra-export onnx CHECKPOINT --dtype {dtype}`."
        ) from error
    return read_onnx(target)


def _kept_nodes(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that stay float32: what is computed from outputs (pooling), and what only that needs (its mask)."""
    kept: set[ir.Node] = set()
    from_outputs = set(graph.outputs)
    for node in graph:  # in topological order
        if from_outputs & set(node.inputs):
            kept.add(node)
            from_outputs |= set(node.outputs)
    weightless = weightless_values(graph)
    for node in reversed(graph):
        users = [use.node for value in node.outputs for use in value.uses()]
        is_only_for_kept = bool(users) and kept.issuperset(users) and not any(v.is_graph_output() for v in node.outputs)
        # Not what the model computes, although the last of it may serve pooling alone.
        if is_only_for_kept and weightless.issuperset(node.outputs):
            kept.add(node)
    return kept


def weightless_values(graph: ir.Graph) -> set[ir.Value | None]:
    """What is computed from the inputs without any weight, the mask in its various forms; with inputs and constants."""
    found: set[ir.Value | None] = {*graph.inputs, None}
    found |= {v for v in graph.initializers.values() if v.const_value.size <= _LARGEST_CONSTANT}  # type: ignore[union-attr]
    for node in graph:  # in topological order
        if found.issuperset(node.inputs):
            found |= set(node.outputs)
    return found


def too_small(name: str, values: np.ndarray[Any, Any]) -> str | None:
    """What float16 loses of a tensor because it is so small, in words; None where that is next to nothing.

    Args:
        name: of the tensor.
        values: float32 or float64.
    """
    flat = values.reshape(-1)
    largest = float(np.abs(flat).max(initial=0.0))
    if not 0.0 < largest <= LARGEST_FLOAT16:  # all 0, or refused elsewhere
        return None
    flushed, used, error, norm = 0, 0, 0.0, 0.0
    for start in range(0, flat.size, 1 << 20):
        part = flat[start : start + (1 << 20)].astype(np.float32)
        half = part.astype(np.float16).astype(np.float32)
        used += int(np.count_nonzero(part))
        flushed += int(np.count_nonzero(part)) - int(np.count_nonzero(half))
        error += float(np.square((part - half) / largest, dtype=np.float64).sum())
        norm += float(np.square(part / largest, dtype=np.float64).sum())
    loss = float(np.sqrt(error / norm))
    if flushed <= MOST_LOST * used and loss <= LARGEST_LOSS:
        return None
    return f"{name} (largest {largest:.1e}; {flushed} of {used} values become 0, relative error {loss:.1%})"


def _convert_weights(graph: ir.Graph, kept: set[ir.Node], dtype: str, lost: list[str]) -> None:
    """Float32 initializers in the half type; one that a kept node takes too gets a copy instead."""
    import onnx_ir as ir

    for value in list(graph.initializers.values()):
        uses = [use for use in value.uses() if use.node not in kept]
        if value.dtype != ir.DataType.FLOAT or not uses:
            continue
        converted = _converted(value.const_value, str(value.name), dtype, lost)
        if len(uses) == len(value.uses()):
            value.const_value, value.dtype = converted, converted.dtype
            continue
        name = f"{value.name}_{dtype}"
        copy = ir.Value(name=name, type=ir.TensorType(converted.dtype), shape=value.shape, const_value=converted)
        graph.initializers[name] = copy
        for use in uses:
            use.node.replace_input_with(use.idx, copy)


def _converted(tensor: Any, name: str, dtype: str, lost: list[str]) -> ir.Tensor[Any]:
    """A float32 tensor in a half type; `lost` takes what is too small for it.

    Raises:
        InputError: a value is beyond float16.
    """
    import onnx_ir as ir

    values = tensor.numpy()
    if values.size == 1 and values.item() == np.float32(MASKED["fp32"]):  # stands for minus infinity
        values = np.full_like(values, MASKED[dtype])
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
    if dtype == "fp16" and largest > LARGEST_FLOAT16:
        raise InputError(
            f"The weight {name} has a value of {largest:.3g}, and float16 ends at {LARGEST_FLOAT16:.0f}. Use --bf16."
        )
    if dtype == "fp16" and (words := too_small(name, values)):
        lost.append(words)
    half = ir.DataType[DTYPES[dtype].onnx]
    return ir.Tensor(values.astype(half.numpy()), dtype=half, name=name)


def _convert_attributes(node: ir.Node, dtype: str, model: OnnxModel, lost: list[str]) -> None:
    """The type that a node names, or makes its constant of."""
    import onnx_ir as ir

    for name, attribute in list(node.attributes.items()):
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            raise InputError(
                f"{model.path}: the node {node.name} has a graph of its own, which is not converted. Export again."
            )
        if name in ("to", "dtype") and attribute.value == ir.DataType.FLOAT:
            node.attributes[name] = ir.AttrInt64(name, ir.DataType[DTYPES[dtype].onnx])
        elif node.op_type == "Constant" and name in ("value_float", "value_floats"):
            del node.attributes[name]
            tensor = ir.tensor(np.asarray(attribute.value, np.float32))
            node.attributes["value"] = ir.AttrTensor("value", _converted(tensor, str(node.name), dtype, lost))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == ir.DataType.FLOAT:
            node.attributes[name] = ir.AttrTensor(name, _converted(attribute.value, str(node.name), dtype, lost))


def _cast(name: str, value: ir.Value) -> ir.Value:
    """A value in float32, from a node of its own that is not in a graph yet."""
    import onnx_ir as ir

    made = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=value.shape)
    node = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, outputs=[made], name=f"{name}_cast")
    return node.outputs[0]


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node
