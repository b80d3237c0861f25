"""Triton model: texts to token ids, padded to the end of their last block. Copied into a model repository as model.py.

It runs in the server's python backend, where this package is not installed: it needs numpy and tokenizers only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

_COLUMNS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""Output -> attribute of an encoding."""


class TritonPythonModel:
    """`text` [batch, 1] to the encoder's inputs, int64 [batch, length] each.

    The texts of one request share a length, since a tensor has one; texts of different requests do not meet here.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the tokenizer beside this file, and the settings in the model's configuration."""
        config = json.loads(args["model_config"])
        settings = {name: int(value["string_value"]) for name, value in config["parameters"].items()}
        self.block_size = settings["block_size"]
        self.max_length = settings["max_length"]
        self.max_positions = settings["max_positions"]
        self.fill = {"input_ids": settings["pad_token_id"]}
        self.outputs = [output["name"] for output in config["output"]]
        self.tokenizer = Tokenizer.from_file(str(Path(__file__).with_name("tokenizer.json")))
        self.tokenizer.no_padding()
        cut = self.tokenizer.truncation or {}
        self.tokenizer.enable_truncation(self.max_length, direction=cut.get("direction", "right"))

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request; a request that is not text gets an error and the others their ids."""
        texts: list[str] = []
        spans: list[tuple[int, int] | str] = []
        for request in requests:
            given = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().reshape(-1)
            try:
                decoded = [bytes(value).decode("utf-8") for value in given]
            except UnicodeDecodeError as error:
                spans.append(f"text is not UTF-8: {error}")
                continue
            spans.append((len(texts), len(texts) + len(decoded)))
            texts += decoded
        encodings = self.tokenizer.encode_batch(texts)
        responses = []
        for span in spans:
            if isinstance(span, str):
                responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError(span)))
            else:
                tensors = self._padded(encodings[span[0] : span[1]])
                responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(n, v) for n, v in tensors.items()]))
        return responses

    def _padded(self, encodings: list[Any]) -> dict[str, Any]:
        """The encodings as arrays [batch, length], filled on the right."""
        longest = max((len(encoding.ids) for encoding in encodings), default=0)
        # The number of blocks is part of what the encoder computes: not one more than the text needs.
        length = min(max(-(-longest // self.block_size), 1) * self.block_size, self.max_positions)
        arrays = {}
        for name in self.outputs:
            array = np.full((len(encodings), length), self.fill.get(name, 0), dtype=np.int64)
            for row, encoding in zip(array, encodings, strict=True):
                row[: len(encoding.ids)] = getattr(encoding, _COLUMNS[name])
            arrays[name] = array
        return arrays
