"""Conversion of a float32 export to a half type: the same file, node for node, as an export in that type."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checkpoints import save_checkpoint
from onnx import TensorProto, helper, numpy_helper

from mra_export.checkpoint.load import load_checkpoint
from mra_export.errors import InputError
from mra_export.export.exporter import export_onnx
from mra_export.export.half import convert
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
    good = compare_with_source(source, converted, print)
    assert good.ok
    proto = onnx.load(converted.path)
    weight = next(i for i in proto.graph.initializer if i.name.endswith("layer.0.attention.self.value.bias"))
    values = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array((values.astype(np.float32) + 4.0).astype(values.dtype), weight.name))
    onnx.save(proto, converted.path)
    bad = compare_with_source(source, read_onnx(converted.path), print)
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
