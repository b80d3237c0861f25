"""Conversion of a float32 export to a half type: the same file, node for node, as an export in that type."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from checkpoints import save_checkpoint
from onnx import TensorProto, helper, numpy_helper

from mra_export.checkpoint.load import load_checkpoint
from mra_export.errors import InputError
from mra_export.export import half
from mra_export.export.exporter import export_onnx
from mra_export.export.half import convert, too_small, weightless_values
from mra_export.export.onnx_model import OnnxModel, read_onnx
from mra_export.pipeline.source import compare_with_source
from mra_export.runners.onnx_reference import OnnxReferenceRunner
from mra_export.runners.onnxruntime import OnnxRuntimeRunner

CASES = [
    ("MraModel", "mean", "fp16"),
    ("MraModel", "mean", "bf16"),
    ("MraForMultipleChoice", None, "fp16"),
    ("MraForQuestionAnswering", None, "fp16"),
    ("MraForMaskedLM", None, "bf16"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pooling", "dtype"), CASES, ids=[f"{name}-{dtype}" for name, _, dtype in CASES])
def test_a_converted_file_is_what_an_export_gives(name: str, pooling: str | None, dtype: str, tmp_path: Path) -> None:
    loaded = load_checkpoint(save_checkpoint(tmp_path / "checkpoint", name, num_hidden_layers=1))
    options = {} if pooling is None else {"pooling": pooling, "normalize": True}
    source = read_onnx(export_onnx(loaded, tmp_path / "fp32", **options).model)
    exported = read_onnx(export_onnx(loaded, tmp_path / "half", dtype=dtype, **options).model)
    converted = convert(source, dtype, tmp_path / "model.onnx")
    assert (converted.dtype, converted.task, converted.inputs) == (dtype, source.task, source.inputs)
    assert converted.outputs == source.outputs
    assert converted.attributes == source.attributes
    protos = [onnx.load(m.path) for m in (converted, exported)]
    first, second = (Counter(node.op_type for node in proto.graph.node) for proto in protos)
    assert first == second
    weights = [{i.name: numpy_helper.to_array(i) for i in proto.graph.initializer} for proto in protos]
    assert {n: w.dtype for n, w in weights[0].items()} == {n: w.dtype for n, w in weights[1].items()}
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert {o.type.tensor_type.elem_type for o in protos[0].graph.output} == {TensorProto.FLOAT}

    inputs = random_inputs(source, loaded)
    runner = OnnxRuntimeRunner if dtype == "fp16" else OnnxReferenceRunner
    got, want = runner(converted).run(inputs), runner(exported).run(inputs)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=2e-3 if dtype == "fp16" else 2e-2)


def random_inputs(model: OnnxModel, checkpoint: Any) -> dict[str, np.ndarray]:
    shape = (2, 3, 70) if checkpoint.task.name == "multiple-choice" else (2, 70)
    generator = np.random.default_rng(3)
    inputs = {name: generator.integers(0, 2, shape) for name in model.inputs}
    inputs["input_ids"] = generator.integers(0, checkpoint.config.vocab_size, shape)
    return inputs


@pytest.fixture(scope="module")
def source(tiny_export: Path) -> OnnxModel:
    return read_onnx(tiny_export / "onnx" / "model.onnx")


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_the_proof_sees_a_wrong_weight(source: OnnxModel, dtype: str, tmp_path: Path) -> None:
    converted = convert(source, dtype, tmp_path / "model.onnx")
    runner = OnnxRuntimeRunner if dtype == "fp16" else OnnxReferenceRunner
    good = compare_with_source(source, runner(converted), dtype, print)
    assert good.ok
    proto = onnx.load(converted.path)
    weight = next(i for i in proto.graph.initializer if i.name.endswith("layer.0.attention.self.value.bias"))
    values = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array((values.astype(np.float32) + 4.0).astype(values.dtype), weight.name))
    onnx.save(proto, converted.path)
    bad = compare_with_source(source, runner(read_onnx(converted.path)), dtype, print)
    assert bad.ok is False
    assert bad.metrics["relative_error"] > 10 * good.metrics["relative_error"]  # type: ignore[operator]


def test_a_weight_beyond_float16(source: OnnxModel, tmp_path: Path) -> None:
    proto = onnx.load(source.path)
    weight = proto.graph.initializer[2]
    values = numpy_helper.to_array(weight).copy()
    values.flat[1] = -70000.0
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(proto, tmp_path / "large.onnx")
    large = read_onnx(tmp_path / "large.onnx")
    with pytest.raises(InputError, match=r"has a value of 7e\+04, and float16 ends at 65504\. Use --bf16"):
        convert(large, "fp16", tmp_path / "half.onnx")
    convert(large, "bf16", tmp_path / "bf16.onnx")


def test_only_float32_is_converted(source: OnnxModel, tmp_path: Path) -> None:
    half = convert(source, "fp16", tmp_path / "half.onnx")
    with pytest.raises(InputError, match="is fp16; only fp32 is converted"):
        convert(half, "bf16", tmp_path / "again.onnx")


def test_a_graph_that_has_no_half_type(source: OnnxModel, tmp_path: Path) -> None:
    """An operator that takes float32 only: the checker says so, and the message names the way out."""
    proto = onnx.load(source.path)
    index = next(i for i, n in enumerate(proto.graph.node) if n.op_type == "Gelu")
    node = proto.graph.node[index]
    result = node.output[0]
    node.output[0] = "before"
    roi = helper.make_node("Resize", ["before", "", "ones"], [result])
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "ones"))
    proto.graph.node.insert(index + 1, roi)
    onnx.save(proto, tmp_path / "odd.onnx")
    with pytest.raises(InputError, match=r"cannot be converted to fp16: .* Export the checkpoint again with"):
        convert(read_onnx(tmp_path / "odd.onnx"), "fp16", tmp_path / "half.onnx")


def test_external_data(source: OnnxModel, tmp_path: Path) -> None:
    onnx.save(
        onnx.load(source.path), tmp_path / "model.onnx", save_as_external_data=True, location="data", size_threshold=0
    )
    (tmp_path / "elsewhere").mkdir()
    converted = convert(read_onnx(tmp_path / "model.onnx"), "fp16", tmp_path / "elsewhere" / "half.onnx")
    other = convert(source, "fp16", tmp_path / "other.onnx")
    first, second = (
        {i.name: numpy_helper.to_array(i).tobytes() for i in onnx.load(m.path).graph.initializer}
        for m in (converted, other)
    )
    assert first == second


def node(operator: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(operator, inputs.split(), [output], f"the {operator} of {output}", **attributes)


GENERATOR = np.random.default_rng(0)
WEIGHTS = {
    "table": GENERATOR.standard_normal((7, 20)).astype(np.float32),
    "w": GENERATOR.standard_normal((20, 20)).astype(np.float32),
    "shared": GENERATOR.standard_normal(20).astype(np.float32),
    "last": np.array([-1]),
    "first": np.array([1]),
}
NODES = [
    node("Gather", "table input_ids", "e"),
    node("Cast", "attention_mask", "m", to=TensorProto.FLOAT),
    node("Unsqueeze", "m last", "u"),  # of the encoder and of the pooling
    node("Mul", "e u", "a"),
    node("MatMul", "a w", "b"),
    node("Constant", "", "c", value_float=2.5),
    node("Constant", "", "d", value_floats=[0.5]),
    node("Constant", "", "f", value=numpy_helper.from_array(np.array([4.0], np.float32))),
    node("Sum", "c d f", "k"),
    node("Mul", "b k", "g"),
    node("Add", "g shared", "states"),
    node("Cast", "attention_mask", "n", to=TensorProto.FLOAT),  # of the pooling alone
    node("Mul", "states u", "p"),
    node("Mul", "p u", "q"),
    node("ReduceSum", "q first", "s", keepdims=0),
    node("ReduceSum", "n first", "t", keepdims=1),
    node("Div", "s t", "v"),
    node("Mul", "v shared", "vector"),
]


def proto(nodes: list[Any], outputs: str = "states vector") -> Any:
    names = ("input_ids", "attention_mask")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in names]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs.split()]
    weights = [numpy_helper.from_array(value, name) for name, value in WEIGHTS.items()]
    graph = helper.make_graph(nodes, "g", inputs, made, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.fixture
def by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A float32 file with states and pooling, but no attention."""
    monkeypatch.setattr(half, "read_onnx", lambda path: path)
    onnx.save(proto(NODES), tmp_path / "model.onnx")
    return SimpleNamespace(path=tmp_path / "model.onnx", dtype="fp32", precision="fp32")


