"""The golden vectors of `mra::Mra2Attention`, in the operator's layout."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
from paths import GOLDEN_DIR

from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes

GOLDEN_NAMES = sorted(path.stem for path in GOLDEN_DIR.glob("*.npz"))


class Golden(NamedTuple):
    """One golden case in the operator's layout."""

    query: np.ndarray  # float32 [batch, seq_len, hidden_size]
    key: np.ndarray
    value: np.ndarray
    attention_mask: np.ndarray  # int32 [batch, seq_len]
    expected: np.ndarray  # float64 [batch, seq_len, hidden_size]
    selected: np.ndarray  # bool [batch, num_heads, blocks, blocks]
    gap: np.ndarray  # float64 [batch, num_heads]
    attributes: Mra2AttentionAttributes


def load_golden(name: str) -> Golden:
    with np.load(GOLDEN_DIR / f"{name}.npz") as file:
        attrs = json.loads(str(file["attrs"]))
        heads = file["q"].shape[1]

        def flat(x: np.ndarray) -> np.ndarray:  # [B, H, S, D] -> [B, S, H * D]
            return np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(x.shape[0], x.shape[2], -1)

        return Golden(
            flat(file["q"]),
            flat(file["k"]),
            flat(file["v"]),
            file["mask"].astype(np.int32),
            flat(file["expected"]),
            file["selected"],
            file["gap"],
            Mra2AttentionAttributes(
                num_heads=heads,
                num_blocks=int(attrs["num_blocks"]),
                approx_mode={"full": 0, "sparse": 1}[attrs["approx_mode"]],
                initial_prior_first_n_blocks=int(attrs["initial_prior_first_n_blocks"]),
                initial_prior_diagonal_n_blocks=int(attrs["initial_prior_diagonal_n_blocks"]),
                scale=float(attrs["scale"]),
            ),
        )
