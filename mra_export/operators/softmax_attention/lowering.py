"""Softmax attention as standard ONNX operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mra_export.dtypes import MASKED, dtype_of_onnx
from mra_export.operators.softmax_attention.spec import ATTENTION_OPSET, DenseAttentionAttributes

if TYPE_CHECKING:
    import onnx_ir


__all__ = ["lower"]


def lower(graph: onnx_ir.Graph, nodes: list[onnx_ir.Node], attributes: DenseAttentionAttributes, opset: int) -> None:
    """Writes the operator Attention in the place of each node, or below opset 23 the products and the softmax.

    Args:
        graph: of the model.
        nodes: of the attention layers, first layer first; their inputs are query, key, value and the mask.
        attributes: of all layers.
        opset: of the standard operators.
    """
    import onnx_ir as ir

    dtype = nodes[0].inputs[0].dtype  # type: ignore[union-attr]
    assert dtype is not None
    builder = _Builder(graph, nodes[0], dtype)
    fused = opset >= ATTENTION_OPSET
    bias = _bias(builder, nodes[0].inputs[3], bool(attributes.is_causal), whole=fused)
    for index, node in enumerate(nodes):
        query, key, value = list(node.inputs)[:3]
        context = node.outputs[0]
        builder.before = node
        name = f"layer.{index}"
        if fused:
            heads = attributes.num_heads
            settings = {"q_num_heads": heads, "kv_num_heads": heads, "scale": attributes.scale}
            made = builder.node("Attention", [query, key, value, bias], name=f"{name}.Attention", **settings)
        else:
            made = _plain(builder, query, key, value, bias, attributes, name)
        made.type, made.shape = context.type, context.shape
        ir.convenience.replace_all_uses_with(context, made)
        graph.remove(node, safe=True)
        for each, kind in ((query, "query"), (key, "key"), (value, "value"), (made, "context")):
            each.name = f"{name}.{kind}"  # type: ignore[union-attr]


class _Builder:
    """Appends standard operators to a graph before a node."""

    def __init__(self, graph: onnx_ir.Graph, before: onnx_ir.Node, dtype: onnx_ir.DataType) -> None:
        self.graph, self.before, self.dtype = graph, before, dtype
        self._constants = 0

    def node(self, op_type: str, inputs: list[Any], *, name: str | None = None, **attributes: Any) -> onnx_ir.Value:
        import onnx_ir as ir

        node = ir.node(op_type, inputs, attributes, name=name)
        self.graph.insert_before(self.before, node)
        return node.outputs[0]

    def constant(self, value: Any) -> onnx_ir.Value:
        """A small initializer: int64, or a scalar of the graph's float type."""
        import numpy as np
        import onnx_ir as ir

        name = f"attention_constant_{self._constants}"
        self._constants += 1
        kind = self.dtype if isinstance(value, float) else ir.DataType.INT64
        tensor = ir.tensor(np.asarray(value).astype(kind.numpy()), dtype=kind, name=name)
        made = ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(np.shape(value)), const_value=tensor)
        self.graph.initializers[name] = made
        return made


def _bias(builder: _Builder, mask: Any, is_causal: bool, *, whole: bool) -> onnx_ir.Value:
    """What is added to the logits, once for all layers: 0, or the lowest number where a key has no weight.

    [batch, 1, 1, seq_len], or with `whole` or `is_causal` [batch, 1, seq_len, seq_len]: ONNX Runtime's Attention does not
    broadcast its mask over the queries.
    """
    import onnx_ir as ir

    masked = MASKED[str(dtype_of_onnx(builder.dtype))]
    keep = builder.node("Cast", [mask], to=int(ir.DataType.BOOL))
    keep = builder.node("Unsqueeze", [keep, builder.constant([1, 2])])
    if whole or is_causal:
        length = builder.node("Shape", [mask], start=1, end=2)  # [1]
        if is_causal:
            scalar = builder.node("Squeeze", [length, builder.constant([0])])
            index = builder.node("Range", [builder.constant(0), scalar, builder.constant(1)])
            row = builder.node("Unsqueeze", [index, builder.constant([1])])
            keep = builder.node("And", [keep, builder.node("LessOrEqual", [index, row])])
        else:
            one = builder.constant([1])
            square = builder.node("Concat", [one, one, length, one], axis=0)
            keep = builder.node("Expand", [keep, square])
    return builder.node("Where", [keep, builder.constant(0.0), builder.constant(masked)])


def _plain(
    builder: _Builder, query: Any, key: Any, value: Any, bias: Any, attributes: DenseAttentionAttributes, name: str
) -> onnx_ir.Value:
    """Attention by matrix products and a softmax, in the pattern that runtimes know and fuse."""
    heads = builder.constant([0, 0, attributes.num_heads, -1])
    cut = {}
    for kind, tensor, perm in (("q", query, [0, 2, 1, 3]), ("k", key, [0, 2, 3, 1]), ("v", value, [0, 2, 1, 3])):
        cut[kind] = builder.node("Transpose", [builder.node("Reshape", [tensor, heads])], perm=perm)
    product = builder.node("MatMul", [cut["q"], cut["k"]], name=f"{name}.logits")
    logits = builder.node("Mul", [product, builder.constant(attributes.scale)])
    weight = builder.node("Softmax", [builder.node("Add", [logits, bias])], axis=-1, name=f"{name}.softmax")
    mixed = builder.node("MatMul", [weight, cut["v"]], name=f"{name}.mix")
    joined = builder.node("Transpose", [mixed], perm=[0, 2, 1, 3])
    return builder.node("Reshape", [joined, builder.constant([0, 0, -1])])
