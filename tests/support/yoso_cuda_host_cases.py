"""Cases for the CUDA kernels of mra::YosoAttention."""

from __future__ import annotations

import functools

import torch
from cuda_host_cases import DTYPES, make_mask
from torch import Tensor

from mra_export.operators.yoso_attention.reference import draw_hash_constants
from mra_export.operators.yoso_attention.spec import YosoAttentionAttributes

Case = tuple[list[Tensor], list[Tensor], YosoAttentionAttributes]  # query, key, value, mask; constants; attributes


def expectation(num_heads: int, hash_code_len: int = 9, conv_window: int = 0) -> YosoAttentionAttributes:
    return YosoAttentionAttributes(num_heads, 0, hash_code_len, 0, 0, conv_window)


def lsh(
    num_heads: int, hash_code_len: int = 9, num_hash: int = 8, fast_hash: int = 1, conv_window: int = 0
) -> YosoAttentionAttributes:
    return YosoAttentionAttributes(num_heads, 1, hash_code_len, num_hash, fast_hash, conv_window)


def make_case(
    attributes: YosoAttentionAttributes,
    batch: int,
    seq_len: int,
    head_dim: int,
    dtype: torch.dtype,
    mask: str = "none",
    seed: int = 0,
) -> Case:
    """Rows with a mean per 32 tokens, so that queries and keys are near each other as well as far."""
    generator = torch.Generator().manual_seed(seed)
    hidden = attributes.num_heads * head_dim
    mean = torch.randn(batch, -(-seq_len // 32), 1, hidden, generator=generator).expand(-1, -1, 32, -1)
    mean = mean.reshape(batch, -1, hidden)[:, :seq_len]
    tensors = [(mean + torch.randn(batch, seq_len, hidden, generator=generator)).to(dtype) for _ in range(3)]
    constants = [draw_hash_constants(attributes, head_dim, seed)] if attributes.mode else []
    if attributes.conv_window:
        constants.append(torch.randn(attributes.num_heads, attributes.conv_window, generator=generator).to(dtype) / 4)
    return [*tensors, make_mask(mask, batch, seq_len, seed)], constants, attributes


@functools.cache
def sanitized_cases() -> dict[str, Case]:
    """What runs under the sanitizers of the host, and under those of a GPU: every way through the kernels."""
    return {
        f"{str(dtype).removeprefix('torch.')}-{name}": make_case(attributes, 1, seq_len, head_dim, dtype, "right", 1)
        for dtype in DTYPES
        for name, attributes, seq_len, head_dim in [
            ("e", expectation(2, 9, 3), 75, 40),
            ("e_wide", expectation(1), 33, 256),
            ("fast", lsh(2, 3, 3, 1, 3), 75, 80),
            ("projection", lsh(1, 3, 3, 0), 140, 40),  # two warps sort the tokens
            ("sparse", lsh(1, 14, 1), 40, 8),
        ]
    }
