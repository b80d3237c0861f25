"""How YOSO-LSH's parity is judged: whether a candidate has the same hash codes, and whether it computes the same with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mra_export.operators.judge import Judge, LayerReport, Tolerance
from mra_export.operators.yoso_attention.reference import HashCodes, hash_codes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mra_export.operators.yoso_attention.spec import YosoAttentionAttributes
    from mra_export.trace import LayerTrace, Runner

__all__ = ["HashJudge"]


class HashJudge(Judge):
    """A choice is the hash codes of a layer's queries and keys.

    On equal inputs they are equal to the bit, so that the operator alone is judged with the specification's own; in whole models
    they differ where rounding before a layer puts a projection on the other side of 0.
    """

    choice = "hash codes"
    attributes: Sequence[YosoAttentionAttributes]

    def operator(
        self,
        index: int,
        layer: LayerTrace,
        mask: torch.Tensor,
        candidate: Runner,
        tolerance: Tolerance,
        report: LayerReport,
    ) -> HashCodes:
        """The candidate's node on its own inputs; returns the codes of these."""
        super().operator(index, layer, mask, candidate, tolerance, report)
        return self._codes(index, layer)

    def same(
        self, index: int, layer: LayerTrace, choice: HashCodes, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Per row whether the reference has the same codes at all tokens; there are no ties."""
        differing = self._differing(index, layer, choice, mask)
        return ~differing.flatten(1).any(1), torch.zeros(mask.shape[0], dtype=torch.bool)

    def rows_of(self, choice: HashCodes, rows: slice) -> HashCodes:
        """The codes of some of the rows."""
        return HashCodes(choice.query[rows], choice.key[rows])

    def overlap(
        self, index: int, layer: LayerTrace, choice: HashCodes, mask: torch.Tensor, report: LayerReport
    ) -> tuple[int, int]:
        """Codes in common and codes at all, of queries and keys at tokens."""
        total = 2 * int((mask != 0).sum()) * self.heads * self.attributes[index].num_hash
        return total - int(self._differing(index, layer, choice, mask).sum()), total

    def unseen_note(self, judged: int, rows: int) -> str:
        """Every length has codes."""
        return (
            f"judged on {judged} of {rows} rows: hash codes cannot be seen from outside. An engine with --layer-outputs shows "
            "them."
        )

    def _codes(self, index: int, layer: LayerTrace) -> HashCodes:
        constants = self.constants[index][0]
        query, key = (
            hash_codes(torch.from_numpy(x), self.attributes[index], constants) for x in (layer.query, layer.key)
        )
        return HashCodes(query, key)

    def _differing(self, index: int, layer: LayerTrace, choice: HashCodes, mask: torch.Tensor) -> torch.Tensor:
        """bool [rows, num_heads, num_hash, 2 * seq_len]."""
        own = self._codes(index, layer)
        keep = (mask != 0)[:, None, None, :]
        return torch.cat([(mine != theirs) & keep for mine, theirs in zip(own, choice, strict=True)], dim=-1)
