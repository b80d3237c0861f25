"""What a comparison of a reference with a candidate says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mra_export.operators.judge import LayerReport

__all__ = ["CaseReport", "Comparison", "describe_failures"]


@dataclass
class CaseReport:
    """One case of one comparison; errors are None where the case could not be judged."""

    name: str
    seq_len: int
    relative_error: float | None
    max_abs_error: float | None
    cosine_min: float
    selection_agreement: float
    judged_rows: int
    rows: int


@dataclass(frozen=True)
class LayerRange:
    """The largest absolute value of a layer in float32.

    Attributes:
        name: of the layer, as in "layer 1" or "embeddings".
        tensor: that has it, as in "intermediate.dense".
        largest: the value.
    """

    name: str
    tensor: str
    largest: float


@dataclass
class Comparison:
    """One reference against one candidate.

    Attributes:
        reference: what is taken as right.
        candidate: what is checked.
        metrics: name -> value over all cases; None where nothing could be judged.
        tolerance: name -> limit.
        ok: whether it passed; None where the reference is not well defined.
        notes: what a person should know.
        layers: layer by layer, where the reference used the candidate's blocks.
        cases: case by case.
        ranges: layer by layer, where the largest values were held against a type's range.
    """

    reference: str
    candidate: str
    metrics: dict[str, float | None]
    tolerance: dict[str, float]
    ok: bool | None
    notes: list[str] = field(default_factory=list)
    layers: list[LayerReport] = field(default_factory=list)
    cases: list[CaseReport] = field(default_factory=list)
    ranges: list[LayerRange] = field(default_factory=list)

    @classmethod
    def not_judged(cls, reference: str, candidate: str, why: str) -> Comparison:
        """A comparison that could not be made here."""
        return cls(reference, candidate, {}, {}, None, [why])


def describe_failures(comparisons: list[Comparison]) -> list[str]:
    """A sentence for each comparison that failed."""
    return [
        f"{c.candidate} is {'beyond' if c.ranges else 'not'} {c.reference}: {' '.join(c.notes) or 'see the numbers'}"
        for c in comparisons
        if c.ok is False
    ]


def as_json(comparison: Comparison) -> dict[str, Any]:
    """A comparison as plain data, NaN and infinity as None; its ranges are among the layers."""
    from dataclasses import asdict

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    data = plain(asdict(comparison))
    for layer in data["layers"]:
        del layer["shared"], layer["selected"]
    data["layers"] += data.pop("ranges")
    return dict(data)
