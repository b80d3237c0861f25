"""Token vectors to one vector a text, for Triton's python backend. Copied, with chain.py, beside the model.py that uses it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from chain import vector_of


def pooled(states: Any, mask: Any, parameters: dict[str, dict[str, str]]) -> Any:
    """As sentence-transformers' modules do it, for a text as if it were alone.

    Args:
        states: float32 [batch, length, hidden_size].
        mask: [batch, length]; padding is on the right.
        parameters: of the model's configuration, as JSON has them: "modules", those of the manifest, as JSON.

    Returns:
        float32 [batch, dimension].
    """
    steps: list[Any] = [(module, {}) for module in json.loads(parameters["modules"]["string_value"])]
    lengths = mask.sum(1)
    return np.stack([vector_of(row[: int(length)], steps) for row, length in zip(states, lengths, strict=True)])
