"""Weights of an OpenVINO model in a smaller type, in the forms that the CPU plugin computes with without unpacking them first."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DYNAMIC_GROUP", "round_to_bfloat16", "to_bfloat16", "to_int8"]

Array = np.ndarray[Any, Any]

DYNAMIC_GROUP = 128
"""Numbers of an activation that share a scale where weights are int8. Without a finite number the plugin computes in float."""

_ENCODER_LAYER = re.compile(r"\blayer\.\d+\.")
"""In the name of a node of the encoder, as transformers names its modules."""


def to_bfloat16(model: Any) -> int:
    """Stores the matrices that products and look-ups read as bfloat16, and has them widened where they are read.

    Args:
        model: `openvino.Model`, changed in place.

    Returns:
        How many there were.
    """
    from openvino import Type
    from openvino import opset13 as ops

    count = 0
    for constant, readers in list(_matrices(model, {"MatMul": 1, "Gather": 0})):
        stored = _constant(round_to_bfloat16(constant.data), constant.get_friendly_name(), Type.bf16)
        widened = ops.convert(stored, "f32")
        for reader in readers:
            reader.replace_source_output(widened.output(0))
        count += 1
    return count


def to_int8(model: Any) -> int:
    """Stores the weights of the encoder's linear layers as int8 with one scale an output column.

    Compiled with DYNAMIC_QUANTIZATION_GROUP_SIZE, which is written into the model, the plugin rounds what the layers read to int8
    as it goes, in groups of `DYNAMIC_GROUP` numbers of a token, and multiplies in int8.

    Args:
        model: `openvino.Model`, changed in place.

    Returns:
        How many there were.

    Raises:
        InputError: it has no linear layers that are known here.
    """
    from openvino import opset13 as ops

    count = 0
    for constant, readers in list(_matrices(model, {"MatMul": 1})):
        inside = [reader for reader in readers if _ENCODER_LAYER.search(reader.get_node().get_friendly_name())]
        if len(inside) < len(readers):
            continue
        weight, name = constant.data, constant.get_friendly_name()
        scale = np.maximum(np.abs(weight).max(axis=0, keepdims=True), np.float32(1e-30)) / np.float32(127)
        whole = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
        scaled = ops.multiply(
            ops.convert(_constant(whole, name), "f32"), _constant(scale.astype(np.float32), f"{name}.scale")
        )
        for reader in inside:
            reader.replace_source_output(scaled.output(0))
        count += 1
    if not count:
        raise InputError(
            "The model has no linear layers in an encoder that are known here. Export the checkpoint again."
        )
    model.set_rt_info(str(DYNAMIC_GROUP), ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
    return count


def round_to_bfloat16(values: Array) -> Array:
    """float32 rounded to the nearest bfloat16, ties to even; its bits as uint16. OpenVINO's own conversion rounds otherwise."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _matrices(model: Any, readers: dict[str, int]) -> Iterator[tuple[Any, list[Any]]]:
    """Float32 matrices that are read by these types of nodes only, each at this input; and the inputs that read them."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or len(node.shape) != 2 or node.get_element_type().to_string() != "f32":
            continue
        found = list(node.output(0).get_target_inputs())
        if found and all(readers.get(i.get_node().get_type_name()) == i.get_index() for i in found):
            yield node, found


def _constant(values: Array, name: str, kind: Any = None) -> Any:
    """A constant of an array; with a type, of the bits of that type."""
    from openvino import Tensor
    from openvino import opset13 as ops

    if kind is None:
        made = ops.constant(values)
    else:
        tensor = Tensor(kind, values.shape)
        tensor.data.view(values.dtype)[...] = values
        made = ops.constant(tensor)
    made.set_friendly_name(name)
    return made
