"""What the tests of the kernels of both operators share: padding of every kind, and the distance from the truth."""

from __future__ import annotations

import torch
from torch import Tensor

MASKS = ("full", "right", "holes", "empty example")


def make_mask(kind: str, batch: int, seq_len: int, generator: torch.Generator) -> Tensor:
    mask = torch.ones(batch, seq_len, dtype=torch.int32)
    if kind == "right":
        for example in range(batch):
            mask[example, seq_len - (seq_len * (example + 1)) // (batch + 2) :] = 0
        mask[:, 0] = 1
    elif kind == "holes":
        mask = (torch.rand(batch, seq_len, generator=generator) < 0.7).to(torch.int32)
        mask[:, seq_len // 3 : 2 * seq_len // 3] = 0  # whole blocks in the middle where the sequence has enough of them
        mask[:, 0] = 7  # any value but 0 is a token
    elif kind == "empty example":
        mask[-1] = 0
    return mask


def error(actual: Tensor, expected: Tensor) -> float:
    assert bool(torch.isfinite(actual).all())
    return float((actual.double() - expected).norm() / max(float(expected.norm()), 1e-30))
