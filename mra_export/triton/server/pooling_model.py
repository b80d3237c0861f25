"""Triton model: token vectors to one vector a text, for an encoder that was exported without pooling.

Copied into a model repository as model.py, with pooling.py and chain.py beside it.
"""

from __future__ import annotations

import json
from typing import Any

import triton_python_backend_utils as pb_utils
from pooling import pooled


class TritonPythonModel:
    """`last_hidden_state` [batch, length, hidden_size] and `attention_mask` [batch, length] to `sentence_embedding`."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the settings in the model's configuration."""
        self.parameters = json.loads(args["model_config"])["parameters"]

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request."""
        responses = []
        for request in requests:
            states = pb_utils.get_input_tensor_by_name(request, "last_hidden_state").as_numpy()
            mask = pb_utils.get_input_tensor_by_name(request, "attention_mask").as_numpy()
            tensor = pb_utils.Tensor("sentence_embedding", pooled(states, mask, self.parameters))
            responses.append(pb_utils.InferenceResponse([tensor]))
        return responses
