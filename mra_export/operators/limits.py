"""What the operators of the domain `mra` have in common: the domain, its version, and limits of size."""

from __future__ import annotations

__all__ = ["HEAD_DIM_MULTIPLE", "MAX_HEAD_DIM", "MAX_SEQ_LEN", "OP_DOMAIN", "OP_VERSION"]

OP_DOMAIN = "mra"
OP_VERSION = 1
HEAD_DIM_MULTIPLE = 8
MAX_HEAD_DIM = 256
MAX_SEQ_LEN = 1 << 20
"""Block indices a * nb + b are int32 in the native code: (2**20 / 32)**2 = 2**30 fits."""
