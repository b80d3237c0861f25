"""Softmax attention as standard operators computes what the specification does, and its tensors can be found by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from mra_export.dtypes import MASKED
from mra_export.operators.softmax_attention.lowering import lower
from mra_export.operators.softmax_attention.reference import softmax_attention
from mra_export.operators.softmax_attention.spec import DenseAttentionAttributes

HIDDEN, LAYERS = 24, 2


def lowered(opset: int, attributes: DenseAttentionAttributes, kind: ir.DataType = ir.DataType.FLOAT) -> ir.Model:
    """Two layers of attention, each on sums of the one before it and its own inputs."""

    def value(name: str, type: ir.DataType = kind, *shape: Any) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(type), shape=ir.Shape(shape or ("batch", "sequence", HIDDEN)))

    x, mask = value("x"), value("mask", ir.DataType.INT32, "batch", "sequence")
    inputs, nodes, attention = [x, mask], [], []
    for index in range(LAYERS):
        own = [value(f"{name}{index}") for name in "abc"]
        inputs += own
        sums = [ir.node("Add", [x, each]) for each in own]
        made = ir.node("Own", [*(node.outputs[0] for node in sums), mask], domain="own")
        for each in (*sums, made):
            each.outputs[0].type, each.outputs[0].shape = x.type, x.shape
        x = made.outputs[0]
        nodes += [*sums, made]
        attention.append(made)
    last = ir.node("Identity", [x])
    last.outputs[0].name, last.outputs[0].type, last.outputs[0].shape = "y", x.type, x.shape
    graph = ir.Graph(inputs, last.outputs, nodes=[*nodes, last], opset_imports={"": opset}, name="g")
    lower(graph, attention, attributes, opset)
    return ir.Model(graph, ir_version=8 if opset < 23 else 11)


def random(seq_len: int, mask: Any) -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    names = ["x", *(f"{name}{index}" for index in range(LAYERS) for name in "abc")]
    return {
        "mask": np.array(mask, np.int32),
        **{name: generator.standard_normal((len(mask), seq_len, HIDDEN)).astype(np.float32) for name in names},
    }


@pytest.mark.parametrize("is_causal", [0, 1])
@pytest.mark.parametrize("opset", [18, 22, 23])
def test_it_computes_what_the_specification_does(opset: int, is_causal: int) -> None:
    attributes = DenseAttentionAttributes(3, is_causal, 0.25)
    proto = ir.serde.serialize_model(lowered(opset, attributes))
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    for mask in ([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 1]], [[1]]):
        given = random(len(mask[0]), mask)
        tensors = {name: torch.from_numpy(each) for name, each in given.items()}
        x = tensors["x"]
        for index in range(LAYERS):
            x = softmax_attention(*(x + tensors[f"{name}{index}"] for name in "abc"), tensors["mask"], attributes)
        np.testing.assert_allclose(session.run(None, given)[0], x.numpy(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("opset", [18, 23])
def test_tensors_have_the_names_by_which_they_are_found(opset: int) -> None:
    graph = lowered(opset, DenseAttentionAttributes(3, 0, 0.25)).graph
    kinds = [node.op_type for node in graph]
    assert "Own" not in kinds
    assert kinds.count("Where") == 1  # one mask for all layers
    values = {value.name: value for node in graph for value in node.outputs}
    for index in range(LAYERS):
        for kind in ("query", "key", "value"):
            node = values[f"layer.{index}.{kind}"].producer()
            assert node is not None
            assert node.inputs[1].name == {"query": "a", "key": "b", "value": "c"}[kind] + str(index)
        context = values[f"layer.{index}.context"]
        assert (context.dtype, list(context.shape or ())[2]) == (ir.DataType.FLOAT, HIDDEN)
    names = [node.name for node in graph if node.name and node.name.startswith("layer.")]
    parts = ("Attention",) if opset == 23 else ("logits", "softmax", "mix")
    assert names == [f"layer.{index}.{part}" for index in range(LAYERS) for part in parts]


@pytest.mark.parametrize(("kind", "dtype"), [(ir.DataType.FLOAT16, "fp16"), (ir.DataType.BFLOAT16, "bf16")])
def test_constants_are_of_the_type_of_the_model(kind: ir.DataType, dtype: str) -> None:
    graph = lowered(18, DenseAttentionAttributes(3, 0, 0.25), kind).graph
    found = [each.const_value for each in graph.initializers.values()]
    assert all(value is not None for value in found)
    numbers = {float(value.numpy()) for value in found if value is not None and value.dtype == kind}
    assert numbers == {0.0, 0.25, MASKED[dtype]}
    assert {value.dtype for value in found if value is not None} == {kind, ir.DataType.INT64}
    assert len({each.name for each in graph.initializers.values()}) == len(found)
