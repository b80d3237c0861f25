"""The definition of softmax attention: its attributes, and the opset that has it as an operator."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["DenseAttentionAttributes"]

ATTENTION_OPSET = 23
"""The first that has the operator Attention."""


@dataclass(frozen=True)
class DenseAttentionAttributes:
    """Softmax attention.

    Attributes:
        num_heads: H; the hidden size of the inputs is H * head_dim.
        is_causal: 1 if a token attends to itself and those before it only, as in a decoder.
        scale: factor of the logits.
    """

    num_heads: int
    is_causal: int
    scale: float

    def as_dict(self) -> dict[str, Any]:
        """Attribute name -> value."""
        return asdict(self)
