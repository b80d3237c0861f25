"""Sums up the cases of a comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mra_export.numerics import cosine, least, relative_error, top1_agreement, worst
from mra_export.parity.comparison import CaseReport

if TYPE_CHECKING:
    from mra_export.parity.cases import Case
    from mra_export.trace import Array

__all__ = ["Tally", "row_at_tokens"]


class Tally:
    """Sums the cases of one comparison up."""

    def __init__(self, token_outputs: tuple[str, ...]) -> None:
        self.token_outputs = token_outputs
        self.cases: list[CaseReport] = []
        self.cosines: list[float] = []
        self.top1: list[float] = []

    def add(
        self, case: Case, expected: dict[str, Array], actual: dict[str, Array], judged: Array, agreement: Array
    ) -> None:
        """`judged` bool [batch]; `agreement` [batch], the share of blocks in common."""
        token_mask = case.inputs["attention_mask"].astype(bool)
        relative, absolute, cosines = [], [], []
        for row in range(token_mask.shape[0]):
            pairs = [
                row_at_tokens(expected[name], actual[name], row, token_mask if name in self.token_outputs else None)
                for name in expected
            ]
            if judged[row]:
                relative += [relative_error(got, want) for want, got in pairs]
                absolute += [float(np.abs(got - want).max(initial=0.0)) for want, got in pairs]
            cosines.append(cosine(*_embedding(dict(zip(expected, pairs, strict=True)))))
            self.top1 += [
                top1_agreement(want, got) for name, (want, got) in zip(expected, pairs, strict=True) if "logits" in name
            ]
        self.cosines += cosines
        self.cases.append(
            CaseReport(
                case.name,
                case.seq_len,
                worst(relative) if relative else None,
                worst(absolute) if absolute else None,
                least(cosines),
                float(np.mean(agreement)),
                int(judged.sum()),
                len(judged),
            )
        )

    def metrics(self) -> dict[str, float | None]:
        """Over all cases."""
        relative = [c.relative_error for c in self.cases if c.relative_error is not None]
        absolute = [c.max_abs_error for c in self.cases if c.max_abs_error is not None]
        return {
            "relative_error": worst(relative) if relative else None,
            "max_abs_error": worst(absolute) if absolute else None,
            "cosine_min": least(self.cosines),
            "cosine_mean": float(np.mean(self.cosines)),
            "top1_agreement": float(np.mean(self.top1)) if self.top1 else None,
            "selection_agreement": float(np.mean([c.selection_agreement for c in self.cases])),
            "judged_rows": float(sum(c.judged_rows for c in self.cases)),
            "rows": float(sum(c.rows for c in self.cases)),
        }


def row_at_tokens(expected: Array, actual: Array, row: int, token_mask: Array | None) -> tuple[Array, Array]:
    """One row of an output in float64; with `token_mask` [batch, seq_len] without what stands at padding."""
    want, got = expected[row].astype(np.float64), actual[row].astype(np.float64)
    return (want, got) if token_mask is None else (want[token_mask[row]], got[token_mask[row]])


def _embedding(pairs: dict[str, tuple[Array, Array]]) -> tuple[Array, Array]:
    """One vector for a row: its sentence embedding, the mean of its token vectors, or its logits."""
    name = "sentence_embedding" if "sentence_embedding" in pairs else next(iter(pairs))
    want, got = pairs[name]
    return (want.mean(0), got.mean(0)) if name == "last_hidden_state" else (want.ravel(), got.ravel())
