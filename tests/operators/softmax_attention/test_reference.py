"""Softmax attention in torch: against torch's own, and what padding and a decoder's mask leave out."""

from __future__ import annotations

import pytest
import torch

from mra_export.operators.softmax_attention.judge import DenseJudge
from mra_export.operators.softmax_attention.reference import softmax_attention
from mra_export.operators.softmax_attention.spec import DenseAttentionAttributes


def tensors(seq_len: int = 7, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [2 * torch.randn(2, seq_len, 24, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("is_causal", [0, 1])
@pytest.mark.parametrize("scale", [0.25, 1.0])
def test_it_is_that_of_torch(is_causal: int, scale: float) -> None:
    given, mask = tensors(), torch.ones(2, 7)
    mask[1, 4:] = 0
    mask[0, 2] = 0
    keep = (mask != 0)[:, None, None, :].expand(2, 1, 7, 7)
    if is_causal:
        keep = keep & torch.ones(7, 7, dtype=torch.bool).tril()
    heads = [x.unflatten(-1, (3, 8)).transpose(1, 2) for x in given]
    expected = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=keep, scale=scale)
    found = softmax_attention(*given, mask, DenseAttentionAttributes(3, is_causal, scale))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected.transpose(1, 2).flatten(2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    given, mask, attributes = tensors(dtype=dtype), torch.ones(2, 7), DenseAttentionAttributes(2, 0, 0.5)
    found = softmax_attention(*given, mask, attributes)
    assert found.dtype == dtype
    assert torch.equal(found, softmax_attention(*(x.float() for x in given), mask, attributes).to(dtype))


def test_a_row_of_padding_alone_is_the_mean_and_no_nan() -> None:
    """As with the lowest finite number in the place of minus infinity."""
    given = tensors()
    found = softmax_attention(*given, torch.zeros(2, 7), DenseAttentionAttributes(2, 0, 0.5))
    torch.testing.assert_close(found, given[2].mean(1, keepdim=True).expand(2, 7, 24))


def test_half_types_of_standard_operators_may_cost_more() -> None:
    judge = DenseJudge(softmax_attention, [DenseAttentionAttributes(2, 0, 0.5)])
    assert [judge.tolerance(dtype).operator for dtype in ("fp32", "fp16", "bf16")] == [2e-5, 5e-3, 4e-2]
    assert [judge.tolerance(dtype).outputs for dtype in ("fp32", "fp16", "bf16")] == [1e-4, 1e-2, 8e-2]


def test_attributes_by_name() -> None:
    assert DenseAttentionAttributes(2, 1, 0.5).as_dict() == {"num_heads": 2, "is_causal": 1, "scale": 0.5}
