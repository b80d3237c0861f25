"""Converts a float32 export to float16 or bfloat16, where there is no checkpoint at hand to export again, and proves the result.

What comes out is what an export in that type gives: ids int64, outputs float32, pooling in float32, and everything before it
in the half type. The attention nodes and their function bodies follow the type of their inputs.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.dtypes import MASKED, dtype_of_onnx, onnx_type
from mra_export.errors import InputError
from mra_export.export.onnx_model import EXTERNAL_DATA_THRESHOLD, read_onnx

if TYPE_CHECKING:
    from mra_export.export.onnx_model import OnnxModel
    from mra_export.trace import Array

__all__ = ["convert"]

LARGEST_FLOAT16 = 65504.0

_LARGEST_CONSTANT = 16
"""Elements of an initializer that is a constant of the graph (an axis, an epsilon) and no weight."""


def convert(model: OnnxModel, dtype: str, target: Path) -> OnnxModel:
    """Writes a float32 export in a half type.

    Args:
        model: the export; fp32.
        dtype: "fp16" or "bf16".
        target: the file to write.

    Returns:
        The written file.

    Raises:
        InputError: the file is not float32, has a weight that float16 cannot hold, or an operator that has no half type.
    """
    import onnx
    from onnx import TensorProto

    if model.dtype != "fp32":
        raise InputError(f"{model.path} is {model.dtype}; only fp32 is converted, what was rounded once stays so.")
    half = onnx_type(dtype)
    proto = onnx.load(str(model.path))
    graph = proto.graph
    floats = _float_values(proto)
    kept = _kept_nodes(graph)
    users: dict[str, set[bool]] = defaultdict(set)  # initializer -> whether its users are kept in float32
    for index, node in enumerate(graph.node):
        for name in node.input:
            users[name].add(index in kept)

    renamed: dict[str, str] = {}  # float32 initializer -> its half copy
    for initializer in list(graph.initializer):
        if initializer.data_type != TensorProto.FLOAT or False not in users[initializer.name]:
            continue
        converted = _converted(initializer, half)
        if True in users[initializer.name]:
            converted.name = renamed[initializer.name] = f"{initializer.name}_{dtype}"
            graph.initializer.append(converted)
        else:
            initializer.CopyFrom(converted)

    outputs = {value.name for value in graph.output if value.name in floats}
    nodes: list[Any] = []
    widened: dict[str, str] = {}  # half value -> its float32 copy, for what is kept
    produced_half: set[str] = set()
    for index, node in enumerate(graph.node):
        if index in kept:
            for position, name in enumerate(node.input):
                if name in produced_half:
                    if name not in widened:
                        widened[name] = f"{name}_fp32"
                        nodes.append(_cast(name, widened[name], TensorProto.FLOAT))
                    node.input[position] = widened[name]
            nodes.append(node)
            continue
        node.input[:] = [renamed.get(name, name) for name in node.input]
        _convert_attributes(node, half, model)
        nodes.append(node)
        for position, name in enumerate(node.output):
            if name in outputs:
                node.output[position] = f"{name}_{dtype}"
                nodes.append(_cast(node.output[position], name, TensorProto.FLOAT))
            elif name in floats:
                produced_half.add(name)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(copies)
    for entry in proto.metadata_props:
        if entry.key == "dtype":
            entry.value = dtype
    _save(proto, target)
    try:
        onnx.checker.check_model(str(target), full_check=True)
    except Exception as error:
        raise InputError(
            f"{model.path} cannot be converted to {dtype}: {str(error).splitlines()[0]} Export the checkpoint again with "
            f"`mra-export onnx CHECKPOINT --dtype {dtype}`."
        ) from error
    return read_onnx(target)


def _float_values(proto: Any) -> set[str]:
    """The names of all float32 values."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(_without_weights(proto)).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}


