"""Token vectors to one vector a text, for Triton's python backend. Copied beside the model.py that uses it; needs numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np


def pooled(states: Any, mask: Any, parameters: dict[str, dict[str, str]]) -> Any:
    """As sentence-transformers' `Pooling` and `Normalize` do it.

    Args:
        states: float32 [batch, length, hidden_size].
        mask: [batch, length].
        parameters: of the model's configuration, as JSON has them: "mode" and "normalize".

    Returns:
        float32 [batch, hidden_size].
    """
    if parameters["mode"]["string_value"] == "cls":
        vectors = states[:, 0]
    else:
        weight = mask[..., None].astype(np.float32)
        vectors = (states * weight).sum(1) / np.maximum(weight.sum(1), 1e-9)
    if parameters["normalize"]["string_value"] == "1":
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return np.ascontiguousarray(vectors, dtype=np.float32)
