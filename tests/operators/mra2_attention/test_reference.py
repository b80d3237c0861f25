"""The operator in torch against the golden vectors, and the properties that the specification asks for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from goldens import Golden, load_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from measures import relative_error
from mra2_cases import cases, draw

from mra_export.errors import InputError
from mra_export.operators.mra2_attention.reference import mra2_attention, select_blocks
from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes


def run(golden: Golden, dtype: torch.dtype) -> np.ndarray:
    tensors = (torch.from_numpy(x).to(dtype) for x in (golden.query, golden.key, golden.value))
    return mra2_attention(*tensors, torch.from_numpy(golden.attention_mask), golden.attributes).numpy()


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_golden(golden: Golden, dtype: torch.dtype, limit: float) -> None:
    assert relative_error(run(golden, dtype), golden.expected) <= limit


def test_golden_selection_and_gap(golden: Golden) -> None:
    tensors = (torch.from_numpy(x).double() for x in (golden.query, golden.key))
    choice = select_blocks(*tensors, torch.from_numpy(golden.attention_mask), golden.attributes)
    assert np.array_equal(choice.selected.numpy(), golden.selected)
    np.testing.assert_allclose(choice.gap.numpy(), golden.gap, atol=1e-12)


def test_the_golden_selection_given_back_changes_nothing(golden: Golden) -> None:
    tensors = [torch.from_numpy(x).double() for x in (golden.query, golden.key, golden.value)]
    forced = mra2_attention(
        *tensors,
        torch.from_numpy(golden.attention_mask),
        golden.attributes,
        selected=torch.from_numpy(golden.selected),
    )
    assert relative_error(forced.numpy(), golden.expected) <= 1e-12


def test_a_full_budget_is_exact_attention() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 100, 64, dtype=torch.float64) for _ in range(3))
    mask = torch.ones(2, 100)
    mask[1, 70:] = 0
    attributes = Mra2AttentionAttributes(2, 16, 0, 0, 0, 32**-0.5)
    heads = [x.reshape(2, 100, 2, 32).transpose(1, 2) for x in (q, k, v)]
    bias = torch.where(mask[:, None, None] > 0, 0.0, float("-inf")).double()
    exact = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=bias).transpose(1, 2).reshape(2, 100, 64)
    result = mra2_attention(q, k, v, mask, attributes)
    # The 1e-6 of the denominator is all that is left.
    assert relative_error(result.numpy(), (exact * mask[..., None]).numpy()) < 1e-6


@given(case=cases)
@settings(max_examples=40, deadline=None)
def test_rows_do_not_depend_on_each_other_or_their_order(case: dict) -> None:
    tensors, mask, attributes = draw(case, 3)
    whole = mra2_attention(*tensors, mask, attributes)
    alone = torch.cat([mra2_attention(*(t[i : i + 1] for t in tensors), mask[i : i + 1], attributes) for i in range(3)])
    assert torch.equal(whole, alone)
    order = [2, 0, 1]
    assert torch.equal(mra2_attention(*(t[order] for t in tensors), mask[order], attributes), whole[order])


@given(case=cases)
@settings(max_examples=40, deadline=None)
def test_what_stands_at_padding_does_not_matter(case: dict) -> None:
    tensors, mask, attributes = draw(case, 2)
    clean = mra2_attention(*tensors, mask, attributes)
    dirty = [t.clone() for t in tensors]
    for tensor, poison in zip(dirty, (float("nan"), float("inf"), float("nan")), strict=True):
        tensor[mask == 0] = poison
    assert torch.equal(mra2_attention(*dirty, mask, attributes), clean)
    assert bool((clean[mask == 0] == 0).all())
    assert bool(torch.isfinite(clean).all())


@given(case=cases, extra=st.integers(1, 70))
@settings(max_examples=40, deadline=None)
def test_padding_on_the_right_changes_only_the_epsilon_where_the_budget_covers_all(case: dict, extra: int) -> None:
    """With a smaller budget it may change the selection: empty blocks count as 0 in a row's maximum (step 4)."""
    tensors, mask, attributes = draw({**case, "approx_mode": 0, "num_blocks": 10_000}, 1)
    tensors[0] *= 0.2  # row maxima near 0, so that the 1e-6 of the denominator stays small beside it
    longer = [torch.nn.functional.pad(t, (0, 0, 0, extra), value=float("nan")) for t in tensors]
    padded = mra2_attention(*longer, torch.nn.functional.pad(mask, (0, extra)), attributes)
    plain = mra2_attention(*tensors, mask, attributes)
    torch.testing.assert_close(padded[:, : case["seq_len"]], plain, rtol=1e-3, atol=1e-3)
    assert bool((padded[:, case["seq_len"] :] == 0).all())


