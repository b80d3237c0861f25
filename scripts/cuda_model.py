"""Models what each CUDA kernel of mra::Mra2Attention takes on an H100, from counted instructions and bytes: nothing is measured.

    python scripts/cuda_model.py                        writes docs/benchmarks/cuda_model.md
    python scripts/cuda_model.py --print                prints it
    python scripts/cuda_model.py --compare gpu.json     beside what scripts/gpu_check.py measured, kernel by kernel

A kernel takes the longest of: its instructions at the rate at which multiprocessors issue them, its bytes from memory, its bytes
from the L2 cache, and the waits that follow upon one another in one thread block. float16, 12 heads of 64. Errors of 30 % are
to be expected.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
TARGET = REPO / "docs" / "benchmarks" / "cuda_model.md"
HEADS, HEAD_DIM, BLOCK = 12, 64, 32
SEQ_LENS = (512, 1024, 2048, 4096, 8192, 16384)

# The machine: an H100 SXM. The rates are what such cards were seen to do, not what is printed on them.
MULTIPROCESSORS = 132
CYCLES_PER_US = 1755.0
COPY_BYTES_PER_US = 3.0e6
L2_BYTES_PER_US = 6.0e6
ISSUED_PER_CYCLE = 2.65  # of 4, by a multiprocessor with many warps
ISSUED_BY_ONE_BLOCK = 2.2  # likewise, with 16 warps that wait for each other
L2_CYCLES = 450.0  # one wait for the L2 cache
ARRIVAL_CYCLES = 1000.0  # a fence, an atomic addition, a barrier
LAUNCH_US = 1.5  # begin and end of a kernel that follows another in a graph

# Instructions of a warp in the machine code for sm_90 (nvcc 13.0.88), counted by scripts/cuda_static.py and by hand.
TILE = 242  # attention: 16 rows and a full tile of 32 keys
DENSE_TILE = 266  # the same where every block is selected
CHUNK = 900  # what an attention warp does before and after its tiles
POOL = 9 * (4 * 171 + 350)  # the 9 warps that pool a block of 32 tokens, all heads
FIRST_BITS, NEXT_BITS = 27, 45  # a score of each lane
LIST_STEP, LIST_SCORES = (
    496,
    190,
)  # lists and low-resolution sums: 64 columns, and in them a score of each lane; 2016 with 4 rows
LOGITS = {
    16: (32, 418),
    32: (32, 708),
    64: (64, 1240),
    512: (128, 2037),
}  # up to so many blocks: columns of a step, instructions of it

# Dense attention, forward, head size 64, as published for this card (FlashAttention-3's article), TFLOP/s by length.
CUDNN = {512: 335, 1024: 373, 2048: 395, 4096: 408, 8192: 412, 16384: 413}
FLASH3 = {512: 333, 1024: 392, 2048: 460, 4096: 476, 8192: 496, 16384: 497}


@dataclass(frozen=True)
class Kernel:
    """A launch: microseconds, and which of the limits it is that takes so long."""

    name: str
    us: float
    limit: str


@dataclass(frozen=True)
class Size:
    """A call of the operator; blocks_per_row is capped at all."""

    batch: int
    seq_len: int
    blocks_per_row: int

    @property
    def blocks(self) -> int:
        """Of one sequence."""
        return -(-self.seq_len // BLOCK)

    @property
    def heads(self) -> int:
        """Of all examples."""
        return self.batch * HEADS

    @property
    def selected(self) -> int:
        """Pairs of blocks of a head."""
        return self.blocks * min(self.blocks_per_row, self.blocks)

    @property
    def dense(self) -> bool:
        """Whether every pair is selected."""
        return self.selected == self.blocks**2

    @property
    def tensor_bytes(self) -> int:
        """Of query, key, value or context."""
        return self.heads * self.seq_len * HEAD_DIM * 2

    @property
    def floor_us(self) -> float:
        """Each of the four tensors moved once at the speed of a copy."""
        return 4 * self.tensor_bytes / COPY_BYTES_PER_US

    def dense_us(self, rates: dict[int, int]) -> float | None:
        """Dense attention at a published rate, with which it computes 128 rows at a time on every multiprocessor."""
        if self.heads * self.seq_len < 128 * MULTIPROCESSORS:
            return None
        return 4 * self.heads * self.seq_len**2 * HEAD_DIM / rates[self.seq_len] / 1e6


def launched(name: str, **limits: float) -> Kernel:
    limit = max(limits, key=lambda each: limits[each])
    return Kernel(name, limits[limit] + LAUNCH_US, limit)


def issue_us(instructions: float) -> float:
    """Instructions of all warps, spread over the whole GPU."""
    return instructions / (MULTIPROCESSORS * ISSUED_PER_CYCLE * CYCLES_PER_US)


def waves(thread_blocks: int, per_multiprocessor: int) -> int:
    return -(-thread_blocks // (MULTIPROCESSORS * per_multiprocessor))


def pool(size: Size) -> Kernel:
    pooled = 3 * size.heads * size.blocks * HEAD_DIM * 4
    memory = (3 * size.tensor_bytes + pooled) / COPY_BYTES_PER_US
    issue = issue_us(size.batch * size.blocks * POOL)
    return launched("mra2_pool_kernel", memory=memory, issue=issue, waits=4 * L2_CYCLES / CYCLES_PER_US)


def logits_step(blocks: int) -> tuple[int, int]:
    return next(step for most, step in sorted(LOGITS.items()) if blocks <= most or most == max(LOGITS))


def selection(size: Size) -> list[Kernel]:
    """A thread block of 16 warps has 64 rows of a head: up to 64 it does everything, beyond that each step is a launch."""
    rows, blocks = min(size.blocks, 64), size.blocks
    tiles = -(-blocks // 64)
    own_rows = -(-rows // 16)
    columns, instructions = logits_step(blocks)
    steps = -(-blocks // columns)
    scores = own_rows * -(-blocks // 32)
    read = -(-own_rows * -(-blocks // 32) // 4) * L2_CYCLES  # four loads of a warp are under way at a time
    logits = steps * instructions, steps * 2 * L2_CYCLES
    first = scores * FIRST_BITS + 400, read + ARRIVAL_CYCLES
    following = scores * NEXT_BITS + 500, read + ARRIVAL_CYCLES
    lists = -(-blocks // 64) * LIST_STEP + scores * LIST_SCORES + 600, -(-blocks // 64) * 2 * L2_CYCLES + ARRIVAL_CYCLES

    def kernel(name: str, resident: int, *parts: tuple[float, float]) -> Kernel:
        warp = sum(instructions for instructions, _ in parts)
        thread_blocks = size.heads * tiles
        beside = min(resident, -(-thread_blocks // MULTIPROCESSORS))
        rate = ISSUED_BY_ONE_BLOCK if beside == 1 else ISSUED_PER_CYCLE
        turns = waves(thread_blocks, resident) / CYCLES_PER_US
        return launched(name, issue=turns * beside * 16 * warp / rate, waits=turns * sum(wait for _, wait in parts))

    if tiles == 1:
        return [kernel("mra2_select_kernel", 1, logits, first, following, following, lists)]
    return [
        kernel("mra2_logits_kernel", 2, logits, first),
        kernel("mra2_refine_kernel", 2, following),
        kernel("mra2_refine_kernel", 2, following),
        kernel("mra2_lists_kernel", 1, lists),
    ]


def attention(size: Size) -> Kernel:
    """Two warps for a chunk of at most 8 tiles of 32 rows; seven such thread blocks on a multiprocessor."""
    per_row = size.selected / size.blocks
    chunks = size.heads * size.blocks * -(-per_row // 8)
    issue = issue_us(2 * (chunks * CHUNK + size.heads * size.selected * TILE))
    tile_bytes = 2 * BLOCK * HEAD_DIM * 2
    gather = (size.heads * size.selected + chunks) * tile_bytes / L2_BYTES_PER_US
    memory = 4 * size.tensor_bytes / COPY_BYTES_PER_US
    one = 3 * L2_CYCLES + CHUNK + 3 * TILE * min(per_row, 8)  # a warp alone issues about every third cycle
    waits = waves(int(chunks), 7) * one / CYCLES_PER_US
    return launched("mra2_mma_kernel", issue=issue, gather=gather, memory=memory, waits=waits)


def dense_attention(size: Size) -> Kernel:
    """Four warps for 64 rows, which share the tiles."""
    thread_blocks = size.heads * -(-size.blocks // 2)
    tiles = thread_blocks * size.blocks
    issue = issue_us(4 * (tiles * DENSE_TILE + thread_blocks * CHUNK))
    gather = (tiles + thread_blocks) * 2 * BLOCK * HEAD_DIM * 2 / L2_BYTES_PER_US
    memory = 4 * size.tensor_bytes / COPY_BYTES_PER_US
    one = 2 * L2_CYCLES + CHUNK + 3 * DENSE_TILE * size.blocks
    waits = waves(thread_blocks, 4) * one / CYCLES_PER_US
    return launched("mra2_dense_mma_kernel", issue=issue, gather=gather, memory=memory, waits=waits)


def kernels(size: Size) -> list[Kernel]:
    """The launches of a call, in order."""
    if size.dense:
        return [dense_attention(size)]
    return [pool(size), *selection(size), attention(size)]


def total_us(size: Size) -> float:
    return sum(kernel.us for kernel in kernels(size))


def rows(batch: int, blocks_per_row: int) -> Iterable[str]:
    for seq_len in SEQ_LENS:
        size = Size(batch, seq_len, blocks_per_row)
        launches = kernels(size)
        parts = {"pool": 0.0, "select": 0.0, "attention": 0.0}
        for kernel in launches:
            part = "pool" if "pool" in kernel.name else "attention" if "mma" in kernel.name else "select"
            parts[part] += kernel.us
        total, dense = total_us(size), size.dense_us(CUDNN)
        cells = [seq_len, "all" if size.dense else blocks_per_row, f"{size.floor_us:.0f}"]
        cells += [f"{us:.0f}" if us else "-" for us in parts.values()]
        cells += [
            launches[-1].limit,
            f"{total:.0f}",
            *(f"{us:.0f}" if us else "-" for us in (dense, size.dense_us(FLASH3))),
        ]
        cells += [f"{dense / total:.1f}" if dense else "-", f"{size.floor_us / total:.2f}"]
        yield f"| {' | '.join(map(str, cells))} |"


HEADER = """\
# CUDA kernels on an H100: modelled

