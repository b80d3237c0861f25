"""Judges one attention layer of a candidate: its choice where it has one, and its arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mra_export.numerics import worst

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch import Tensor

    from mra_export.trace import LayerTrace, Runner

__all__ = ["TOLERANCES", "Judge", "LayerReport", "Tolerance"]


@dataclass(frozen=True)
class Tolerance:
    """The largest errors that pass, by type of the candidate; `scripts/measure_tolerances.py` shows what is usual.

    Attributes:
        operator: relative error of one attention node on the candidate's own inputs and blocks.
        inputs: relative error of query, key and value at a layer, with the same blocks in all layers before it.
        outputs: relative error of the model's outputs, with the same blocks in all layers.
        cosine: least cosine of an embedding, with the same blocks in all layers.
    """

    operator: float
    inputs: float
    outputs: float
    cosine: float


TOLERANCES = {
    "fp32": Tolerance(operator=2e-5, inputs=1e-4, outputs=1e-4, cosine=0.99999),
    "fp16": Tolerance(operator=2e-3, inputs=1e-2, outputs=1e-2, cosine=0.999),
    "bf16": Tolerance(operator=8e-3, inputs=8e-2, outputs=8e-2, cosine=0.995),
}


@dataclass
class LayerReport:
    """One attention layer over all cases.

    Attributes:
        name: as the node is named.
        input_error: largest relative error of query, key and value.
        operator_error: largest relative error of the node on the candidate's own inputs and blocks.
        selection_agreement: share of the selected blocks that candidate and reference have in common.
        swapped_gap: largest difference of score, in the reference, between a block that only the reference selects and one
            that only the candidate selects; what arithmetic has to explain.
        near_ties: heads where candidate and specification differ on equal inputs by a tie within float32's rounding.
        problem: what is wrong, or None.
    """

    name: str
    input_error: float = 0.0
    operator_error: float = 0.0
    selection_agreement: float = 1.0
    swapped_gap: float = 0.0
    near_ties: int = 0
    problem: str | None = None
    shared: int = field(default=0, repr=False)
    selected: int = field(default=0, repr=False)


class Judge:
    """Judges the attention layers of a candidate; this one is for attention without a discrete choice.

    An operator that chooses (blocks, hashes) has a subclass. What it chose is an object of its own kind, one for each
    layer, that `attend` takes as `choice`; it is None here.

    Attributes:
        choice: what is chosen, in the plural for people ("blocks"); "" where nothing is.
        attributes: of each layer.
    """

    choice = ""

    def __init__(
        self, attend: Callable[..., Tensor], attributes: Sequence[Any], constants: Sequence[tuple[Tensor, ...]] = ()
    ) -> None:
        """Takes the operator by its specification (`Family.attend`), and what `Family.judge` gets."""
        self.attend = attend
        self.attributes = attributes
        self.constants = constants

    def tolerance(self, dtype: str) -> Tolerance:
        """The largest errors that pass, by type of the candidate."""
        return TOLERANCES[dtype]

    @property
    def heads(self) -> int:
        """How many there are, in all layers."""
        return int(self.attributes[0].num_heads)

    @property
    def specification(self) -> str:
        """How the reference that takes the candidate's choices is called."""
        return f"specification, same {self.choice}" if self.choice else "specification"

    def operator(
        self,
        index: int,
        layer: LayerTrace,
        mask: torch.Tensor,
        candidate: Runner,
        tolerance: Tolerance,
        report: LayerReport,
    ) -> Any:
        """The candidate's attention on its own inputs: notes its error in `report`, and the problem if it is too large.

        Args:
            index: of the layer.
            layer: what the candidate's attention saw and gave.
            mask: [rows, seq_len].
            candidate: for experiments with its operator alone.
            tolerance: for its type.
            report: of the layer.

        Returns:
            What it chose.
        """
        import torch

        tensors = [torch.from_numpy(x) for x in (layer.query, layer.key, layer.value)]
        tensors += self.constants[index] if self.constants else ()
        expected = self.attend(self.attributes[index], tensors, mask)
        error = self.head_errors(torch.from_numpy(layer.context), expected, mask)
        self.note_error(error, ~(error <= tolerance.operator), "arithmetic", tolerance, report)  # NaN is bad
        return None

    def note_error(
        self, error: torch.Tensor, bad: torch.Tensor, cause: str, tolerance: Tolerance, report: LayerReport
    ) -> None:
        """Writes errors [rows, num_heads] of an operator, and those that are `bad`, to the layer's report."""
        if bool(bad.any()) and report.problem is None:
            b, h = (int(i) for i in bad.nonzero()[0])
            report.problem = (
                f"{cause} of the attention (head {h}: relative error {float(error[b, h]):.1e} on equal inputs, "
                f"tolerance {tolerance.operator:.1e})"
            )
        report.operator_error = worst([report.operator_error, worst(error.flatten().tolist())])

    def head_errors(self, actual: torch.Tensor, expected: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Relative error per row and head, [rows, num_heads], of what stands at tokens; 0 where both are 0."""
        shape = (*actual.shape[:2], self.heads, -1)
        keep = (mask != 0)[:, :, None, None]
        a, e = (x.reshape(shape).double().where(keep, 0.0) for x in (actual, expected))
        return (a - e).pow(2).sum((1, 3)).sqrt() / e.pow(2).sum((1, 3)).sqrt().clamp(min=1e-30)

    def same(self, index: int, layer: LayerTrace, choice: Any, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Per row whether the reference, whose `layer` this is, chose the same, and whether its own choice was a tie."""
        import torch

        return torch.ones(mask.shape[0], dtype=torch.bool), torch.zeros(mask.shape[0], dtype=torch.bool)

    def rows_of(self, choice: Any, rows: slice) -> Any:
        """A choice for some of the rows."""
        return None

    def overlap(
        self, index: int, layer: LayerTrace, choice: Any, mask: torch.Tensor, report: LayerReport
    ) -> tuple[int, int]:
        """How much of what the reference, whose `layer` this is, chooses the candidate chose too, and how much there is."""
        return 0, 0

    def tie_note(self, rows: int) -> str:
        """What a person should know of rows whose reference is not well defined."""
        raise NotImplementedError

    def unseen_note(self, judged: int, rows: int) -> str:
        """Why some rows of a candidate that does not show its layers are not judged."""
        raise NotImplementedError