def test_ties_go_to_the_lowest_index_and_are_reported() -> None:
    query = torch.zeros(1, 128, 32)
    attributes = Mra2AttentionAttributes(1, 5, 0, 0, 0, 1.0)
    choice = select_blocks(query, query, torch.ones(1, 128), attributes)
    assert choice.selected.flatten().nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
    assert choice.gap.item() == 0
    assert choice.tied_tokens.item()


@pytest.mark.parametrize(
    ("num_blocks", "is_tied"), [(3, True), (4, False), (5, False), (9, False), (12, False), (16, False)]
)
def test_a_tie_of_blocks_without_tokens_is_none(num_blocks: int, is_tied: bool) -> None:
    """Two of four blocks hold tokens: the cut falls among their pairs, behind them, or among pairs with an empty block."""
    query, mask = torch.zeros(1, 128, 32), torch.ones(1, 128)
    mask[0, 64:] = 0
    choice = select_blocks(query, query, mask, Mra2AttentionAttributes(1, num_blocks, 0, 0, 0, 1.0))
    assert choice.tied_tokens.item() is is_tied
    assert choice.selected.sum() == num_blocks
    assert choice.gap.item() == {4: 1e4, 16: float("inf")}.get(num_blocks, 0.0)


def test_an_empty_batch_gives_an_empty_output() -> None:
    golden = load_golden("c06_sparse")
    empty = torch.zeros(0, 40, golden.query.shape[2])
    assert mra2_attention(empty, empty, empty, torch.zeros(0, 40), golden.attributes).shape == empty.shape
    assert select_blocks(empty, empty, torch.zeros(0, 40), golden.attributes).selected.shape == (0, 2, 2, 2)


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ((1, 40, 64), {"num_blocks": 0}, "num_blocks=0 must be at least 1"),
        ((1, 40, 64), {"num_heads": 3}, "num_heads=3 must be at least 1 and divide the hidden size 64"),
        ((1, 40, 64), {"num_heads": 0}, "num_heads=0 must be at least 1 and divide the hidden size 64"),
        ((1, 40, 64), {"num_heads": -2}, "num_heads=-2 must be at least 1 and divide the hidden size 64"),
        ((1, 40, 0), {"num_heads": 1}, "num_heads=1 must be at least 1 and divide the hidden size 0"),
        ((1, 40, 1), {"num_heads": 1}, "head_dim=1 must be a multiple of 8"),
        ((1, 40, 60), {"num_heads": 5}, "head_dim=12 must be a multiple of 8"),
        ((1, 40, 264), {"num_heads": 1}, "head_dim=264 must be a multiple of 8 and at most 256"),
        ((1, 0, 64), {}, "seq_len=0 must be between 1 and"),
        ((1, 40, 64), {"approx_mode": 2}, "approx_mode=2 must be one of"),
        ((1, 40, 64), {"initial_prior_first_n_blocks": -1}, "initial_prior_first_n_blocks=-1 must not be negative"),
    ],
)
def test_sizes_outside_the_limits_are_named(shape: tuple[int, ...], changes: dict, message: str) -> None:
    attributes = dataclasses.replace(Mra2AttentionAttributes(2, 4, 0, 0, 0, 1.0), **changes)
    x = torch.zeros(shape)
    with pytest.raises(InputError, match=message):
        mra2_attention(x, x, x, torch.ones(shape[:2]), attributes)


@pytest.mark.parametrize("shape", [(1, 1, 8), (1, 1, 256)])
def test_the_smallest_sizes_and_the_widest_head_are_allowed(shape: tuple[int, ...]) -> None:
    """One token attends to itself alone."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = mra2_attention(x, x, x, torch.ones(1, 1), Mra2AttentionAttributes(1, 1, 1, 0, 0, 1.0))
    assert relative_error(result.numpy(), x.numpy()) <= 2e-6


def test_shapes_that_do_not_fit_are_named() -> None:
    x, attributes = torch.zeros(1, 40, 64), Mra2AttentionAttributes(2, 4, 0, 0, 0, 1.0)
    with pytest.raises(InputError, match="must have one shape"):
        mra2_attention(x, x[:, :39], x, torch.ones(1, 40), attributes)
    with pytest.raises(InputError, match=r"attention_mask \(1, 39\) must be"):
        mra2_attention(x, x, x, torch.ones(1, 39), attributes)


def test_half_types_are_computed_in_float32() -> None:
    golden = load_golden("c01_default512")
    exact = [torch.from_numpy(x) for x in (golden.query, golden.key, golden.value)]
    mask = torch.from_numpy(golden.attention_mask)
    for dtype, limit in ((torch.float16, 5e-4), (torch.bfloat16, 4e-3)):
        half = [t.to(dtype) for t in exact]
        result = mra2_attention(*half, mask, golden.attributes)
        assert result.dtype == dtype
        twin = mra2_attention(*(t.float() for t in half), mask, golden.attributes)
        assert relative_error(result.float().numpy(), twin.numpy()) <= limit
