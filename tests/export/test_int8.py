"""Linear layers in int8: the file, its products, and what of the model stays as it was."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mra_export.errors import InputError
from mra_export.export.int8 import (
    RANGE_PREFIX,
    SWITCHES,
    check_quantizable,
    is_int8,
    linears_of,
    quantize,
    with_ranges,
    with_switches,
)
from mra_export.export.onnx_model import OnnxModel, read_onnx
from mra_export.runners.session import open_session, session_options


@pytest.fixture(scope="module")
def source(tiny_export: Path) -> OnnxModel:
    return read_onnx(tiny_export / "onnx" / "model.onnx")


def inputs_of(seed: int, seq_len: int = 40) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(0, 120, (2, seq_len))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def run(path: Path, inputs: dict[str, np.ndarray], *names: str) -> list[np.ndarray]:
    return open_session(str(path), session_options(threads=1)).run(list(names), inputs)


@pytest.fixture(scope="module")
def ranges(source: OnnxModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    path = with_ranges(source, tmp_path_factory.mktemp("ranges") / "model.onnx")
    sources = [linear.source for linear in linears_of(source)]
    found = [run(path, inputs_of(seed), *(RANGE_PREFIX + name for name in sources)) for seed in range(4)]
    return {name: np.max([each[i] for each in found], axis=0) for i, name in enumerate(sources)}


def test_the_linear_layers_of_the_encoder(source: OnnxModel) -> None:
    found = linears_of(source)
    attention = tuple(f"layer.0.attention.self.{name}" for name in ("query", "key", "value"))
    assert [linear.names for linear in found[:4]] == [
        attention,
        ("layer.0.attention.output.dense",),
        ("layer.0.intermediate.dense",),
        ("layer.0.output.dense",),
    ]
    assert [(linear.in_features, linear.out_features) for linear in found[:4]] == [
        (64, 192),
        (64, 64),
        (64, 96),
        (96, 64),
    ]
    assert len(found) == 8


def test_ranges_are_the_largest_absolute_values(source: OnnxModel, tmp_path: Path) -> None:
    path = with_ranges(source, tmp_path / "model.onnx")
    last = linears_of(source)[-1]
    proto = onnx.load(path)
    proto.graph.output.append(onnx.helper.make_tensor_value_info(last.source, onnx.TensorProto.FLOAT, None))
    onnx.save(proto, tmp_path / "seen.onnx")
    values, largest = run(tmp_path / "seen.onnx", inputs_of(9), last.source, RANGE_PREFIX + last.source)
    assert np.array_equal(largest, np.abs(values).max(axis=(0, 1)))


@pytest.mark.parametrize(("smoothing", "limit"), [(None, 0.1), (0.8, 0.1)])
def test_the_file_is_nearly_the_same_model(
    smoothing: float | None, limit: float, source: OnnxModel, ranges: dict[str, np.ndarray], tmp_path: Path
) -> None:
    model = quantize(source, ranges, tmp_path / "model.onnx", smoothing=smoothing)
    assert is_int8(model)
    assert not is_int8(source)
    assert model.inputs == source.inputs
    assert model.outputs == source.outputs
    [want], [got] = (run(path, inputs_of(20), "last_hidden_state") for path in (source.path, model.path))
    error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    assert 1e-4 < error < limit


def test_the_rules_that_every_engine_asks_for(source: OnnxModel, ranges: dict[str, np.ndarray], tmp_path: Path) -> None:
    graph = quantize(source, ranges, tmp_path / "model.onnx", smoothing=0.8).proto.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    count = Counter(node.op_type for node in graph.node)
    assert (count["QuantizeLinear"], count["DequantizeLinear"], count["Split"], count["MatMul"]) == (8, 16, 2, 8)
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            assert readers[node.output[0]] == 1
            assert constants[node.input[1]].shape == ()
            assert constants[node.input[2]].dtype == np.int8
            assert constants[node.input[2]] == 0
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            weight, scale = constants[node.input[0]], constants[node.input[1]]
            assert weight.dtype == np.int8
            assert np.abs(weight.astype(int)).max(axis=0).tolist() == [127] * weight.shape[1]
            assert scale.shape == (weight.shape[1],)
            assert [a.i for a in node.attribute if a.name == "axis"] == [1]
    # The attention is linear in its values: what its output is divided by is in them, and needs no node.
    assert count["Mul"] == sum(node.op_type == "Mul" for node in source.proto.graph.node) + 6


def test_layers_that_stay_in_float(source: OnnxModel, ranges: dict[str, np.ndarray], tmp_path: Path) -> None:
    kept = ["layer.1.output.dense", "layer.0.attention.self.key"]
    graph = quantize(source, ranges, tmp_path / "model.onnx", float_layers=kept).proto.graph
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == 6
    assert not [tensor.name for tensor in graph.initializer if tensor.name.startswith("layer.0.attention.self")]


def test_the_same_bytes(source: OnnxModel, ranges: dict[str, np.ndarray], tmp_path: Path) -> None:
    one, other = (quantize(source, ranges, tmp_path / name, smoothing=0.8).path for name in ("a.onnx", "b.onnx"))
    assert one.read_bytes() == other.read_bytes()


def test_what_cannot_be_quantized(source: OnnxModel, ranges: dict[str, np.ndarray], tmp_path: Path) -> None:
    model = quantize(source, ranges, tmp_path / "model.onnx")
    with pytest.raises(InputError, match=r"model\.onnx is int8 already"):
        quantize(model, ranges, tmp_path / "again.onnx")
    with pytest.raises(InputError, match=r"has no linear layer layer\.7\.x, but layer\.0\.attention\.self\.query"):
        quantize(source, ranges, tmp_path / "x.onnx", float_layers=["layer.7.x"])
    assert not (tmp_path / "x.onnx").exists()


def test_a_family_whose_linear_layers_are_not_known(source: OnnxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(source.family), "second_feed_forward", None)
    with pytest.raises(InputError, match="--int8 knows no linear layers of MRA"):
        check_quantizable(source)


def test_equal_constants_of_several_layers(source: OnnxModel, ranges: dict[str, np.ndarray], tmp_path: Path) -> None:
    """The exporter keeps one of them; smoothing changes that of the values, and nobody else's."""
    proto = onnx.load(source.path)
    adds = {node.name: node for node in proto.graph.node if node.op_type == "Add"}
    kept = {}
    for module in ("query", "value"):
        add = next(node for name, node in adds.items() if name.endswith(f"layer.0.attention.self.{module}.Add"))
        kept[module] = (add, next(i for i, name in enumerate(add.input) if "bias" in name))
    (query, at), (value, place) = kept["query"], kept["value"]
    value.input[place] = query.input[at]
    onnx.save(proto, tmp_path / "shared.onnx")
    shared = read_onnx(tmp_path / "shared.onnx")
    assert [linear.names for linear in linears_of(shared)] == [linear.names for linear in linears_of(source)]
    model = quantize(shared, ranges, tmp_path / "model.onnx", smoothing=0.8)
    [want], [got] = (run(path, inputs_of(21), "last_hidden_state") for path in (shared.path, model.path))
    assert float(np.linalg.norm(got - want) / np.linalg.norm(want)) < 0.1