def test_outputs_and_pooling_stay_float32(by_hand: Any, tmp_path: Path) -> None:
    """A tensor of the half type that the pooling takes is widened once; a weight that it takes too is there twice."""
    lost: list[str] = []
    path: Any = convert(by_hand, "fp16", tmp_path / "half.onnx", lost=lost)
    assert (path, lost) == (tmp_path / "half.onnx", [])
    made = onnx.load(path)
    casts = [(each.input[0], each.output[0], each.attribute[0].i) for each in made.graph.node if each.op_type == "Cast"]
    assert sorted(casts) == [
        ("attention_mask", "m", TensorProto.FLOAT16),
        ("attention_mask", "n", TensorProto.FLOAT),
        ("states_fp16", "states", TensorProto.FLOAT),
        ("u", "u_fp32", TensorProto.FLOAT),
    ]
    taken = {each.output[0]: list(each.input) for each in made.graph.node}
    assert (taken["p"], taken["q"], taken["a"]) == (["states", "u_fp32"], ["p", "u_fp32"], ["e", "u"])
    assert (taken["states_fp16"], taken["vector"]) == (["g", "shared_fp16"], ["v", "shared"])
    kinds = {each.name: each.data_type for each in made.graph.initializer}
    assert kinds == {
        "table": TensorProto.FLOAT16,
        "w": TensorProto.FLOAT16,
        "shared": TensorProto.FLOAT,
        "shared_fp16": TensorProto.FLOAT16,
        "last": TensorProto.INT64,
        "first": TensorProto.INT64,
    }
    constants = {
        each.output[0]: numpy_helper.to_array(each.attribute[0].t)
        for each in made.graph.node
        if each.op_type == "Constant"
    }
    assert {name: (each.dtype, each.tolist()) for name, each in constants.items()} == {
        "c": (np.float16, 2.5),
        "d": (np.float16, [0.5]),
        "f": (np.float16, [4.0]),
    }
    assert {each.key: each.value for each in made.metadata_props} == {"dtype": "fp16"}
    inputs = {"input_ids": np.array([[1, 5, 6], [0, 2, 0]]), "attention_mask": np.array([[1, 1, 1], [1, 1, 0]])}
    runs = [onnxruntime.InferenceSession(file).run(None, inputs) for file in (by_hand.path, path)]
    for want, got in zip(*runs, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=5e-3, atol=0.05)


