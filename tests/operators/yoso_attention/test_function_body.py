"""YOSO's ONNX function body in ONNX Runtime and in onnx's evaluator, without any library."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from yoso_cases import LSH, draw
from yoso_models import ALL, error, feeds, yoso_model

from mra_export.operators.yoso_attention.function_body import MIN_OPSET
from mra_export.operators.yoso_attention.reference import yoso_attention
from mra_export.operators.yoso_attention.spec import YosoAttentionAttributes

NEWEST_OPSET = 25


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


@pytest.mark.parametrize("head_dim", [8, 24, 64])
@ALL
def test_both_runtimes(attributes: YosoAttentionAttributes, head_dim: int) -> None:
    drawn = draw(1, attributes, head_dim, 150)
    tensors, constants = [x.float() for x in drawn[:3]], drawn[3:]
    mask = (torch.rand(2, 150, generator=torch.Generator().manual_seed(0)) < 0.8).int()
    for tensor in tensors:
        tensor[mask == 0] = float("nan")
    constants = [c if c.dtype == torch.int32 else c.float() for c in constants]
    expected = yoso_attention(*tensors, mask, attributes, *constants)
    model = yoso_model(attributes, head_dim, constants)
    onnx.checker.check_model(model, full_check=True)
    assert error(session(model).run(None, feeds(tensors, mask))[0], expected) <= 2e-5
    with np.errstate(all="ignore"):
        assert error(ReferenceEvaluator(model).run(None, feeds(tensors, mask))[0], expected) <= 2e-5


@pytest.mark.parametrize("opset", [MIN_OPSET, 23, NEWEST_OPSET])
@ALL
def test_every_opset(attributes: YosoAttentionAttributes, opset: int) -> None:
    drawn = draw(2, attributes, 16, 40)
    tensors, constants = [x.float() for x in drawn[:3]], drawn[3:]
    constants = [c if c.dtype == torch.int32 else c.float() for c in constants]
    mask = torch.ones(2, 40)
    model = yoso_model(attributes, 16, constants, opset=opset)
    onnx.checker.check_model(model, full_check=True)
    expected = yoso_attention(*tensors, mask, attributes, *constants)
    assert error(session(model).run(None, feeds(tensors, mask))[0], expected) <= 2e-5


@pytest.mark.parametrize(
    ("kind", "dtype", "limit"),
    [(TensorProto.FLOAT16, torch.float16, 5e-4), (TensorProto.BFLOAT16, torch.bfloat16, 4e-3)],
    ids=["float16", "bfloat16"],
)
@ALL
def test_half_types(attributes: YosoAttentionAttributes, kind: int, dtype: torch.dtype, limit: float) -> None:
    drawn = draw(3, attributes, 16, 40)
    tensors, constants = [x.to(dtype) for x in drawn[:3]], drawn[3:]
    constants = [c if c.dtype == torch.int32 else c.to(dtype) for c in constants]
    mask = torch.ones(2, 40)
    model = yoso_model(attributes, 16, constants, kind=kind)
    expected = yoso_attention(*(x.float() for x in tensors), mask, attributes, *constants)
    inputs = feeds(tensors, mask, helper.tensor_dtype_to_np_dtype(kind))
    with np.errstate(all="ignore"):
        assert error(ReferenceEvaluator(model).run(None, inputs)[0].astype(np.float32), expected) <= limit
    if kind == TensorProto.FLOAT16:  # ONNX Runtime's CPU provider has no bfloat16 kernels
        assert error(session(model).run(None, inputs)[0].astype(np.float32), expected) <= limit


@ALL
def test_an_empty_batch_and_one_token(attributes: YosoAttentionAttributes) -> None:
    constants = [c if c.dtype == torch.int32 else c.float() for c in draw(4, attributes, 16, 1)[3:]]
    run = session(yoso_model(attributes, 16, constants))
    for batch, seq_len in ((0, 40), (3, 1)):
        tensors = [x.float() for x in draw(5, attributes, 16, seq_len, max(batch, 1))[:3]]
        tensors = [x[:batch] for x in tensors]
        mask = torch.ones(batch, seq_len)
        result = run.run(None, feeds(tensors, mask))[0]
        assert result.shape == (batch, seq_len, 32)
        expected = yoso_attention(*tensors, mask, attributes, *constants)
        np.testing.assert_allclose(result, expected.numpy(), atol=1e-5)


@ALL
def test_no_tensor_grows_with_the_square_of_the_length(attributes: YosoAttentionAttributes) -> None:
    """The largest intermediate values at 512 and 1024 tokens, by running the inlined graph, inside of Scan too."""
    attributes = dataclasses.replace(attributes, num_heads=1)
    largest = []
    for seq_len in (512, 1024):
        drawn = draw(6, attributes, 8, seq_len, 1)
        constants = [c if c.dtype == torch.int32 else c.float() for c in drawn[3:]]
        model = onnx.inliner.inline_local_functions(yoso_model(attributes, 8, constants))
        seen: list[int] = []

        class Watched(ReferenceEvaluator):
            def _log(self, level: int, pattern: str, *values: object) -> None:
                seen.extend(np.size(v) for v in values if isinstance(v, np.ndarray))  # noqa: B023

        with np.errstate(all="ignore"):
            Watched(model, verbose=10).run(None, feeds([x.float() for x in drawn[:3]], torch.ones(1, seq_len)))
        assert len(seen) > 30
        largest.append(max(seen))
    assert largest[1] <= 2.1 * largest[0]


def test_a_hash_code_is_of_a_rounded_row() -> None:
    """ONNX Runtime's CPU provider computes float16 in float32 and may leave a rounding out; codes must not see that."""
    attributes = dataclasses.replace(LSH, num_hash=64)
    drawn = draw(7, attributes, 64, 200)
    constants, mask = drawn[3:], torch.ones(2, 200)
    model = yoso_model(attributes, 64, constants, kind=TensorProto.FLOAT16)
    # Before the node, sums of two float16 tensors, which have more digits.
    for name in ("query", "key"):
        model.graph.input.append(helper.make_tensor_value_info(f"{name}_more", TensorProto.FLOAT16, [2, 200, 128]))
        model.graph.node.insert(0, helper.make_node("Add", [name, f"{name}_more"], [f"{name}_sum"]))
        model.graph.output.append(helper.make_tensor_value_info(f"{name}_sum", TensorProto.FLOAT16, [2, 200, 128]))
        model.graph.node[-1].input[("query", "key").index(name)] = f"{name}_sum"
    tensors = [x.half() for x in drawn[:3]]
    more = {f"{name}_more": (x * 1.3e-3).half().numpy() for name, x in zip(("query", "key"), tensors, strict=False)}
    context, key_sum, query_sum = _by_name(
        session(model), {**feeds(tensors, mask, np.float16), **more}, ("context", "key_sum", "query_sum")
    )
    expected = yoso_attention(
        torch.from_numpy(query_sum).float(),
        torch.from_numpy(key_sum).float(),
        tensors[2].float(),
        mask,
        attributes,
        *constants,
    )
    assert error(context, expected) <= 5e-4


def _by_name(
    run: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray], names: tuple[str, ...]
) -> list[np.ndarray]:
    return run.run(list(names), inputs)
