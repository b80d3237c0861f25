"""A float16 file computed in float32, with the largest absolute value of each of its half tensors as an output.

A CPU says nothing of float16's range: ONNX Runtime computes half types in float32 there, from node to node. So the file's graph is
written once more in float32, and every tensor that is float16 in the file gets a probe. Inside an attention node there is nothing
to probe but its inputs and its context: kernels and function bodies add up in float32, and keep in a half type only weights of at
most 1 (docs/operators).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mra_export.export.half import weightless_values
from mra_export.export.onnx_model import OnnxModel, save_program

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Probe", "write_probed"]

_MOVES = frozenset(
    ("Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
)
"""Operators whose results are values of their first input, which has a probe of its own, or is a weight that the file holds."""
_SATURATING = frozenset(("Erf", "HardSigmoid", "Sigmoid", "Tanh"))
"""Operators to which infinity is as good as any large number."""
_SCALING = frozenset(("Add", "Cast", "Div", "Mul", "Reshape", "Sub", "Transpose"))
"""Operators that keep it infinite, with a constant as the other input."""


@dataclass(frozen=True)
class Probe:
    """One output of a probed file.

    Attributes:
        output: its name; float32, a scalar.
        layer: where the tensor is, as in "layer 1" or "embeddings".
        tensor: what it is, as in "intermediate.dense" or "Gelu after intermediate.dense".
    """

    output: str
    layer: str
    tensor: str


def write_probed(model: OnnxModel, target: Path) -> list[Probe]:
    """Writes a float16 file's graph in float32, with a probe for each tensor that is float16 in the file.

    Args:
        model: the file; fp16.
        target: the file to write; its only outputs are the probes.

    Returns:
        The probes, in the order in which the tensors are computed.
    """
    import onnx_ir as ir
    from onnx_ir.external_data import set_base_dir
    from onnx_ir.passes.common import ShapeInferencePass

    program = ir.serde.deserialize_model(model.proto)
    set_base_dir(program.graph, str(model.path.parent))
    graph = program.graph
    if any(value.dtype is None for node in graph for value in node.outputs if value.name):
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(program)
    labels = _labels(graph, model)
    wanted = _wanted(graph)
    _widen(graph)
    graph.outputs.clear()
    probes: list[Probe] = []
    for value in wanted:
        layer, tensor = labels[value]
        probes.append(_add_probe(graph, value, f"probe_{len(probes)}", layer, tensor))
    for node in list(graph):
        if (node.domain, node.op_type) == ("", "Attention"):  # its logits, which runtimes may hold in the half type
            node.resize_outputs(4)
            _, present_key, present_value, logits = node.outputs
            present_key.name = present_value.name = ""  # left out
            logits.name, logits.type = f"{node.outputs[0].name}_logits", ir.TensorType(ir.DataType.FLOAT)
            layer, _ = labels[node.outputs[0]]
            probes.append(_add_probe(graph, logits, f"probe_{len(probes)}", layer, "attention logits"))
    save_program(program, target)
    return probes


def _add_probe(graph: ir.Graph, value: ir.Value, name: str, layer: str, tensor: str) -> Probe:
    import onnx_ir as ir

    absolute = ir.node("Abs", [value], name=f"{name}_abs")
    largest = ir.node("ReduceMax", absolute.outputs, {"keepdims": 0}, name=name)
    absolute.outputs[0].name = f"{name}_abs"
    made = largest.outputs[0]
    made.name, made.type, made.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(())
    graph.extend((absolute, largest))
    graph.outputs.append(made)
    return Probe(name, layer, tensor)


def _wanted(graph: ir.Graph) -> list[ir.Value]:
    """The float16 tensors that can be too large."""
    import onnx_ir as ir

    weightless = weightless_values(graph)
    harmless = _harmless(graph, weightless)
    found = []
    for node in graph:
        if node.op_type in _MOVES and node.domain == "":
            continue
        if node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.FLOAT16:
            continue
        # The mask, alone and added to logits: large on purpose, and the logits have a probe.
        is_masked = node.op_type == "Add" and any(
            value in weightless and not _is_constant(value) for value in node.inputs
        )
        if is_masked or weightless.issuperset(node.inputs):
            continue
        found += [v for v in node.outputs if v.dtype == ir.DataType.FLOAT16 and v not in harmless]
    return found


def _harmless(graph: ir.Graph, weightless: set[ir.Value | None]) -> set[ir.Value]:
    """Tensors that only go into operators to which infinity is as good as any large number, as the cube in a GELU by tanh."""
    found: set[ir.Value] = set()
    for node in reversed(graph):
        for value in node.outputs:
            uses = value.uses()
            if uses and not value.is_graph_output() and all(_bears_infinity(use.node, value, found) for use in uses):
                found.add(value)
    return found


def _bears_infinity(node: ir.Node, value: ir.Value, harmless: set[ir.Value]) -> bool:
    if node.op_type in _SATURATING:
        return True
    if node.op_type not in _SCALING or not harmless.issuperset(node.outputs):
        return False
    others = [each for each in node.inputs if each is not value and each is not None]
    if node.op_type in ("Add", "Sub"):  # two that are infinite could cancel
        return len(others) == 1 and not harmless.issuperset(others)
    return all(_is_constant(each) for each in others)


def _is_constant(value: ir.Value | None) -> bool:
    if value is None:
        return True
    producer = value.producer()
    return value.is_initializer() or (producer is not None and producer.op_type == "Constant")


def _widen(graph: ir.Graph) -> None:
    """Float16 becomes float32 all over a graph."""
    import onnx_ir as ir

    half, full = ir.DataType.FLOAT16, ir.DataType.FLOAT

    def wide(tensor: ir.TensorProtocol) -> ir.Tensor[np.ndarray]:
        return ir.Tensor(tensor.numpy().astype(np.float32), dtype=full, name=tensor.name)

    for value in (*graph.inputs, *graph.initializers.values()):
        if value.dtype == half:
            value.dtype = full
            if value.const_value is not None:
                value.const_value = wide(value.const_value)
    for node in graph:
        for name, attribute in list(node.attributes.items()):
            if name in ("to", "dtype") and attribute.value == half:
                node.attributes[name] = ir.AttrInt64(name, full)
            elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == half:
                node.attributes[name] = ir.AttrTensor(name, wide(attribute.value))
        for value in node.outputs:
            if value.dtype == half:
                value.dtype = full


_LAYER = re.compile(r"(?:^|\.)layer\.(\d+)\.(.+)$")
_PARAMETER = re.compile(r"\.(?:weight|bias)(?:_fp16)?$")
_OPERATION = re.compile(r"\.([A-Z]\w*?)(?:_\d+)?$")
_OF_A_MODULE = frozenset(("Add", "Conv", "Gather", "Gemm", "LayerNormalization", "MatMul"))
"""With a constant they are what their module is called for."""


def _labels(graph: ir.Graph, model: OnnxModel) -> dict[ir.Value, tuple[str, str]]:
    """Layer and tensor of every value: by the name of its node, or by the parameters that it is computed with."""
    contexts = {layer.context: f"layer {index}" for index, layer in enumerate(model.layers)}
    last: dict[ir.Value, tuple[str, str]] = {}  # layer and tensor before operators without a name
    labels: dict[ir.Value, tuple[str, str]] = {}
    for node in graph:
        layer = next((contexts[str(v.name)] for v in node.outputs if v.name in contexts), None)
        own = (layer, "attention context") if layer else _by_name(node) or _by_parameter(node)
        before = next((last[value] for value in node.inputs if value in last), ("inputs", ""))
        after = f"{node.op_type} after {before[1]}" if before[1] else node.op_type
        for value in node.outputs:
            last[value] = own or before
            labels[value] = own or (before[0], after)
    return labels


def _by_name(node: ir.Node) -> tuple[str, str] | None:
    """As the exporter names nodes: the path of the module, then the operator."""
    found = _OPERATION.search(node.name or "")
    if found is None or found[1] != node.op_type:
        return _place(str(node.name)) if _LAYER.search(node.name or "") else None
    layer, module = _place(str(node.name)[: found.start()])
    is_module = node.op_type in _OF_A_MODULE and any(value is not None and _is_constant(value) for value in node.inputs)
    return layer, module if is_module else f"{module} ({node.op_type})"


def _by_parameter(node: ir.Node) -> tuple[str, str] | None:
    """By the first parameter that no other node has: equal ones are one in a file."""
    for value in node.inputs:
        if value is not None and value.is_initializer() and len(value.uses()) == 1:
            name = str(value.name)
            if _PARAMETER.search(name):
                return _place(_PARAMETER.sub("", name).removeprefix("model."))
    return None


def _place(path: str) -> tuple[str, str]:
    """The path of a module as layer and what it is in there."""
    if found := _LAYER.search(path):
        return f"layer {found[1]}", found[2]
    parts = path.split(".")
    start = next((index for index, part in enumerate(parts) if part in ("embeddings", "encoder", "pooler")), 0)
    first, rest = parts[start], ".".join(parts[start + 1 :])
    return (first, rest) if rest else (first if start or first == "embeddings" else "model", first)
