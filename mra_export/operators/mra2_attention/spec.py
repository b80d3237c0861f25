"""The definition of `mra::Mra2Attention`: names, attributes, constants and limits.

This and `spec` of the other operators are the one place for these facts. `scripts/generate_op_spec.py` writes them to
`kernels/op_spec.h` for the native code, and a test checks that the two agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = [
    "APPROX_MODES",
    "ATTRIBUTES",
    "BLOCK_SIZE",
    "INPUTS",
    "MASKED_BLOCK_PENALTY",
    "NORMALIZER_EPSILON",
    "NO_BLOCK_MAX",
    "OP_TYPE",
    "OUTPUTS",
    "POOL_EPSILON",
    "PRIOR_BONUS",
    "Mra2AttentionAttributes",
]

OP_TYPE = "Mra2Attention"
INPUTS = ("query", "key", "value", "attention_mask")
OUTPUTS = ("context",)

BLOCK_SIZE = 32
"""Tokens per block."""

POOL_EPSILON = 1e-6
"""Added to the number of tokens of a block before its sum is divided by it."""
MASKED_BLOCK_PENALTY = 1e4
"""Taken from the low-resolution logit where either block has no token."""
PRIOR_BONUS = 5e3
"""Added to the score of a block pair, once for each prior that asks for it."""
NO_BLOCK_MAX = -1e5
"""The high-resolution row maximum of a query block that has no selected block."""
NORMALIZER_EPSILON = 1e-6
"""Added to the softmax denominator."""

APPROX_MODES = {"full": 0, "sparse": 1}
"""`MraConfig.approx_mode` -> the attribute's value."""

ATTRIBUTES: dict[str, type] = {
    "num_heads": int,
    "num_blocks": int,
    "approx_mode": int,
    "initial_prior_first_n_blocks": int,
    "initial_prior_diagonal_n_blocks": int,
    "scale": float,
}


@dataclass(frozen=True)
class Mra2AttentionAttributes:
    """The attributes of one node.

    Attributes:
        num_heads: H; the hidden size of the inputs is H * head_dim.
        num_blocks: high-resolution blocks per head, capped at the square of the number of blocks in the sequence.
        approx_mode: 0 full, 1 sparse.
        initial_prior_first_n_blocks: block rows and columns that are preferred, from the first.
        initial_prior_diagonal_n_blocks: width of the preferred band around the diagonal, in blocks.
        scale: factor of the logits; transformers uses 1 / sqrt(max(head_dim, 32)).
    """

    num_heads: int
    num_blocks: int
    approx_mode: int
    initial_prior_first_n_blocks: int
    initial_prior_diagonal_n_blocks: int
    scale: float

    def as_dict(self) -> dict[str, Any]:
        """Attribute name -> value, in the order of `ATTRIBUTES`."""
        return {name: getattr(self, name) for name in ATTRIBUTES}
