"""Triton model: token vectors to one vector a text. Copied into a model repository as model.py.

Only for an encoder that was exported without pooling; it runs in the server's python backend and needs numpy only.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """`last_hidden_state` [batch, length, hidden_size] and `attention_mask` [batch, length] to `sentence_embedding`."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the settings in the model's configuration."""
        settings = json.loads(args["model_config"])["parameters"]
        self.mode = settings["mode"]["string_value"]
        self.normalize = settings["normalize"]["string_value"] == "1"

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request."""
        responses = []
        for request in requests:
            states = pb_utils.get_input_tensor_by_name(request, "last_hidden_state").as_numpy()
            mask = pb_utils.get_input_tensor_by_name(request, "attention_mask").as_numpy()
            tensor = pb_utils.Tensor("sentence_embedding", self._pooled(states, mask))
            responses.append(pb_utils.InferenceResponse([tensor]))
        return responses

    def _pooled(self, states: Any, mask: Any) -> Any:
        """As sentence-transformers' `Pooling` and `Normalize` do it, float32 [batch, hidden_size]."""
        if self.mode == "cls":
            vectors = states[:, 0]
        else:
            weight = mask[..., None].astype(np.float32)
            vectors = (states * weight).sum(1) / np.maximum(weight.sum(1), 1e-9)
        if self.normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        return np.ascontiguousarray(vectors, dtype=np.float32)
