"""The definition of the operators `mra::Mra2Attention` and `mra::YosoAttention`: names, attributes, constants and limits.

This is the one place for these facts. `scripts/generate_op_spec.py` writes them to `kernels/op_spec.h` for the native code,
and a test checks that the two agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = [
    "APPROX_MODES",
    "ATTRIBUTES",
    "BLOCK_SIZE",
    "HEAD_DIM_MULTIPLE",
    "INPUTS",
    "MASKED_BLOCK_PENALTY",
    "MAX_HEAD_DIM",
    "MAX_SEQ_LEN",
    "NORMALIZER_EPSILON",
    "NO_BLOCK_MAX",
    "OP_DOMAIN",
    "OP_TYPE",
    "OP_VERSION",
    "OUTPUTS",
    "POOL_EPSILON",
    "PRIOR_BONUS",
    "YOSO_ATTRIBUTES",
    "YOSO_GRID_LIMIT",
    "YOSO_INPUTS",
    "YOSO_MAX_CONV_WINDOW",
    "YOSO_MAX_HASH_CODE_LEN",
    "YOSO_MAX_NUM_HASH",
    "YOSO_MIN_TRANSFORM_DIM",
    "YOSO_MODES",
    "YOSO_NORM_EPSILON",
    "YOSO_OP_TYPE",
    "YOSO_OUTPUTS",
    "YOSO_PROJECTION_LIMIT",
    "YOSO_PROJECTION_SCALE",
    "Mra2AttentionAttributes",
    "YosoAttentionAttributes",
]

OP_DOMAIN = "mra"
OP_TYPE = "Mra2Attention"
OP_VERSION = 1
INPUTS = ("query", "key", "value", "attention_mask")
OUTPUTS = ("context",)

BLOCK_SIZE = 32
"""Tokens per block."""
HEAD_DIM_MULTIPLE = 8
MAX_HEAD_DIM = 256
MAX_SEQ_LEN = 1 << 20
"""Block indices a * nb + b are int32 in the native code: (2**20 / 32)**2 = 2**30 fits."""

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


YOSO_OP_TYPE = "YosoAttention"
YOSO_INPUTS = ("query", "key", "value", "attention_mask", "hash_constants", "conv_weight")
"""A node has the first four, then `hash_constants` if its mode is lsh, then `conv_weight` if it has a convolution: no gaps."""
YOSO_OUTPUTS = ("context",)

YOSO_MODES = {"expectation": 0, "lsh": 1}
"""`YosoConfig.use_expectation` True -> 0, False -> 1."""

YOSO_MAX_HASH_CODE_LEN = 16
"""A hash table has 2**hash_code_len rows."""
YOSO_MAX_NUM_HASH = 1024
YOSO_MAX_CONV_WINDOW = 1023
YOSO_NORM_EPSILON = 1e-12
"""The least length that a vector is divided by, as `torch.nn.functional.normalize` has it."""
YOSO_MIN_TRANSFORM_DIM = 32
"""The fast hash fills a vector up with zeros to a power of two, at least this."""
YOSO_GRID_LIMIT = 1024
"""The projection hash rounds a vector to integers of at most this; a power of two."""
YOSO_PROJECTION_SCALE = 16
"""The entries of the projections are normal numbers times this, rounded,"""
YOSO_PROJECTION_LIMIT = 63
"""and cut at this: MAX_HEAD_DIM * YOSO_GRID_LIMIT * YOSO_PROJECTION_LIMIT < 2**24, so that every sum is exact in float32."""

YOSO_ATTRIBUTES: dict[str, type] = {
    "num_heads": int,
    "mode": int,
    "hash_code_len": int,
    "num_hash": int,
    "fast_hash": int,
    "conv_window": int,
}


@dataclass(frozen=True)
class YosoAttentionAttributes:
    """The attributes of one `mra::YosoAttention` node.

    Attributes:
        num_heads: H; the hidden size of the inputs is H * head_dim.
        mode: 0 expectation, 1 lsh.
        hash_code_len: bits of a hash code; the exponent of the expectation.
        num_hash: number of hashes; of no meaning in mode 0, where it is 0.
        fast_hash: 1 sign flips and Hadamard transforms, 0 random projections; of no meaning in mode 0, where it is 0.
        conv_window: width of the convolution of the values, odd; 0 where there is none.
    """

    num_heads: int
    mode: int
    hash_code_len: int
    num_hash: int = 0
    fast_hash: int = 0
    conv_window: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Attribute name -> value, in the order of `YOSO_ATTRIBUTES`."""
        return {name: getattr(self, name) for name in YOSO_ATTRIBUTES}

    def inputs(self) -> tuple[str, ...]:
        """The inputs of the node, in order: of `YOSO_INPUTS`, those that it has."""
        has = {"hash_constants": self.mode == YOSO_MODES["lsh"], "conv_weight": self.conv_window > 0}
        return tuple(name for name in YOSO_INPUTS if has.get(name, True))

    def constant_shapes(self, head_dim: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the constant inputs that the node has, in order.

        Args:
            head_dim: D.

        Returns:
            Of "hash_constants" (int32) and "conv_weight", those that the node has.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        if self.mode == YOSO_MODES["lsh"]:
            if self.fast_hash:
                shapes["hash_constants"] = (self.num_heads, self.parts(head_dim), 3, self.transform_dim(head_dim))
            else:
                shapes["hash_constants"] = (self.num_heads, self.num_hash * self.hash_code_len, head_dim)
        if self.conv_window > 0:
            shapes["conv_weight"] = (self.num_heads, self.conv_window)
        return shapes

    @staticmethod
    def transform_dim(head_dim: int) -> int:
        """Length of the fast hash's Hadamard transforms: a power of two, at least head_dim."""
        return max(YOSO_MIN_TRANSFORM_DIM, 1 << (head_dim - 1).bit_length())

    def parts(self, head_dim: int) -> int:
        """How many transforms the fast hash needs: each gives transform_dim bits."""
        return -(-self.num_hash * self.hash_code_len // self.transform_dim(head_dim))
