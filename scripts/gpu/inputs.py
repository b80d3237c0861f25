"""Sizes and inputs of what is measured: plain ones, padded ones, skewed ones, and as many sets as the L2 cache cannot hold."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

NUM_HEADS, HEAD_DIM = 12, 64
HIDDEN = NUM_HEADS * HEAD_DIM
BLOCK = 32
SEQ_LENS = (512, 1024, 2048, 4096, 8192, 16384)
BLOCKS_PER_ROW = (4, 8, 16)
ALL_BLOCKS = 0  # in the place of blocks per row
LONG_ROWS = 3  # of a skewed head: with 4 blocks per row three quarters of the budget
MAX_SETS = 256
MAX_SET_BYTES = 4 << 30  # of all sets of one size together


class Size(NamedTuple):
    """What a row of the tables is of."""

    batch: int
    seq_len: int
    blocks_per_row: int
    case: str = "plain"

    @property
    def name(self) -> str:
        """For people, and in the names of tasks."""
        blocks = "all blocks" if self.blocks_per_row == ALL_BLOCKS else f"{self.blocks_per_row} per row"
        return f"{self.case}, batch {self.batch}, {self.seq_len} tokens, {blocks}"


# Beside the plain grid: padding, a few long rows (whose chunks are split), and short texts, whose budget covers every block.
CASES = (
    Size(8, 512, ALL_BLOCKS, "all"),
    Size(8, 128, ALL_BLOCKS, "all"),
    Size(1, 128, ALL_BLOCKS, "all"),
    Size(8, 4096, 4, "padded"),
    Size(8, 4096, 4, "skewed"),
    Size(8, 352, ALL_BLOCKS, "all"),
    Size(32, 128, ALL_BLOCKS, "all"),
    Size(8, 512, 4, "padded"),
    Size(8, 16384, 4, "skewed"),
)


def num_blocks(seq_len: int, blocks_per_row: int) -> int:
    blocks = -(-seq_len // BLOCK)
    return min(blocks * blocks_per_row, blocks * blocks) if blocks_per_row != ALL_BLOCKS else blocks * blocks


def attributes_for(seq_len: int, blocks_per_row: int) -> Any:
    from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes

    return Mra2AttentionAttributes(NUM_HEADS, num_blocks(seq_len, blocks_per_row), 0, 0, 0, 1 / math.sqrt(HEAD_DIM))


def tensor_bytes(batch: int, seq_len: int) -> int:
    """Of one float16 tensor [batch, seq_len, hidden]."""
    return batch * seq_len * HIDDEN * 2


def set_count(batch: int, seq_len: int, l2_bytes: int) -> int:
    """Sets of query, key, value and context that together exceed twice the L2 cache, and leave memory for all else."""
    one_set = 4 * tensor_bytes(batch, seq_len)
    wanted = 1 + 2 * l2_bytes // one_set
    return max(1, min(wanted, MAX_SETS, MAX_SET_BYTES // one_set))


def make_inputs(batch: int, seq_len: int, seed: int, case: str = "plain", device: str = "cuda") -> list[Any]:
    """Query, key, value float16 [batch, seq_len, hidden], every block with a mean of its own: there is something to find.

    In the case "skewed" LONG_ROWS blocks of queries are almost 0: their logits are all alike, none is far below its row's maximum,
    and they take nearly all key blocks each.
    """
    import torch

    generator = torch.Generator(device=device).manual_seed(seed)
    blocks = -(-seq_len // BLOCK)
    tensors = []
    for _ in range(3):
        noise = torch.randn(batch, blocks, BLOCK, HIDDEN, generator=generator, device=device, dtype=torch.float16)
        noise += torch.randn(batch, blocks, 1, HIDDEN, generator=generator, device=device, dtype=torch.float16)
        tensors.append(noise.view(batch, blocks * BLOCK, HIDDEN)[:, :seq_len].contiguous())
    if case == "skewed":
        for row in range(LONG_ROWS):
            first = (2 * row + 1) * blocks // (2 * LONG_ROWS) * BLOCK
            tensors[0][:, first : first + BLOCK] *= 1e-3
    return tensors


def make_mask(batch: int, seq_len: int, case: str = "plain", device: str = "cuda") -> Any:
    """int32 [batch, seq_len]: all tokens, or in the case "padded" texts of 1/batch, 2/batch, ... of the length."""
    import torch

    lengths = torch.full((batch,), seq_len, device=device)
    if case == "padded":
        lengths = torch.arange(1, batch + 1, device=device) * seq_len // batch
    return (torch.arange(seq_len, device=device)[None, :] < lengths[:, None]).to(torch.int32)
