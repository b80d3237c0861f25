"""Texts to token ids for Triton's python backend, padded to the longest of them. Copied beside the model.py that uses it.

This package is not installed in the server: only numpy and tokenizers are needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

_COLUMNS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""Input of an encoder -> attribute of an encoding."""


class TokenIds:
    """The tokenizer beside this file, with the settings of a model's configuration.

    Args:
        parameters: of the configuration, as JSON has them.
        names: the encoder's inputs that are wanted.
    """

    def __init__(self, parameters: dict[str, dict[str, str]], names: list[str]) -> None:
        settings = {name: value["string_value"] for name, value in parameters.items()}
        self.names = names
        self.block_size = int(settings["block_size"])
        self.least = int(settings["min_length"])
        self.fill = {"input_ids": int(settings["pad_token_id"])}
        self.tokenizer = Tokenizer.from_file(str(Path(__file__).with_name("tokenizer.json")))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(int(settings["max_length"]), direction=settings["truncation_side"])
        self.prompt: str = json.loads(settings["prompt"])
        self.prompts: dict[str, str] = json.loads(settings["prompts"])

    def texts(self, pb_utils: Any, request: Any) -> list[str]:
        """The texts of a request, each with its prompt before it: the one that it names, "" for none, else the model's default.

        Raises:
            ValueError: one is not UTF-8, or there is no such prompt.
        """
        texts = decoded("text", pb_utils.get_input_tensor_by_name(request, "text").as_numpy())
        given = pb_utils.get_input_tensor_by_name(request, "prompt_name")
        if given is None:
            return [self.prompt + text for text in texts]
        names = decoded("prompt_name", given.as_numpy())
        for name in names:
            if name not in {"", *self.prompts}:
                known = f"The model has {', '.join(sorted(self.prompts))}." if self.prompts else "The model has none."
                raise ValueError(f"prompt_name: there is no prompt {name!r}. {known}")
        return [self.prompts.get(name, "") + text for name, text in zip(names, texts, strict=True)]

    def encode(self, texts: list[str]) -> list[Any]:
        """An encoding a text, cut to the longest length, not padded."""
        return list(self.tokenizer.encode_batch(texts))

    def batches(self, encodings: list[Any], most: int) -> list[list[int]]:
        """The places of encodings that may share a tensor, `most` at a time, the longest texts first.

        The number of blocks is part of what the encoder computes: only texts with the same number share a tensor.
        """
        groups: dict[int, list[int]] = {}
        for place in sorted(range(len(encodings)), key=lambda i: -len(encodings[i].ids)):
            groups.setdefault(-(-len(encodings[place].ids) // self.block_size), []).append(place)
        return [group[start : start + most] for group in groups.values() for start in range(0, len(group), most)]

    def arrays(self, encodings: list[Any]) -> dict[str, Any]:
        """The encoder's inputs, int64 [len(encodings), width] each: as wide as the longest text, filled on the right.

        No wider: padding costs time. An engine may not take less than some width, which is within the first block.
        """
        width = max([self.least, *(len(encoding.ids) for encoding in encodings)])
        arrays = {}
        for name in self.names:
            array = np.full((len(encodings), width), self.fill.get(name, 0), dtype=np.int64)
            for row, encoding in zip(array, encodings, strict=True):
                row[: len(encoding.ids)] = getattr(encoding, _COLUMNS[name])
            arrays[name] = array
        return arrays


def refusal(pb_utils: Any, message: str) -> Any:
    """The answer to a request that is wrong: INVALID_ARGUMENT over gRPC and 400 over HTTP, where this server knows error codes."""
    code = getattr(pb_utils.TritonError, "INVALID_ARG", None)
    error = pb_utils.TritonError(message) if code is None else pb_utils.TritonError(message, code)
    return pb_utils.InferenceResponse(error=error)


def decoded(name: str, values: Any) -> list[str]:
    """The texts of the BYTES tensor of that name.

    Raises:
        ValueError: one is not UTF-8.
    """
    try:
        return [bytes(value).decode("utf-8") for value in values.reshape(-1)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8: {error}") from error
