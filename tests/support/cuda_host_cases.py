"""What the tests of the CUDA kernels of both operators share: types, padding of every kind, and poison in it."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


FLOAT32_TOLERANCE = 2e-5


MASKS = ["none", "right", "holes", "one_empty"]


def make_mask(kind: str, batch: int, seq_len: int, seed: int) -> Tensor:
    """int32 [batch, seq_len]; values other than 1 are tokens too."""
    mask = torch.ones(batch, seq_len, dtype=torch.int32)
    if kind == "right":
        for example in range(batch):
            mask[example, seq_len - seq_len * (example + 1) // (batch + 2) :] = 0
    elif kind == "holes":
        generator = torch.Generator().manual_seed(seed)
        mask = torch.randint(0, 3, (batch, seq_len), generator=generator, dtype=torch.int32)
        mask[:, seq_len // 3 : seq_len // 3 + 40] = 0
    elif kind == "one_empty":
        mask[batch - 1] = 0
    return mask


def poison_padding(tensors: tuple[Tensor, ...], mask: Tensor) -> tuple[Tensor, ...]:
    """NaN and infinity at padded tokens."""
    poisoned = []
    for number, tensor in enumerate(tensors):
        copy = tensor.clone()
        copy[mask == 0] = math.nan if number % 2 == 0 else math.inf
        poisoned.append(copy)
    return tuple(poisoned)


Case = tuple[Tensor, Tensor, Tensor, Tensor, Mra2AttentionAttributes]


def make_case(
    dtype: torch.dtype, batch: int, seq_len: int, heads: int, head_dim: int, *attributes: float, seed: int = 0
) -> Case:
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(batch, seq_len, heads * head_dim, generator=generator).to(dtype) for _ in range(3)]
    mask = torch.ones(batch, seq_len, dtype=torch.int32)
    mask[0, seq_len - seq_len // 5 :] = 0
    mask[-1, 3:5] = 0
    num_blocks, mode, first_n, diagonal_n = (int(value) for value in attributes)
    return (*tensors, mask, Mra2AttentionAttributes(heads, num_blocks, mode, first_n, diagonal_n, 0.125))


@functools.cache
def sanitized_cases() -> dict[str, Case]:
    """What runs under the sanitizers of the host, and under those of a GPU: every way through the kernels."""
    cases = {
        f"{str(dtype).removeprefix('torch.')}-{name}": make_case(dtype, *sizes)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
        for name, sizes in {
            "one_token": (1, 1, 1, 8, 1, 0, 0, 0),
            "ragged": (2, 75, 2, 40, 4, 0, 0, 3),
            "sparse": (1, 96, 1, 64, 5, 1, 1, 0),
            "all": (1, 70, 1, 128, 100, 0, 0, 0),
            "split": (1, 19 * 32, 1, 32, 42, 0, 1, 0),  # the first row's 19 blocks in three chunks
            "wide": (1, 64, 1, 256, 2, 0, 0, 0),
        }.items()
    }
    # Two row tiles: the last thread block to arrive selects for all.
    return cases | {"float16-two_tiles": make_case(torch.float16, 1, 70 * 32, 1, 8, 100, 0, 0, 0)}
