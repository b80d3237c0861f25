"""Any configuration of `mra::Mra2Attention`, for hypothesis."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

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