def test_what_is_kept_and_what_has_no_weight() -> None:
    graph = ir.serde.deserialize_model(proto(NODES)).graph
    kept = {each.outputs[0].name for each in half._kept_nodes(graph)}
    assert kept == {"n", "p", "q", "s", "t", "v", "vector"}
    found = {value.name for value in weightless_values(graph) if value is not None}
    assert found == {"input_ids", "attention_mask", "last", "first", "m", "u", "c", "d", "f", "k", "n", "t"}
    assert None in weightless_values(graph)


def test_what_is_an_output_itself_is_not_kept_for_the_pooling() -> None:
    nodes = [*NODES[:11], node("Cast", "attention_mask", "n", to=TensorProto.FLOAT), node("Mul", "states n", "vector")]
    graph = ir.serde.deserialize_model(proto(nodes, "states n vector")).graph
    assert {each.outputs[0].name for each in half._kept_nodes(graph)} == {"vector"}


@pytest.mark.parametrize(("size", "is_constant"), [(16, True), (17, False)])
def test_a_weight_has_more_elements_than_a_constant(size: int, is_constant: bool) -> None:
    value = ir.Value(name="w", const_value=ir.tensor(np.ones(size, np.float32)))
    graph = ir.Graph([], [], nodes=[ir.node("Neg", [value])], initializers=[value])
    assert (value in weightless_values(graph)) is is_constant
    assert (graph[0].outputs[0] in weightless_values(graph)) is is_constant


