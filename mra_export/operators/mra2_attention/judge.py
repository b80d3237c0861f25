"""How MRA's parity is judged: whether a candidate selects the same blocks, and whether it computes the same with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mra_export.operators.judge import Judge, LayerReport, Tolerance
from mra_export.operators.mra2_attention.reference import mra2_attention, select_blocks
from mra_export.operators.mra2_attention.spec import BLOCK_SIZE, Mra2AttentionAttributes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mra_export.trace import Array, LayerTrace, Runner

__all__ = ["SelectionJudge", "probe_selection"]


class SelectionJudge(Judge):
    """A choice is the selected blocks of a layer, bool [rows, num_heads, blocks, blocks]."""

    choice = "blocks"
    attributes: Sequence[Mra2AttentionAttributes]

    def operator(
        self,
        index: int,
        layer: LayerTrace,
        mask: torch.Tensor,
        candidate: Runner,
        tolerance: Tolerance,
        report: LayerReport,
    ) -> torch.Tensor:
        """The candidate's node on its own inputs; returns its blocks."""
        attributes = self.attributes[index]
        query, key, value = (torch.from_numpy(x) for x in (layer.query, layer.key, layer.value))
        context = torch.from_numpy(layer.context)
        choice = select_blocks(query, key, mask, attributes)
        selected = choice.selected
        expected = mra2_attention(query, key, value, mask, attributes, selected=selected)
        everywhere = torch.ones_like(mask)  # at padding the operator gives zeros
        error = self.head_errors(context, expected, everywhere)
        bad = ~(error <= tolerance.operator)  # NaN is bad
        cause = "arithmetic"
        if bool(bad.any()):
            actual = _actual_selection(candidate, attributes, layer, mask)
            if actual is not None:
                near = _near_tie(choice.score, choice.selected)
                # The probe cannot see key blocks with fewer than two tokens.
                swapped = (actual != choice.selected) & _real_pairs(mask, self.heads, least_keys=2)
                by_tie = bad & swapped.flatten(2).any(2) & ~(swapped & ~near).flatten(2).any(2)
                # Only whole swaps: one whose other half the probe cannot see would change the count.
                by_tie &= (swapped & actual).flatten(2).sum(2) == (swapped & choice.selected).flatten(2).sum(2)
                resolved = torch.where(by_tie[:, :, None, None] & swapped, actual, selected)
                expected = mra2_attention(query, key, value, mask, attributes, selected=resolved)
                again = self.head_errors(context, expected, everywhere)
                fixed = by_tie & (again <= tolerance.operator)
                selected = torch.where(fixed[:, :, None, None], resolved, selected)
                error = torch.where(fixed, again, error)
                report.near_ties += int(fixed.sum())
                bad &= ~fixed
                if bool((swapped.flatten(2).any(2) & bad & torch.isfinite(error)).any()):
                    cause = "selection"
        self.note_error(error, bad, cause, tolerance, report)
        return selected

    def same(
        self, index: int, layer: LayerTrace, choice: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Per row whether the reference selected the same blocks, and whether its own cut was a tie."""
        own = select_blocks(torch.from_numpy(layer.query), torch.from_numpy(layer.key), mask, self.attributes[index])
        real = _real_pairs(mask, self.heads)
        return ~((own.selected != choice) & real).flatten(1).any(1), own.tied_tokens.any(1)

    def rows_of(self, choice: torch.Tensor, rows: slice) -> torch.Tensor:
        """The blocks of some of the rows."""
        return choice[rows]

    def overlap(
        self, index: int, layer: LayerTrace, choice: torch.Tensor, mask: torch.Tensor, report: LayerReport
    ) -> tuple[int, int]:
        """Blocks in common and blocks that the reference selects; notes the largest gap between blocks that were swapped."""
        own = select_blocks(torch.from_numpy(layer.query), torch.from_numpy(layer.key), mask, self.attributes[index])
        real = _real_pairs(mask, self.heads)
        ours, theirs = own.selected & real, choice & real
        dropped = own.score.masked_fill(~(ours & ~theirs), float("-inf")).flatten(2).amax(2)
        taken = own.score.masked_fill(~(theirs & ~ours), float("inf")).flatten(2).amin(2)
        gap = (dropped - taken)[torch.isfinite(dropped) & torch.isfinite(taken)]
        if gap.numel():
            report.swapped_gap = max(report.swapped_gap, float(gap.max()))
        return int((ours & theirs).sum()), int(ours.sum())

    def tie_note(self, rows: int) -> str:
        """Equal scores at the cut."""
        return (
            f"{rows} row(s) have equal scores at the cut of the selection: there transformers drops the tied blocks from both "
            "resolutions, so its result is not well defined and is not judged. Raise block_per_row, or lower the priors, "
            "until num_blocks is at least the number of prior blocks plus the number of blocks in the sequence."
        )

    def unseen_note(self, judged: int, rows: int) -> str:
        """Lengths with a choice."""
        return (
            f"judged on {judged} of {rows} rows, those so short that all blocks are selected; the choice of blocks in the "
            "others cannot be seen from outside. An engine with --layer-outputs shows it, and OpenVINO without --portable."
        )


def probe_selection(
    run: Callable[[list[Array]], Array], query: Array, key: Array, mask: Array, num_heads: int
) -> torch.Tensor:
    """Finds out which blocks an implementation computes at full resolution, from its output alone.

    The values of each key block are +1 and -1 in turn in a channel of its own and add up to exactly 0, so that the block's
    mean is 0: the channel is other than 0 only in query blocks for which that key block was selected.

    Args:
        run: query, key, value -> context, each [batch, seq_len, hidden_size].
        query: float32.
        key: float32.
        mask: [batch, seq_len].
        num_heads: heads.

    Returns:
        bool [batch, num_heads, blocks, blocks]. A key block with fewer than two tokens is reported as not selected.
    """
    batch, seq_len, hidden = query.shape
    head_dim = hidden // num_heads
    blocks = -(-seq_len // BLOCK_SIZE)
    found = np.zeros((batch, num_heads, blocks, blocks), dtype=bool)
    sign = np.zeros((batch, blocks * BLOCK_SIZE), np.float32)
    for b in range(batch):
        for block in range(blocks):
            tokens = np.flatnonzero(mask[b, block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE]) + block * BLOCK_SIZE
            even = tokens[: len(tokens) // 2 * 2]
            sign[b, even[0::2]], sign[b, even[1::2]] = 1.0, -1.0
    for start in range(0, blocks, head_dim):
        value = np.zeros((batch, blocks, BLOCK_SIZE, num_heads, head_dim), np.float32)
        for channel, block in enumerate(range(start, min(start + head_dim, blocks))):
            value[:, block, :, :, channel] = sign.reshape(batch, blocks, BLOCK_SIZE)[:, block, :, None]
        context = run([query, key, value.reshape(batch, -1, hidden)[:, :seq_len]])
        padded = np.zeros((batch, blocks * BLOCK_SIZE, hidden), np.float32)
        padded[:, :seq_len] = context
        seen = np.abs(padded.reshape(batch, blocks, BLOCK_SIZE, num_heads, head_dim)).max(2) > 0  # [B, a, H, channel]
        width = min(head_dim, blocks - start)
        found[:, :, :, start : start + width] = seen.transpose(0, 2, 1, 3)[..., :width]
    return torch.from_numpy(found)


def _actual_selection(
    candidate: Runner, attributes: Mra2AttentionAttributes, layer: LayerTrace, mask: torch.Tensor
) -> torch.Tensor | None:
    masked = mask.numpy()
    if candidate.run_operator(attributes, [layer.query, layer.key, layer.value], masked) is None:
        return None

    def run(tensors: list[Array]) -> Array:
        context = candidate.run_operator(attributes, tensors, masked)
        assert context is not None
        return context

    return probe_selection(run, layer.query, layer.key, masked, attributes.num_heads)


def _near_tie(score: torch.Tensor, selected: torch.Tensor) -> torch.Tensor:
    """Blocks whose score is as close to the cut as float32 can tell: bool like `score`."""
    lowest = score.masked_fill(~selected, float("inf")).flatten(2).amin(2)[:, :, None, None]
    size = score.abs().clamp(max=1e3).flatten(2).amax(2)[:, :, None, None]
    return (score - lowest).abs() <= 1e-5 * size + 4 * torch.finfo(torch.float32).eps * lowest.abs()


def _real_pairs(mask: torch.Tensor, num_heads: int, least_keys: int = 1) -> torch.Tensor:
    """Pairs of a query block with tokens and a key block with at least `least_keys`: bool [batch, num_heads, blocks, blocks]."""
    rows, seq_len = mask.shape
    blocks = -(-seq_len // BLOCK_SIZE)
    filled = torch.nn.functional.pad((mask != 0).int(), (0, blocks * BLOCK_SIZE - seq_len))
    tokens = filled.reshape(rows, blocks, BLOCK_SIZE).sum(2)
    pairs = (tokens[:, :, None] > 0) & (tokens[:, None, :] >= least_keys)
    return pairs[:, None].expand(-1, num_heads, -1, -1)
