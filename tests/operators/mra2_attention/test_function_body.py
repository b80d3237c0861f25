"""The ONNX function body in ONNX Runtime and in onnx's evaluator, without any library."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest
import torch
from goldens import Golden, load_golden
from hypothesis import given, settings
from measures import relative_error
from mra2_cases import cases, draw
from onnx.reference import ReferenceEvaluator

from mra_export.operators.mra2_attention.function_body import MIN_OPSET, function_body, operator_model
from mra_export.operators.mra2_attention.reference import mra2_attention
from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes

NEWEST_OPSET = 25


def feeds(golden: Golden, dtype: type = np.float32) -> dict[str, np.ndarray]:
    tensors = {name: getattr(golden, name).astype(dtype) for name in ("query", "key", "value")}
    return {**tensors, "attention_mask": golden.attention_mask}


def session(model: onnx.ModelProto, threads: int = 2) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def test_golden_in_onnx_runtime(golden: Golden) -> None:
    model = operator_model(golden.attributes, golden.query.shape[2])
    onnx.checker.check_model(model, full_check=True)
    assert relative_error(session(model).run(None, feeds(golden))[0], golden.expected) <= 2e-5


def test_golden_in_onnx_evaluator(golden: Golden) -> None:
    model = operator_model(golden.attributes, golden.query.shape[2])
    with np.errstate(all="ignore"):
        assert relative_error(ReferenceEvaluator(model).run(None, feeds(golden))[0], golden.expected) <= 2e-5


@pytest.mark.parametrize("opset", range(MIN_OPSET, NEWEST_OPSET + 1))
def test_every_opset(opset: int) -> None:
    golden = load_golden("c04_priors")
    model = operator_model(golden.attributes, golden.query.shape[2], opset=opset)
    onnx.checker.check_model(model, full_check=True)
    assert relative_error(session(model).run(None, feeds(golden))[0], golden.expected) <= 2e-5


@pytest.mark.parametrize(("dtype", "limit"), [("fp16", 5e-4), ("bf16", 4e-3)])
def test_half_types(dtype: str, limit: float) -> None:
    golden = load_golden("c06_sparse")
    model = operator_model(golden.attributes, golden.query.shape[2], dtype)
    torch_dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    half = [torch.from_numpy(x).to(torch_dtype).float() for x in (golden.query, golden.key, golden.value)]
    expected = mra2_attention(*half, torch.from_numpy(golden.attention_mask), golden.attributes)
    names = {"query": half[0], "key": half[1], "value": half[2]}
    with np.errstate(all="ignore"):
        kind = onnx.helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
        inputs = {n: t.numpy().astype(kind) for n, t in names.items()} | {"attention_mask": golden.attention_mask}
        results = [ReferenceEvaluator(model).run(None, inputs)[0]]
    if dtype == "fp16":  # ONNX Runtime's CPU provider has no bfloat16 kernels
        results.append(session(model).run(None, inputs)[0])
    for result in results:
        assert result.dtype == kind
        assert relative_error(result.astype(np.float64), expected.double().numpy()) <= limit


@given(case=cases)
@settings(max_examples=25, deadline=None)
def test_any_configuration(case: dict) -> None:
    tensors, mask, attributes = draw(case, 2)
    single = [t.float() for t in tensors]
    for tensor in single:
        tensor[mask == 0] = float("nan")
    expected = mra2_attention(*single, mask, attributes)
    model = operator_model(attributes, single[0].shape[2])
    inputs = {n: t.numpy() for n, t in zip(("query", "key", "value"), single, strict=True)}
    result = session(model).run(None, {**inputs, "attention_mask": mask.numpy()})[0]
    # Rows that differ by a swapped block of a near tie would show as an error of 0.1 and more; none is drawn here.
    assert relative_error(result, expected.numpy()) <= 2e-4


def test_ties_go_to_the_lowest_index() -> None:
    attributes = Mra2AttentionAttributes(2, 37, 1, 0, 0, 0.25)  # sparse: the output is of the chosen blocks alone
    rng = np.random.default_rng(0)
    zero = np.zeros((1, 512, 32), np.float32)
    value = rng.standard_normal(zero.shape).astype(np.float32)
    mask = np.ones((1, 512), np.int32)
    expected = mra2_attention(*(torch.from_numpy(x) for x in (zero, zero, value, mask)), attributes).numpy()
    model = operator_model(attributes, 32)
    inputs = {"query": zero, "key": zero, "value": value, "attention_mask": mask}
    for threads in (1, 2, 4):
        assert relative_error(session(model, threads).run(None, inputs)[0], expected) <= 2e-5


def test_an_empty_batch_and_one_token() -> None:
    model = operator_model(Mra2AttentionAttributes(2, 4, 0, 0, 0, 0.25), 64)
    run = session(model)
    for batch, seq_len in ((0, 40), (3, 1)):
        x = np.ones((batch, seq_len, 64), np.float32)
        inputs = {"query": x, "key": x, "value": x, "attention_mask": np.ones((batch, seq_len), np.int32)}
        result = run.run(None, inputs)[0]
        assert result.shape == x.shape
        np.testing.assert_allclose(result, x, rtol=1e-5)


def test_no_tensor_grows_with_the_square_of_the_length() -> None:
    """Every intermediate value at 4096 tokens and a budget of one block per row, by running the inlined graph."""
    seq_len, heads, head_dim = 4096, 1, 32
    model = operator_model(Mra2AttentionAttributes(heads, seq_len // 32, 0, 0, 0, 0.2), head_dim)
    inlined = onnx.inliner.inline_local_functions(model)
    names = [o for n in inlined.graph.node for o in n.output]
    del inlined.graph.output[:]
    inlined.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, seq_len, head_dim)).astype(np.float32)
    inputs = {"query": x, "key": x, "value": x, "attention_mask": np.ones((1, seq_len), np.int32)}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    sizes = {
        name: np.size(value)
        for name, value in zip(
            names, onnxruntime.InferenceSession(inlined.SerializeToString(), options).run(names, inputs), strict=True
        )
    }
    assert max(sizes.values()) <= seq_len * 32 * 2, max(sizes, key=sizes.__getitem__)


def test_the_function_carries_no_attribute_defaults_that_could_hide_a_missing_one() -> None:
    assert not function_body(MIN_OPSET).attribute_proto
