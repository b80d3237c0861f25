"""A graph of opset 18 in opset 17, as older runtimes load it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from mra_export.checkpoint.load import load_checkpoint
from mra_export.errors import InputError
from mra_export.export.exporter import export_onnx
from mra_export.export.onnx_model import read_onnx
from mra_export.export.opset17 import to_opset_17
from mra_export.runners.onnxruntime import OnnxRuntimeRunner


@pytest.mark.parametrize(("opset", "ir_version"), [(17, 8), (18, 8), (20, 9), (23, 11)])
@pytest.mark.slow
def test_the_oldest_format_of_each_opset(
    opset: int, ir_version: int, tiny_checkpoint: Path, tiny_export: Path, tmp_path: Path
) -> None:
    """Other runtimes than ours read the file: none is asked for more than the operators need."""
    made = export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "o", opset=opset, pooling="mean", normalize=True)
    proto = onnx.load(made.model)
    assert proto.ir_version == ir_version
    opsets = {each.domain: each.version for each in proto.opset_import}
    assert (made.opset, opsets[""]) == (opset, opset)
    assert all(each.version == opset for f in proto.functions for each in f.opset_import if not each.domain)
    model, reference = read_onnx(made.model), read_onnx(tiny_export / "onnx" / "model.onnx")
    generator = np.random.default_rng(3)
    inputs = {name: generator.integers(0, 2, (2, 70)) for name in model.inputs}
    inputs["input_ids"] = generator.integers(0, 120, (2, 70))
    inputs["attention_mask"][:, 0] = 1
    got, want = OnnxRuntimeRunner(model).run(inputs), OnnxRuntimeRunner(reference).run(inputs)
    mask = inputs["attention_mask"].astype(bool)
    np.testing.assert_allclose(got["last_hidden_state"][mask], want["last_hidden_state"][mask], rtol=0, atol=2e-5)


def graph(text: str) -> ir.Model:
    head = '<ir_version: 8, opset_import: ["" : 18]> g (float[a, b] x) => (float y)'
    return ir.serde.deserialize_model(onnx.parser.parse_model(f"{head} {{ {text} }}"))


def test_axes_become_an_attribute() -> None:
    model = graph("axes = Constant <value = int64[1] {-1}> () y = ReduceL2 <keepdims: int = 1> (x, axes)")
    to_opset_17(model)
    node = next(node for node in model.graph if node.op_type == "ReduceL2")
    assert list(node.attributes["axes"].value) == [-1]
    assert len(node.inputs) == 1
    assert model.opset_imports[""] == 17


def test_every_word_of_opset_18_is_an_older_one() -> None:
    model = graph(
        "p, q = Split <axis: int = 1, num_outputs: int = 2> (x) axes = Constant <value = int64[2] {0, 1}> () "
        "s = ReduceSum <keepdims: int = 1> (p, axes) m = ReduceMax <noop_with_empty_axes: int = 0> (q) "
        "r = ReduceMean (s, axes) two = Constant <value = int64[4] {0, 1, 0, 1}> () w = Pad (x, two) "
        "v = Pad (w, two, ) y = ReduceMin <keepdims: int = 0> (v, axes)"
    )
    model.graph.opset_imports["own"] = 1
    model.graph.append(ir.node("Mish", [model.graph.inputs[0]], domain="own"))
    to_opset_17(model)
    nodes = {node.op_type: node for node in model.graph if node.op_type != "Constant"}
    assert set(nodes["Split"].attributes) == {"axis"}
    assert len(nodes["ReduceSum"].inputs) == 2  # its axes became an input long before
    assert (len(nodes["ReduceMax"].inputs), set(nodes["ReduceMax"].attributes)) == (1, set())
    assert list(nodes["ReduceMean"].attributes["axes"].value) == [0, 1]
    assert (len(nodes["ReduceMin"].inputs), list(nodes["ReduceMin"].attributes["axes"].value)) == (1, [0, 1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "two = Constant <value = int64[2] {0, 1}> () a = Constant <value = int64[1] {0}> () y = Pad (x, two, , a)",
            "The model needs Pad of opset 18",
        ),
        ("y = Mish (x)", "The model needs Mish of opset 18. Export it with --opset 18 or newer."),
        ("s = Shape (x) y = ReduceMax (x, s)", "The model computes the axes of ReduceMax, which opset 17 cannot."),
    ],
)
def test_what_opset_17_does_not_have(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_opset_17(graph(text))
