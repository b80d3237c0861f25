"""How softmax attention of standard operators is judged: arithmetic only."""

from __future__ import annotations

from dataclasses import replace

from mra_export.operators.judge import Judge, Tolerance


class DenseJudge(Judge):
    """Allows standard operators in half types what they cost: logits and weights are rounded to the type between them.

    Twice the error against float64 of torch's own eager attention in that type, on normal queries and keys scaled so that the
    logits have a standard deviation of 6: 2.3e-3 in float16 and 1.8e-2 in bfloat16.
    """

    def tolerance(self, dtype: str) -> Tolerance:
        """The largest errors that pass, by type of the candidate."""
        usual = super().tolerance(dtype)
        return replace(usual, operator={"fp16": 5e-3, "bf16": 4e-2}.get(dtype, usual.operator))
