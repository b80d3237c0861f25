"""What runners take and give: inputs, outputs, and what the attention layers saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Array", "Inputs", "LayerTrace", "Runner", "Trace"]

Array = np.ndarray[Any, Any]
Inputs = dict[str, Array]
"""`input_ids`, `attention_mask` and where the model has types `token_type_ids`, int64 [batch, seq_len]; multiple choice has
[batch, choices, seq_len]."""


@dataclass(frozen=True)
class LayerTrace:
    """What went into one attention node and came out; float32 [batch, seq_len, hidden_size] each."""

    query: Array
    key: Array
    value: Array
    context: Array


@dataclass(frozen=True)
class Trace:
    """The outputs of a run by name, float32, and what its attention layers saw."""

    outputs: dict[str, Array]
    layers: list[LayerTrace]


class Runner(Protocol):
    """A way of running the model."""

    name: str

    def run(self, inputs: Inputs) -> dict[str, Array]:
        """The outputs by name."""

    def trace(self, inputs: Inputs) -> Trace:
        """The outputs and what the attention layers saw."""

    def run_operator(self, attributes: Any, tensors: Sequence[Array], mask: Array) -> Array | None:
        """The operator alone on query, key, value [batch, seq_len, hidden_size]; None where that cannot be had."""
