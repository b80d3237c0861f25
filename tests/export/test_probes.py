"""Which tensors of a float16 file get a probe, what they are called, and that the probes give their largest values."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mra_export.export import probes as module
from mra_export.export.half import weightless_values
from mra_export.export.probes import write_probed

WIDTH = 20
"""More than a constant of the graph has elements; see `weightless_values`."""
GENERATOR = np.random.default_rng(0)
WEIGHTS: dict[str, np.ndarray[Any, Any]] = {
    "model.embeddings.word_embeddings.weight": GENERATOR.standard_normal((7, WIDTH)),
    "model.embeddings.LayerNorm.weight": GENERATOR.standard_normal(WIDTH),
    "model.embeddings.LayerNorm.bias": GENERATOR.standard_normal(WIDTH),
    "w0": GENERATOR.standard_normal((WIDTH, WIDTH)),
    "w1": GENERATOR.standard_normal((WIDTH, WIDTH)),
    "model.encoder.layer.1.output.dense.bias_fp16": GENERATOR.standard_normal(WIDTH),
    "one": np.array(1.0),
    "least": np.array(-32752.0),
}
FULL, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def node(operator: str, inputs: str, output: str, name: str = "", **attributes: Any) -> Any:
    return helper.make_node(operator, inputs.split(), output.split(), name, **attributes)


NODES = [
    node("Gather", "model.embeddings.word_embeddings.weight input_ids", "e", "embeddings.word_embeddings.Gather"),
    node(
        "LayerNormalization", "e model.embeddings.LayerNorm.weight model.embeddings.LayerNorm.bias", "n",
        "embeddings.LayerNorm.LayerNormalization",
    ),
    node("MatMul", "n w0", "q", "encoder.layer.0.attention.self.query.MatMul"),
    node("Transpose", "n", "t", "encoder.layer.0.attention.self.Transpose", perm=[0, 2, 1]),
    node("MatMul", "q t", "s", "encoder.layer.0.attention.self.MatMul_2"),
    node("Cast", "attention_mask", "m", to=HALF),
    node("Sub", "one m", "m1"),
    node("Mul", "m1 least", "m2"),
    node("Add", "s m2", "s2", "encoder.layer.0.attention.self.Add"),
    node("Softmax", "s2", "p"),
    node("MatMul", "p n", "context"),
    node("MatMul", "context w1", "d"),
    node("Mul", "d d", "square"),
    node("Tanh", "square", "h"),
    node("Mul", "d h", "k"),
    node("Add", "k model.encoder.layer.1.output.dense.bias_fp16", "o"),
    node("Relu", "o", "r"),
    node("Cast", "r", "wide", "Cast", to=FULL),
    node("Sqrt", "wide", "root"),
    node("Cast", "root", "double", to=TensorProto.DOUBLE),
    node("Cast", "double", "again", "pooler.dense.Cast", to=HALF),
    node("ReduceMax", "again", "y", "classifier.ReduceMax", keepdims=0),
]  # fmt: skip


def model(nodes: list[Any], weights: dict[str, np.ndarray[Any, Any]], *, opset: int = 18, rank: int = 2) -> Any:
    """A float16 file as `read_onnx` gives it, as far as `write_probed` looks at it."""
    tensors = [numpy_helper.from_array(value.astype(np.float16), name) for name, value in weights.items()]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["b", 1, "s"]),
        helper.make_tensor_value_info("x", HALF, ["b", "s", 3, 5][:rank]),
    ]
    used = {name for each in nodes for name in each.input}
    inputs = [each for each in inputs if each.name in used]
    outputs = [helper.make_tensor_value_info(nodes[-1].output[0], HALF, None)]
    made = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    proto = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("own", 1)], ir_version=8
    )
    return SimpleNamespace(proto=proto, path=Path("model.onnx"), layers=[SimpleNamespace(context="context")])


def program(nodes: list[Any], weights: dict[str, np.ndarray[Any, Any]] | None = None) -> ir.Graph:
    return ir.serde.deserialize_model(model(nodes, weights or {}).proto).graph


EXPECTED = [
    ("n", "embeddings", "LayerNorm"),
    ("q", "layer 0", "attention.self.query"),
    ("s", "layer 0", "attention.self (MatMul)"),
    ("p", "layer 0", "Softmax after attention.self (Add)"),
    ("context", "layer 0", "attention context"),
    ("d", "layer 0", "MatMul after attention context"),
    ("h", "layer 0", "Tanh after attention context"),
    ("k", "layer 0", "Mul after attention context"),
    ("o", "layer 1", "output.dense"),
    ("r", "layer 1", "Relu after output.dense"),
    ("again", "pooler", "dense (Cast)"),
    ("y", "model", "classifier (ReduceMax)"),
]


def test_every_tensor_that_may_be_too_large_has_a_probe(tmp_path: Path) -> None:
    """Not what was moved, the mask, logits with the mask, or what a Tanh takes; in the order of computation."""
    given = model(NODES, WEIGHTS)
    before = given.proto.SerializeToString()
    probes = write_probed(given, tmp_path / "probed.onnx")
    assert given.proto.SerializeToString() == before
    told = [(each.layer, each.tensor) for each in probes]
    named = [(layer, tensor) for _, layer, tensor in EXPECTED]
    assert told == named
    assert [each.output for each in probes] == [f"probe_{index}" for index in range(len(probes))]
    proto = onnx.load(tmp_path / "probed.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert [each.name for each in proto.graph.output] == [each.output for each in probes]
    assert {each.type.tensor_type.elem_type for each in proto.graph.output} == {FULL}
    assert HALF not in {each.data_type for each in proto.graph.initializer}

    inputs = {"input_ids": np.array([[1, 2, 6], [0, 3, 3]]), "attention_mask": np.array([[[1, 1, 1]], [[1, 1, 0]]])}
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    found = dict(zip([name for name, *_ in EXPECTED], session.run(None, inputs), strict=True))
    w = {name: value.astype(np.float16).astype(np.float32) for name, value in WEIGHTS.items()}
    e = w["model.embeddings.word_embeddings.weight"][inputs["input_ids"]]
    n = (e - e.mean(-1, keepdims=True)) / np.sqrt(e.var(-1, keepdims=True) + 1e-5)
    n = n * w["model.embeddings.LayerNorm.weight"] + w["model.embeddings.LayerNorm.bias"]
    q = n @ w["w0"]
    s = q @ n.transpose(0, 2, 1)
    masked = s + (1 - inputs["attention_mask"]) * -32752.0
    p = np.exp(masked - masked.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    context = p @ n
    d = context @ w["w1"]
    h = np.tanh(d * d)
    o = d * h + w["model.encoder.layer.1.output.dense.bias_fp16"]
    r = np.maximum(o, 0)
    values = {
        "n": n,
        "q": q,
        "s": s,
        "p": p,
        "context": context,
        "d": d,
        "h": h,
        "k": d * h,
        "o": o,
        "r": r,
        "again": np.sqrt(r),
    }
    for name, value in {**values, "y": np.sqrt(r)}.items():
        np.testing.assert_allclose(found[name], np.abs(value).max(), rtol=1e-4, err_msg=name)


def test_the_logits_of_an_attention_node_have_a_probe(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "q", "encoder.layer.3.query.MatMul"), node("Attention", "q q q", "context")]
    probes = write_probed(model(nodes, {"w": np.ones((5, 5))}, opset=23, rank=4), tmp_path / "probed.onnx")
    assert [(each.layer, each.tensor) for each in probes] == [
        ("layer 3", "query"),
        ("layer 0", "attention context"),
        ("layer 0", "attention logits"),
    ]
    graph = onnx.load(tmp_path / "probed.onnx").graph
    (attention,) = (each for each in graph.node if each.op_type == "Attention")
    assert list(attention.output) == ["context", "", "", "context_logits"]
    taken = [each.input[0] for each in graph.node if each.op_type == "Abs"]
    assert taken == ["q", "context", "context_logits"]


def test_types_are_widened_everywhere() -> None:
    constant = numpy_helper.from_array(np.array([2.5], np.float16))
    whole = numpy_helper.from_array(np.array([3], np.int64))
    double = numpy_helper.from_array(np.array([4.5]))
    graph = program(
        [
            node("Constant", "", "c", value=constant),
            node("Constant", "", "i", value=whole),
            node("Constant", "", "j", value=double),
            node("Cast", "input_ids", "f", to=HALF),
            node("Cast", "f", "g", to=TensorProto.INT64),
            node("Cast", "f", "h", to=TensorProto.DOUBLE),
            node("RandomNormalLike", "x", "z", dtype=HALF),
            node("Add", "z w", "y"),
        ],
        {"w": np.array([0.5])},
    )
    others = {"i": ir.DataType.INT64, "g": ir.DataType.INT64, "j": ir.DataType.DOUBLE, "h": ir.DataType.DOUBLE}
    for value in (value for each in graph for value in each.outputs):
        value.dtype = others.get(str(value.name), ir.DataType.FLOAT16)
    module._widen(graph)
    nodes = {each.outputs[0].name: each for each in graph}
    assert nodes["c"].attributes["value"].value.dtype == ir.DataType.FLOAT
    assert nodes["c"].attributes["value"].value.numpy().tolist() == [2.5]
    assert nodes["i"].attributes["value"].value.dtype == ir.DataType.INT64
    assert (nodes["f"].attributes["to"].value, nodes["g"].attributes["to"].value) == (FULL, TensorProto.INT64)
    assert (nodes["z"].attributes["dtype"].value, nodes["h"].attributes["to"].value) == (FULL, TensorProto.DOUBLE)
    assert nodes["j"].attributes["value"].value.dtype == ir.DataType.DOUBLE
    types = {value.name: value.dtype for each in graph for value in each.outputs}
    assert types == {name: others.get(name, ir.DataType.FLOAT) for name in "cijfghzy"}
    weight = graph.initializers["w"]
    assert (weight.dtype, weight.const_value.numpy().dtype, weight.const_value.numpy().tolist()) == (
        ir.DataType.FLOAT,
        np.float32,
        [0.5],
    )
    assert [value.dtype for value in graph.inputs] == [ir.DataType.INT64, ir.DataType.FLOAT]


@pytest.mark.parametrize(
    ("then", "is_harmless"),
    [
        ([node("Tanh", "v", "y")], True),
        ([node("Sigmoid", "v", "y")], True),
        ([node("Relu", "v", "y")], False),
        ([node("Mul", "v c", "u"), node("Tanh", "u", "y")], True),
        ([node("Mul", "v c", "u"), node("Relu", "u", "y")], False),
        ([node("Mul", "v x", "u"), node("Tanh", "u", "y")], False),  # x may be 0
        ([node("Add", "v x", "u"), node("Tanh", "u", "y")], True),
        ([node("Sub", "v x", "u"), node("Tanh", "u", "y")], True),
        ([node("Add", "v v", "u"), node("Tanh", "u", "y")], False),
        ([node("Exp", "x", "o"), node("Add", "v o", "u"), node("Tanh", "u", "y")], False),  # both may be infinite
        ([node("Cast", "v", "u", to=FULL), node("Tanh", "u", "w"), node("Cast", "w", "y", to=HALF)], True),
        ([node("Tanh", "v", "w"), node("Add", "w v", "y")], False),  # one use of two
        ([node("Tanh", "v", "w"), node("Sigmoid", "v", "y")], True),
        ([node("MatMul", "v c", "u"), node("Tanh", "u", "y")], False),
    ],
)  # fmt: skip
def test_what_saturates_may_be_infinite(then: list[Any], is_harmless: bool) -> None:
    graph = program([node("Exp", "x", "v"), *then], {"c": np.array([2.0])})
    names = {value.name for value in module._harmless(graph, weightless_values(graph))}
    assert ("v" in names) is is_harmless
    assert "y" not in names  # the output of the graph


def test_an_output_is_never_harmless() -> None:
    graph = program([node("Exp", "x", "v"), node("Tanh", "v", "w"), node("Identity", "w", "y")])
    graph.outputs.append(graph[0].outputs[0])
    assert module._harmless(graph, weightless_values(graph)) == set()


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("encoder.layer.11.output.dense", ("layer 11", "output.dense")),
        ("layer.0.x", ("layer 0", "x")),
        ("mra.encoder.pooler.dense", ("encoder", "pooler.dense")),
        ("mra.embeddings.LayerNorm", ("embeddings", "LayerNorm")),
        ("embeddings.LayerNorm", ("embeddings", "LayerNorm")),
        ("embeddings", ("embeddings", "embeddings")),
        ("mra.embeddings", ("embeddings", "embeddings")),
        ("classifier.out_proj", ("classifier", "out_proj")),
        ("classifier", ("model", "classifier")),
        ("player.1.x", ("player", "1.x")),
    ],
)
def test_places(path: str, place: tuple[str, str]) -> None:
    assert module._place(path) == place


@pytest.mark.parametrize(
    ("made", "label"),
    [
        (node("MatMul", "x c", "y", "encoder.layer.0.dense.MatMul"), ("layer 0", "dense")),
        (node("MatMul", "x c", "y", "encoder.layer.0.dense.MatMul_12"), ("layer 0", "dense")),
        (node("MatMul", "x x", "y", "encoder.layer.0.dense.MatMul"), ("layer 0", "dense (MatMul)")),
        (node("Mul", "x c", "y", "encoder.layer.0.dense.Mul"), ("layer 0", "dense (Mul)")),
        (node("Mul", "x c", "y", "encoder.layer.0.dense.Add"), ("layer 0", "dense.Add")),
        (node("Mul", "x c", "y", "node_Mul_3"), None),
        (node("Mul", "x c", "y"), None),
    ],
)
def test_a_name_is_the_module_and_the_operator(made: Any, label: tuple[str, str] | None) -> None:
    graph = program([made], {"c": np.array([2.0])})
    assert module._by_name(graph[0]) == label


def test_a_parameter_names_the_node_that_alone_has_it() -> None:
    weights = {
        name: np.ones(2)
        for name in ("model.encoder.layer.2.dense.bias", "model.pooler.dense.weight_fp16", "shared.bias")
    }
    weights["val_3"] = np.ones(2)
    graph = program(
        [
            node("Add", "x model.encoder.layer.2.dense.bias", "a"),
            node("Mul", "model.pooler.dense.weight_fp16 a", "b"),
            node("Add", "b shared.bias", "c"),
            node("Sum", "c shared.bias val_3", "y"),
        ],
        weights,
    )
    assert [module._by_parameter(each) for each in graph] == [("layer 2", "dense"), ("pooler", "dense"), None, None]


def test_what_has_no_name_is_called_for_what_it_follows() -> None:
    given = model(
        [node("Relu", "x", "a"), node("Exp", "a", "b"), node("Neg", "b", "context"), node("Sin", "context", "y")], {}
    )
    graph = ir.serde.deserialize_model(given.proto).graph
    labels = {value.name: label for value, label in module._labels(graph, given).items()}
    assert labels == {
        "a": ("inputs", "Relu"),
        "b": ("inputs", "Exp"),
        "context": ("layer 0", "attention context"),
        "y": ("layer 0", "Sin after attention context"),
    }
