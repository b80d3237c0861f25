"""Texts to token ids for Triton's python backend, padded to the end of their last block. Copied beside the model.py that uses it.

This package is not installed in the server: only numpy and tokenizers are needed.
"""

from __future__ import annotations

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
        self.max_positions = int(settings["max_positions"])
        self.fill = {"input_ids": int(settings["pad_token_id"])}
        self.tokenizer = Tokenizer.from_file(str(Path(__file__).with_name("tokenizer.json")))
        self.tokenizer.no_padding()
        cut = self.tokenizer.truncation or {}
        self.tokenizer.enable_truncation(int(settings["max_length"]), direction=cut.get("direction", "right"))

    def encode(self, texts: list[str]) -> list[Any]:
        """An encoding a text, cut to the longest length, not padded."""
        return list(self.tokenizer.encode_batch(texts))

    def width(self, encodings: list[Any]) -> int:
        """Tokens to which encodings that share a tensor are padded.

        The number of blocks is part of what the encoder computes: not one more than the longest text needs.
        """
        longest = max((len(encoding.ids) for encoding in encodings), default=0)
        return min(max(-(-longest // self.block_size), 1) * self.block_size, self.max_positions)

    def arrays(self, encodings: list[Any]) -> dict[str, Any]:
        """The encoder's inputs, int64 [len(encodings), width] each, filled on the right."""
        width = self.width(encodings)
        arrays = {}
        for name in self.names:
            array = np.full((len(encodings), width), self.fill.get(name, 0), dtype=np.int64)
            for row, encoding in zip(array, encodings, strict=True):
                row[: len(encoding.ids)] = getattr(encoding, _COLUMNS[name])
            arrays[name] = array
        return arrays


def decoded(values: Any) -> list[str]:
    """The texts of a BYTES tensor.

    Raises:
        UnicodeDecodeError: one is not UTF-8.
    """
    return [bytes(value).decode("utf-8") for value in values.reshape(-1)]
