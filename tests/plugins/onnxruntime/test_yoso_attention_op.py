"""mra::YosoAttention in ONNX Runtime with the native library: results, preference over the function body, and bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cpu_kernels import build
from onnx import TensorProto, helper, numpy_helper
from yoso_cases import EXPECTATION, LSH, draw
from yoso_models import ALL, error, feeds, yoso_model

from mra_export.operators.yoso_attention.reference import yoso_attention
from mra_export.operators.yoso_attention.spec import YosoAttentionAttributes


def session(model: onnx.ModelProto, threads: int = 2) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(build() / "plugins" / "onnxruntime" / "libmra_onnxruntime.so"))
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


@pytest.mark.parametrize(
    ("kind", "dtype", "limit"),
    [(TensorProto.FLOAT, torch.float32, 2e-5), (TensorProto.FLOAT16, torch.float16, 5e-4)],
    ids=["float32", "float16"],
)
@ALL
def test_the_node_is_the_reference(
    attributes: YosoAttentionAttributes, kind: int, dtype: torch.dtype, limit: float
) -> None:
    drawn = draw(1, attributes, 24, 100)
    tensors = [x.to(dtype) for x in drawn[:3]]
    constants = [c if c.dtype == torch.int32 else c.to(dtype) for c in drawn[3:]]
    mask = (torch.rand(2, 100, generator=torch.Generator().manual_seed(0)) < 0.8).int()
    expected = yoso_attention(*(x.float() for x in tensors), mask, attributes, *constants)
    inputs = feeds(tensors, mask, helper.tensor_dtype_to_np_dtype(kind))
    for functions in (False, True):
        model = yoso_model(attributes, 24, constants, kind=kind, functions=functions)
        assert error(session(model).run(None, inputs)[0].astype(np.float32), expected) <= limit
    one, four = (session(model, threads).run(None, inputs)[0] for threads in (1, 4))
    assert np.array_equal(one, four)


def test_it_runs_in_the_place_of_the_function_body() -> None:
    """A body that gives something else shows which of the two runs."""
    model = yoso_model(EXPECTATION, 16, [])
    del model.functions[0].node[:]
    model.functions[0].node.append(helper.make_node("Identity", ["query"], ["context"]))
    tensors = [x.float() for x in draw(2, EXPECTATION, 16, 30)[:3]]
    mask = torch.ones(2, 30)
    expected = yoso_attention(*tensors, mask, EXPECTATION)
    assert error(session(model).run(None, feeds(tensors, mask))[0], expected) <= 2e-5


def test_an_empty_batch() -> None:
    (constants,) = draw(3, LSH, 16, 4)[3:]
    run = session(yoso_model(LSH, 16, [constants]))
    empty = torch.zeros(0, 7, 32)
    assert run.run(None, feeds([empty] * 3, torch.zeros(0, 7)))[0].shape == (0, 7, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hash_code_len": 17}, "hash_code_len=17 must be between 1 and 16"),
        ({"mode": 3}, r"mode=3 must be 0 \(expectation\) or 1 \(lsh\)"),
        ({"num_hash": 0}, "num_hash=0 must be between 1 and 1024"),
        ({"conv_window": 2}, "conv_window=2 must be odd"),
    ],
)
def test_bad_attributes_are_refused_where_the_session_is_made(changes: dict[str, int], message: str) -> None:
    (constants,) = draw(4, LSH, 16, 4)[3:]
    model = yoso_model(LSH, 16, [constants], functions=False)
    for attribute in model.graph.node[0].attribute:
        attribute.i = changes.get(attribute.name, attribute.i)
    with pytest.raises(Exception, match=message):
        session(model)


def _with_constant(array: np.ndarray | None, **changes: Any) -> onnx.ModelProto:
    """A node of mode lsh with another constant, or none."""
    (constants,) = draw(5, LSH, 16, 4)[3:]
    model = yoso_model(LSH, 16, [constants], functions=False)
    del model.graph.initializer[:]
    if array is None:
        del model.graph.node[0].input[4:]
    else:
        model.graph.initializer.append(numpy_helper.from_array(array, "hash_constants"))
    for attribute in model.graph.node[0].attribute:
        attribute.i = changes.get(attribute.name, attribute.i)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_with_constant(None), "hash_constants is missing: it must be input 4"),
        (
            _with_constant(np.ones((2, 5, 3, 64), np.int32)),
            "hash_constants has size 64 in dimension 3; by the attributes",
        ),
        (_with_constant(np.ones((2, 5, 96), np.int32)), "hash_constants has 3 dimensions; it must have 4"),
        (_with_constant(np.ones((2, 5, 3, 32), np.float32)), "hash_constants has element type 1; it must have 6"),
        (_with_constant(np.ones((2, 5, 3, 32), np.int32), conv_window=3), "conv_weight is missing: it must be input 5"),
        (
            _with_constant(np.ones((2, 5, 3, 32), np.int32), mode=0),
            "input 4 is one more than mode=0 and conv_window=0 have",
        ),
    ],
    ids=["none", "size", "rank", "type", "no convolution", "too many"],
)
def test_wrong_constants_are_refused(model: onnx.ModelProto, message: str) -> None:
    run = session(model)
    tensors = [x.float() for x in draw(6, LSH, 16, 10)[:3]]
    with pytest.raises(Exception, match=message):
        run.run(None, feeds(tensors, torch.ones(2, 10)))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("key", (2, 9, 32), "key has size 9 in dimension 1; by query it must have 10"),
        ("attention_mask", (1, 10), "attention_mask has size 1 in dimension 0; by query it must have 2"),
    ],
)
def test_shapes_that_do_not_fit_are_named(name: str, shape: tuple[int, ...], message: str) -> None:
    model = yoso_model(EXPECTATION, 16, [], functions=False)
    for info in model.graph.input:  # shapes that a session cannot refuse by itself
        info.type.tensor_type.ClearField("shape")
    inputs = feeds([x.float() for x in draw(7, EXPECTATION, 16, 10)[:3]], torch.ones(2, 10))
    inputs[name] = np.ones(shape, inputs[name].dtype)
    with pytest.raises(Exception, match=message):
        session(model).run(None, inputs)
