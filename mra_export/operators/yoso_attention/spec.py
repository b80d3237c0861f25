"""The definition of `mra::YosoAttention`: names, attributes, constants and limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = [
    "ATTRIBUTES",
    "GRID_LIMIT",
    "INPUTS",
    "MAX_CONV_WINDOW",
    "MAX_HASH_CODE_LEN",
    "MAX_NUM_HASH",
    "MIN_TRANSFORM_DIM",
    "MODES",
    "NORM_EPSILON",
    "OP_TYPE",
    "OUTPUTS",
    "PROJECTION_LIMIT",
    "PROJECTION_SCALE",
    "YosoAttentionAttributes",
]

OP_TYPE = "YosoAttention"
INPUTS = ("query", "key", "value", "attention_mask", "hash_constants", "conv_weight")
"""A node has the first four, then `hash_constants` if its mode is lsh, then `conv_weight` if it has a convolution: no gaps."""
OUTPUTS = ("context",)

MODES = {"expectation": 0, "lsh": 1}
"""`YosoConfig.use_expectation` True -> 0, False -> 1."""

MAX_HASH_CODE_LEN = 16
"""A hash table has 2**hash_code_len rows."""
MAX_NUM_HASH = 1024
MAX_CONV_WINDOW = 1023
NORM_EPSILON = 1e-12
"""The least length that a vector is divided by, as `torch.nn.functional.normalize` has it."""
MIN_TRANSFORM_DIM = 32
"""The fast hash fills a vector up with zeros to a power of two, at least this."""
GRID_LIMIT = 1024
"""The projection hash rounds a vector to integers of at most this; a power of two."""
PROJECTION_SCALE = 16
"""The entries of the projections are normal numbers times this, rounded,"""
PROJECTION_LIMIT = 63
"""and cut at this: MAX_HEAD_DIM * GRID_LIMIT * PROJECTION_LIMIT < 2**24, so that every sum is exact in float32."""

ATTRIBUTES: dict[str, type] = {
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
        """Attribute name -> value, in the order of `ATTRIBUTES`."""
        return {name: getattr(self, name) for name in ATTRIBUTES}

    def inputs(self) -> tuple[str, ...]:
        """The inputs of the node, in order: of `INPUTS`, those that it has."""
        has = {"hash_constants": self.mode == MODES["lsh"], "conv_weight": self.conv_window > 0}
        return tuple(name for name in INPUTS if has.get(name, True))

    def constant_shapes(self, head_dim: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the constant inputs that the node has, in order.

        Args:
            head_dim: D.

        Returns:
            Of "hash_constants" (int32) and "conv_weight", those that the node has.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        if self.mode == MODES["lsh"]:
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
        return max(MIN_TRANSFORM_DIM, 1 << (head_dim - 1).bit_length())

    def parts(self, head_dim: int) -> int:
        """How many transforms the fast hash needs: each gives transform_dim bits."""
        return -(-self.num_hash * self.hash_code_len // self.transform_dim(head_dim))
