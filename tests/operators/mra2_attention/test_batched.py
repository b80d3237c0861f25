"""The batched operator against the reference and the golden vectors, and its gradient against differences in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from goldens import Golden
from hypothesis import given, settings
from measures import relative_error
from mra2_cases import cases, draw

from mra_export.errors import InputError
from mra_export.operators.mra2_attention import batched as module
from mra_export.operators.mra2_attention.batched import mra2_attention_batched
from mra_export.operators.mra2_attention.reference import mra2_attention
from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_golden(golden: Golden, dtype: torch.dtype, limit: float) -> None:
    tensors = (torch.from_numpy(x).to(dtype) for x in (golden.query, golden.key, golden.value))
    result = mra2_attention_batched(*tensors, torch.from_numpy(golden.attention_mask), golden.attributes)
    assert relative_error(result.numpy(), golden.expected) <= limit


@settings(max_examples=60, deadline=None)
@given(cases)
def test_as_the_reference(case: dict) -> None:
    tensors, mask, attributes = draw(case, batch=3)
    expected = mra2_attention(*tensors, mask, attributes)
    assert relative_error(mra2_attention_batched(*tensors, mask, attributes).numpy(), expected.numpy()) <= 1e-12


@pytest.mark.parametrize("mode", [0, 1])
def test_gradient(mode: int) -> None:
    """By differences in float64, with padding amid the tokens and a row of blocks of which none is selected."""
    generator = torch.Generator().manual_seed(5)
    tensors = [torch.randn(2, 70, 16, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    mask = torch.ones(2, 70, dtype=torch.int32)
    mask[0, 3], mask[1, 50:] = 0, 0
    attributes = Mra2AttentionAttributes(2, 2, mode, 0, 0, 32**-0.5)
    assert torch.autograd.gradcheck(
        lambda *x: mra2_attention_batched(*x, mask, attributes), tensors, atol=1e-5, fast_mode=True
    )


@pytest.mark.parametrize(
    ("mode", "heads", "num_blocks", "first", "diagonal", "heads_at_a_time"),
    [(0, 1, 9, 0, 0, 1), (0, 2, 5, 1, 0, 1), (1, 2, 6, 0, 3, 4), (0, 1, 4, 1, 1, 2), (1, 1, 100, 0, 0, 1)],
)
def test_gradient_of_single_elements(
    mode: int,
    heads: int,
    num_blocks: int,
    first: int,
    diagonal: int,
    heads_at_a_time: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each derivative by itself, of a token in each block: with priors, with all blocks, heads together and one by one."""
    monkeypatch.setattr(module, "_CACHED", heads_at_a_time * min(num_blocks, 9) * 32 * 32)
    generator = torch.Generator().manual_seed(8)
    start = [torch.randn(2, 66, 8 * heads, generator=generator, dtype=torch.float64) for _ in range(3)]
    tokens = torch.tensor([1, 40, 65])
    few = [x[:, tokens].clone().requires_grad_() for x in start]
    mask = torch.ones(2, 66, dtype=torch.int32)
    mask[0, 40], mask[1, 60:] = 0, 0
    attributes = Mra2AttentionAttributes(heads, num_blocks, mode, first, diagonal, 32**-0.5)

    def attend(*parts: torch.Tensor) -> torch.Tensor:
        whole = [x.index_copy(1, tokens, part) for x, part in zip(start, parts, strict=True)]
        return mra2_attention_batched(*whole, mask, attributes)[:, ::7]

    assert torch.autograd.gradcheck(attend, few, atol=1e-5)


def test_the_gradient_is_the_references() -> None:
    generator = torch.Generator().manual_seed(6)
    mask = torch.ones(2, 100, dtype=torch.int32)
    mask[1, 80:] = 0
    attributes = Mra2AttentionAttributes(2, 6, 0, 1, 1, 32**-0.5)
    start = [torch.randn(2, 100, 64, generator=generator, dtype=torch.float64) for _ in range(3)]
    found = []
    for attend in (mra2_attention, mra2_attention_batched):
        tensors = [x.clone().requires_grad_() for x in start]
        attend(*tensors, mask, attributes).sin().sum().backward()
        found.append([x.grad for x in tensors])
    for expected, actual in zip(*found, strict=True):
        assert relative_error(actual.numpy(), expected.numpy()) <= 1e-5  # what M contributes through the 1e-6


def test_inputs_stay_as_they_are() -> None:
    generator = torch.Generator().manual_seed(7)
    tensors = [torch.randn(1, 64, 32, generator=generator) for _ in range(3)]
    before = [x.clone() for x in tensors]
    mra2_attention_batched(*tensors, torch.ones(1, 64), Mra2AttentionAttributes(1, 2, 0, 0, 0, 1.0))
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))


def test_what_is_left_out_does_not_reach_the_output() -> None:
    tensors = [torch.randn(2, 40, 32) for _ in range(3)]
    mask = torch.ones(2, 40)
    mask[0, 10] = 0
    attributes = Mra2AttentionAttributes(1, 2, 0, 0, 0, 1.0)
    clean = mra2_attention_batched(*tensors, mask, attributes)
    for x in tensors:
        x[0, 10] = torch.nan
    assert torch.equal(mra2_attention_batched(*tensors, mask, attributes), clean)


def test_an_empty_batch_and_half_types() -> None:
    attributes = Mra2AttentionAttributes(1, 2, 0, 0, 0, 1.0)
    empty = torch.zeros(0, 40, 32)
    assert mra2_attention_batched(empty, empty, empty, torch.ones(0, 40), attributes).shape == (0, 40, 32)
    half = [torch.randn(1, 40, 32).bfloat16() for _ in range(3)]
    result = mra2_attention_batched(*half, torch.ones(1, 40), attributes)
    assert result.dtype == torch.bfloat16
    expected = mra2_attention(*half, torch.ones(1, 40), attributes)
    assert relative_error(result.float().numpy(), expected.float().numpy()) <= 1e-2


def test_limits_are_the_references() -> None:
    tensors = [torch.zeros(1, 40, 32) for _ in range(3)]
    bad = dataclasses.replace(Mra2AttentionAttributes(1, 2, 0, 0, 0, 1.0), num_blocks=0)
    with pytest.raises(InputError, match="num_blocks=0 must be at least 1"):
        mra2_attention_batched(*tensors, torch.ones(1, 40), bad)
