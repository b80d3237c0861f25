"""Any configuration of `mra::Mra2Attention`, for hypothesis; and inputs whose selection is clear."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from kernel_cases import make_mask
from torch import Tensor

from mra_export.operators.mra2_attention.reference import select_blocks
from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes

cases = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "seq_len": st.integers(1, 200),
        "heads": st.integers(1, 3),
        "head_dim": st.sampled_from([8, 24, 32]),
        "num_blocks": st.integers(1, 40),
        "approx_mode": st.integers(0, 1),
        "first_n": st.integers(0, 2),
        "diagonal_n": st.integers(0, 4),
        "keep": st.floats(0.05, 1.0),
    }
)


def draw(case: dict, batch: int) -> tuple[list[torch.Tensor], torch.Tensor, Mra2AttentionAttributes]:
    generator = torch.Generator().manual_seed(case["seed"])
    shape = (batch, case["seq_len"], case["heads"] * case["head_dim"])
    tensors = [2 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    mask = (torch.rand(shape[:2], generator=generator) < case["keep"]).int()
    attributes = Mra2AttentionAttributes(
        case["heads"],
        case["num_blocks"],
        case["approx_mode"],
        case["first_n"],
        case["diagonal_n"],
        case["head_dim"] ** -0.5,
    )
    return tensors, mask, attributes


def attributes_of(head_dim: int, num_heads: int = 2, **changes: object) -> Mra2AttentionAttributes:
    values = {
        "num_heads": num_heads,
        "num_blocks": 16,
        "approx_mode": 0,
        "initial_prior_first_n_blocks": 0,
        "initial_prior_diagonal_n_blocks": 0,
        "scale": max(head_dim, 32) ** -0.5,
    }
    return Mra2AttentionAttributes(**(values | changes))  # type: ignore[arg-type]


def make_inputs(
    attributes: Mra2AttentionAttributes, batch: int, seq_len: int, head_dim: int, mask_kind: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key, value [batch, seq_len, hidden] of `dtype` whose selection float32 arithmetic cannot change.

    Normal, with a mean per block, so that blocks differ as those of a trained model do. Drawn until no head's cut falls
    between scores that differ by less than float32 resolves: some 1e-6, or 1e-3 beside the priors' 5e3 and the penalty's
    1e4. Equal scores are kept: which of them is selected is defined.
    """
    generator = torch.Generator().manual_seed(seq_len * 1000 + head_dim)
    for _ in range(200):
        shape = (batch, -(-seq_len // 32), 1, attributes.num_heads * head_dim)
        query, key, value = (
            (torch.randn(*shape, generator=generator) / 2 + torch.randn(*shape[:2], 32, shape[3], generator=generator))
            .flatten(1, 2)[:, :seq_len]
            .contiguous()
            .to(dtype)
            for _ in range(3)
        )
        mask = make_mask(mask_kind, batch, seq_len, generator)
        selection = select_blocks(query.double(), key.double(), mask, attributes)
        cut = selection.score.masked_fill(~selection.selected, float("inf")).flatten(2).amin(2)
        unclear = torch.where(cut.abs() > 2500, 2e-3, 2e-5)
        if bool(((selection.gap == 0) | (selection.gap > unclear)).all()):
            return query, key, value, mask
    raise AssertionError("no input with a clear selection was found")