Written by `python scripts/cuda_model.py`. **Nothing here was measured**: the times follow from instructions counted in the machine
code for sm_90, from bytes counted in the sources, and from rates that such cards were seen to have. Errors of 30 % are to be
expected, and counts of a kernel that is changed are to be brought up to date in the script.
[cuda.md](cuda.md) says how they are measured; `python scripts/cuda_model.py --compare gpu.json` puts both side by side.

Microseconds, float16, 12 heads of 64. *floor* is four tensors at {copy:.1f} TB/s; *limit* is what the attention waits for:
instructions (issue), the L2 cache (gather), memory, or waits that follow upon one another. Dense attention is at published rates of
its forward pass, and left out where it has too few rows to reach them.
"""
TITLES = "| tokens | blocks per row | floor | pool | select | attention | limit | total | cuDNN | Flash-3 | x cuDNN | of floor |"


def page() -> str:
    lines = [HEADER.format(copy=COPY_BYTES_PER_US / 1e6)]
    for batch in (8, 1):
        lines += [f"## Batch {batch}", "", TITLES, "|" + "---|" * TITLES.count(" | ") + "---|"]
        for blocks_per_row in (4, 8, 16):
            lines += rows(batch, blocks_per_row)
        lines.append("")
    return "\n".join(lines)


def comparison(report: Path) -> str:
    """What was measured of single kernels beside the model."""
    data = json.loads(report.read_text(encoding="utf-8"))
    lines = [
        f"{data['machine'].get('gpu')}; the model is of an H100",
        "  batch  tokens  blocks/row  modelled us  measured us  kernel",
    ]
    for row in data.get("kernels", []):
        blocks = -(-row["seq_len"] // BLOCK)
        size = Size(row["batch"], row["seq_len"], row["blocks_per_row"] or blocks)
        modelled = next((kernel.us for kernel in kernels(size) if row["kernel"].startswith(kernel.name)), None)
        us = f"{modelled:.1f}" if modelled else "-"
        lines.append(
            f"  {size.batch:5}  {size.seq_len:6}  {size.blocks_per_row:10}  {us:>11}  {row['us']:11.1f}  {row['kernel']}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--print", action="store_true", help="print the page instead of writing it")
    parser.add_argument(
        "--compare", type=Path, metavar="REPORT", help="print the model beside a report of scripts/gpu_check.py"
    )
    options = parser.parse_args()
    if options.compare:
        print(comparison(options.compare))
    elif options.print:
        print(page())
    else:
        TARGET.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
