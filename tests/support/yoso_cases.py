"""Configurations of `mra::YosoAttention`, and inputs for them."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from mra_export.operators.yoso_attention.reference import (
    draw_hash_constants,
)
from mra_export.operators.yoso_attention.spec import YosoAttentionAttributes

EXPECTATION = YosoAttentionAttributes(2, 0, 9)


LSH = YosoAttentionAttributes(2, 1, 9, 16, 1)


def draw(seed: int, attributes: YosoAttentionAttributes, head_dim: int, seq_len: int, batch: int = 2) -> list[Tensor]:
    """float64 query, key and value [batch, seq_len, hidden_size], and the constants that the attributes ask for."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, seq_len, attributes.num_heads * head_dim)
    common = torch.randn(shape[2], generator=generator, dtype=torch.float64)  # so that cosines are not all near 0
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) + common for _ in range(3)]
    if attributes.mode == 1:
        tensors.append(draw_hash_constants(attributes, head_dim, seed))
    if attributes.conv_window:
        tensors.append(torch.randn(attributes.num_heads, attributes.conv_window, generator=generator).double())
    return tensors


cases = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "seq_len": st.integers(1, 70),
        "heads": st.integers(1, 3),
        "head_dim": st.sampled_from([8, 24, 64]),
        "mode": st.integers(0, 1),
        "hash_code_len": st.integers(1, 12),
        "num_hash": st.integers(1, 20),
        "fast_hash": st.integers(0, 1),
        "conv_window": st.sampled_from([0, 1, 5]),
        "keep": st.floats(0.0, 1.0),
    }
)


def draw_case(case: dict, batch: int) -> tuple[list[Tensor], Tensor, YosoAttentionAttributes]:
    """Tensors as `draw` makes them, a mask and the attributes of one case."""
    attributes = YosoAttentionAttributes(
        case["heads"],
        case["mode"],
        case["hash_code_len"],
        case["num_hash"] * case["mode"],
        case["fast_hash"] * case["mode"],
        case["conv_window"],
    )
    tensors = draw(case["seed"], attributes, case["head_dim"], case["seq_len"], batch)
    mask = torch.rand(batch, case["seq_len"], generator=torch.Generator().manual_seed(case["seed"])) < case["keep"]
    return tensors, mask.int(), attributes
