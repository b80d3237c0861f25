"""The probe that finds which blocks an implementation selects, from outside."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mra_export.operators.mra2_attention.judge import probe_selection
from mra_export.operators.mra2_attention.reference import mra2_attention, select_blocks
from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("approx_mode", [0, 1])
def test_the_probe_sees_the_selection_through_the_output(seed: int, approx_mode: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(2, 300, 32, generator=generator) for _ in range(2))
    mask = torch.ones(2, 300, dtype=torch.int32)
    mask[1, 200:] = 0
    mask[0, 40:51] = 0
    attributes = Mra2AttentionAttributes(2, 23, approx_mode, 0, 1, 0.2)
    choice = select_blocks(query, key, mask, attributes)

    def run(tensors: list[np.ndarray]) -> np.ndarray:
        return mra2_attention(*(torch.from_numpy(t) for t in tensors), mask, attributes).numpy()

    found = probe_selection(run, query.numpy(), key.numpy(), mask.numpy(), 2)
    blocks = choice.selected.shape[-1]
    holds = torch.nn.functional.pad(mask, (0, blocks * 32 - 300)).reshape(2, blocks, 32).any(2)
    real = (holds[:, :, None] & holds[:, None])[:, None]
    assert torch.equal(found, choice.selected & real)
