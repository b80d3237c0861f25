"""Triton model: texts to token ids. Copied into a model repository as model.py, with token_ids.py and tokenizer.json beside it."""

from __future__ import annotations

import json
from typing import Any

import triton_python_backend_utils as pb_utils
from token_ids import TokenIds, refusal


class TritonPythonModel:
    """`text` [batch, 1], and `prompt_name` [batch, 1] where one is wanted, to the encoder's inputs, int64 [batch, length] each.

    The texts of one request share a length, since a tensor has one; texts of different requests do not meet here.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the tokenizer, and the settings in the model's configuration."""
        config = json.loads(args["model_config"])
        self.token_ids = TokenIds(config["parameters"], [output["name"] for output in config["output"]])

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request; a request that is not text gets an error and the others their ids."""
        texts: list[str] = []
        spans: list[slice | str] = []
        for request in requests:
            try:
                given = self.token_ids.texts(pb_utils, request)
            except ValueError as error:
                spans.append(str(error))
                continue
            spans.append(slice(len(texts), len(texts) + len(given)))
            texts += given
        encodings = self.token_ids.encode(texts)
        responses = []
        for span in spans:
            if isinstance(span, str):
                responses.append(refusal(pb_utils, span))
            else:
                tensors = self.token_ids.arrays(encodings[span])
                responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(n, v) for n, v in tensors.items()]))
        return responses