def _without_weights(proto: Any) -> Any:
    """A copy whose large weights are inputs: shape inference works on a serialized model, which ends at 2 GB."""
    import onnx

    light = onnx.ModelProto(ir_version=proto.ir_version)
    light.opset_import.extend(proto.opset_import)
    light.functions.extend(proto.functions)
    light.graph.name = proto.graph.name
    for field in ("node", "input", "output", "value_info"):
        getattr(light.graph, field).extend(getattr(proto.graph, field))
    for initializer in proto.graph.initializer:
        if len(initializer.raw_data) < 1024:
            light.graph.initializer.append(initializer)
        else:
            info = onnx.helper.make_tensor_value_info(initializer.name, initializer.data_type, list(initializer.dims))
            light.graph.input.append(info)
    return light


def _kept_nodes(graph: Any) -> set[int]:
    """Indices of the nodes that stay float32: what is computed from outputs (pooling), and what only that needs (its mask)."""
    from_outputs = {value.name for value in graph.output}
    kept: set[int] = set()
    for index, node in enumerate(graph.node):  # in topological order
        if from_outputs & set(node.input):
            kept.add(index)
            from_outputs |= set(node.output)
    consumers: dict[str, list[int]] = defaultdict(list)
    for index, node in enumerate(graph.node):
        for name in node.input:
            consumers[name].append(index)
    graph_outputs = {value.name for value in graph.output}
    weightless = _weightless(graph)
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        users = [user for name in node.output for user in consumers[name]]
        is_only_for_kept = bool(users) and kept.issuperset(users) and not graph_outputs & set(node.output)
        # Not what the model computes, although the last of it may serve pooling alone.
        if is_only_for_kept and weightless.issuperset(node.output):
            kept.add(index)
    return kept


def _weightless(graph: Any) -> set[str]:
    """The values that are computed from the inputs without any weight: the mask in its various forms."""
    found = {value.name for value in graph.input} | {""}
    found |= {i.name for i in graph.initializer if int(np.prod(i.dims)) <= _LARGEST_CONSTANT}
    for node in graph.node:
        if found.issuperset(node.input):
            found |= set(node.output)
    return found


def _converted(tensor: Any, half: int) -> Any:
    """A float32 tensor in a half type.

    Raises:
        InputError: a value is beyond float16.
    """
    import ml_dtypes
    from onnx import TensorProto, numpy_helper

    values: Array = numpy_helper.to_array(tensor)
    if values.size == 1 and values.item() == np.float32(MASKED["fp32"]):  # stands for minus infinity
        values = np.full_like(values, MASKED[str(dtype_of_onnx(half))])
    if half == TensorProto.FLOAT16:
        largest = float(np.abs(values).max(initial=0.0))
        if largest > LARGEST_FLOAT16:
            raise InputError(
                f"The weight {tensor.name} has a value of {largest:.3g}, and float16 ends at {LARGEST_FLOAT16:.0f}. Use --bf16."
            )
        return numpy_helper.from_array(values.astype(np.float16), tensor.name)
    return numpy_helper.from_array(values.astype(ml_dtypes.bfloat16), tensor.name)


def _convert_attributes(node: Any, half: int, model: OnnxModel) -> None:
    """The type that a node names, or makes its constant of."""
    from onnx import TensorProto, helper

    if node.op_type == "Constant":
        for attribute in node.attribute:
            if attribute.name in ("value_float", "value_floats"):
                value = helper.get_attribute_value(attribute)
                dims = [len(value)] if attribute.name.endswith("s") else []
                tensor = helper.make_tensor("", TensorProto.FLOAT, dims, value if dims else [value])
                attribute.CopyFrom(helper.make_attribute("value", tensor))
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT:
            attribute.i = half
        if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_converted(attribute.t, half))
        if attribute.HasField("g") or attribute.graphs:
            raise InputError(
                f"{model.path}: the node {node.name} has a graph of its own, which is not converted. Export again."
            )


def _cast(source: str, target: str, kind: int) -> Any:
    from onnx import helper

    return helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=kind)


def _save(proto: Any, target: Path) -> None:
    import onnx

    size = sum(len(initializer.raw_data) for initializer in proto.graph.initializer)
    external = size > EXTERNAL_DATA_THRESHOLD
    location = f"{target.name}_data" if external else None
    try:
        onnx.save(proto, str(target), save_as_external_data=external, location=location)
    except OSError as error:
        raise InputError(
            f"{target} could not be written: {error.strerror or error}. Free some space, or set TMPDIR to a larger folder."
        ) from error