def test_one_file_with_switches(source: OnnxModel, ranges: dict[str, np.ndarray], tmp_path: Path) -> None:
    names = [linear.names for linear in linears_of(source)]
    switched = with_switches(source, ranges, tmp_path / "switches.onnx", smoothing=0.8)
    kept = [names[0][1], names[3][0]]  # a name stands for all that share its product
    model = quantize(source, ranges, tmp_path / "model.onnx", smoothing=0.8, float_layers=kept)
    inputs = inputs_of(22)
    for on, path in ((np.zeros(8, bool), source.path), (~np.isin(np.arange(8), [0, 3]), model.path)):
        [got] = run(switched.path, {**inputs, SWITCHES: on}, "last_hidden_state")
        [want] = run(path, inputs, "last_hidden_state")
        assert float(np.linalg.norm(got - want) / np.linalg.norm(want)) < 1e-3
    assert model.metadata["int8.float_layers"] == f"{kept[0]} {kept[1]}"
    assert model.metadata["int8.smoothing"] == "0.8"
    assert (model.precision, model.dtype, source.precision) == ("int8", "fp32", "fp32")


def test_how_much_smoothing_moves(source: OnnxModel, ranges: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Strength a: what a layer reads is divided by range^a / weight^(1 - a), to a geometric mean of 1."""
    linear = linears_of(source)[2]
    product = next(
        node for node in source.proto.graph.node if node.op_type == "MatMul" and node.input[0] == linear.source
    )
    weight = next(
        numpy_helper.to_array(each) for each in source.proto.graph.initializer if each.name == product.input[1]
    )
    want = ranges[linear.source] ** 0.7 / np.abs(weight).max(axis=1) ** 0.3
    want /= np.exp(np.log(want).mean())
    graph = quantize(source, ranges, tmp_path / "model.onnx", smoothing=0.7).proto.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert np.allclose(constants["layer.0.intermediate.dense.smoothing"], 1 / want, rtol=1e-5)
    rounded = constants["layer.0.intermediate.dense.weight_int8"] * constants["layer.0.intermediate.dense.weight_scale"]
    assert np.allclose(rounded, weight * want[:, None], atol=np.abs(weight * want[:, None]).max() / 250)
    assert np.isclose(
        constants["layer.0.intermediate.dense.input_scale"], (ranges[linear.source] / want).max() / 127, rtol=1e-5
    )
    assert {"layer.0.attention.self.qkv.weight_int8", "layer.0.attention.output.dense.weight_int8"} <= set(constants)