def test_a_node_with_a_graph_of_its_own_is_refused(by_hand: Any, tmp_path: Path) -> None:
    branch = helper.make_graph([node("Identity", "g", "i")], "b", [], [helper.make_tensor_value_info("i", 1, None)])
    choice = node("If", "yes", "states", then_branch=branch, else_branch=branch)
    yes = node("Constant", "", "yes", value=numpy_helper.from_array(np.array(True)))
    onnx.save(proto([*NODES[:10], yes, choice], "states"), by_hand.path)
    with pytest.raises(InputError, match="the node the If of states has a graph of its own, which is not converted"):
        convert(by_hand, "fp16", tmp_path / "half.onnx")


def test_a_file_that_cannot_be_written(by_hand: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(half, "save_program", full)
    with pytest.raises(InputError, match=r"half\.onnx could not be written: No space left on device\. Free some"):
        convert(by_hand, "fp16", tmp_path / "half.onnx")


def test_a_file_that_the_checker_refuses(by_hand: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("The reason.\nAnd where.")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(
        InputError, match=r"cannot be converted to bf16: The reason\. Export the checkpoint again with .*--dtype bf16"
    ):
        convert(by_hand, "bf16", tmp_path / "half.onnx")


def test_float16_loses_what_is_too_small() -> None:
    values = np.ones((10, 10))
    assert too_small("w", values) is None
    values[0, 0] = 1e-9
    assert too_small("w", values) is None  # one of a hundred
    values[0, 1] = -1e-9
    assert too_small("w", values) == "w (largest 1.0e+00; 2 of 100 values become 0, relative error 0.0%)"
    values[0, 1:] = 0.0
    values[5:] = 0.0
    assert too_small("w", values) == "w (largest 1.0e+00; 1 of 41 values become 0, relative error 0.0%)"
    assert too_small("zeros", np.zeros(3)) is None
    assert too_small("nothing", np.zeros(0)) is None
    for largest in (65504.0, 65505.0, np.inf):
        words = too_small("w", np.array([largest, 1e-9, 1e-9]))
        assert (words is not None) is (largest == 65504.0)


def test_float16_loses_digits_of_small_numbers() -> None:
    step = 2.0**-24  # of what float16 has below its normal numbers
    assert (
        too_small("w", np.array([-1.5 * step])) == "w (largest 8.9e-08; 0 of 1 values become 0, relative error 33.3%)"
    )
    assert too_small("w", np.array([3.0 * step])) is None
    many = np.full((1 << 20) + 4, 0.5)  # more than are looked at at a time
    many[-4:] = 1e-9
    assert too_small("w", many) is None
    many[:] = 1e-9
    assert too_small("w", many) == "w (largest 1.0e-09; 1048580 of 1048580 values become 0, relative error 100.0%)"
    loss = np.array([1.0 + 2.0**-11])  # half a step, relative 4.9e-4
    assert too_small("w", loss) is None
    assert half.LARGEST_LOSS == 1e-3
    assert too_small("w", np.array([(1000 + 0.5) * step * 0.9])) is None  # half of a step in a thousand
    assert (
        too_small("w", np.array([400.5 * step])) == "w (largest 2.4e-05; 0 of 1 values become 0, relative error 0.1%)"
    )


def test_minus_infinity_of_a_mask_is_that_of_the_type() -> None:
    masked = ir.tensor(np.array([-1.7014117331926443e38], np.float32))
    lost: list[str] = []
    assert half._converted(masked, "m", "fp16", lost).numpy().tolist() == [-32752.0]
    assert half._converted(masked, "m", "bf16", lost).numpy().astype(np.float64).tolist() == [-1.6947656946257677e38]
    infinite = ir.tensor(np.array([-np.inf, 65504.0], np.float32))
    assert half._converted(infinite, "m", "fp16", lost).numpy().tolist() == [-np.inf, 65504.0]
    with pytest.raises(InputError, match=r"weight w has a value of 6\.55e\+04, and float16 ends at 65504\. Use --bf16"):
        half._converted(ir.tensor(np.array([1.0, -65510.0], np.float32)), "w", "fp16", lost)
    assert half._converted(ir.tensor(np.array([1e30], np.float32)), "w", "bf16", lost).dtype == ir.DataType.BFLOAT16
    assert half._converted(ir.tensor(np.array([1e-30], np.float32)), "w", "bf16", lost).name == "w"
    assert lost == []
    half._converted(ir.tensor(np.array([1e-30], np.float32)), "w", "fp16", lost)
    assert lost == ["w (largest 1.0e-30; 1 of 1 values become 0, relative error 100.0%)"]
