"""A graph of opset 18, the oldest that torch's exporter writes, in opset 17: for ONNX Runtime from 1.17 on and older servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mra_export.errors import InputError

if TYPE_CHECKING:
    import onnx_ir


__all__ = ["to_opset_17"]

_AXES_AS_INPUT = frozenset(
    f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
)
"""Operators whose axes became an input with opset 18."""
_NEW = frozenset(("BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "CenterCropPad", "Col2Im", "Mish"))
"""Operators that came with opset 18."""


def to_opset_17(model: onnx_ir.Model) -> None:
    """Writes the nodes of a graph as opset 17 has them, and notes that opset.

    Args:
        model: of opset 18; its function bodies are left as they are.

    Raises:
        InputError: it uses what opset 17 does not have.
    """
    import onnx_ir as ir

    for node in model.graph:
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type in _NEW or (node.op_type == "Pad" and len(node.inputs) > 3 and node.inputs[3] is not None):
            raise InputError(f"The model needs {node.op_type} of opset 18. Export it with --opset 18 or newer.")
        if node.op_type == "Split":
            node.attributes.pop("num_outputs", None)  # equal parts, as many as there are outputs
        if node.op_type in _AXES_AS_INPUT:
            node.attributes.pop("noop_with_empty_axes", None)
            axes = node.inputs[1] if len(node.inputs) > 1 else None
            if axes is None:
                continue
            constant = ir.convenience.get_const_tensor(axes)
            if constant is None:
                raise InputError(f"The model computes the axes of {node.op_type}, which opset 17 cannot.")
            node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in constant.numpy().reshape(-1)])
            node.resize_inputs(1)
    model.graph.opset_imports[""] = 17
