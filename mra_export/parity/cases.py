"""The inputs that a parity check runs: lengths from one token to the maximum, mixed padding, holes in the mask."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.checkpoint.load import Checkpoint, input_names
from mra_export.checkpoint.tokenizer import load_tokenizer
from mra_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mra_export.trace import Array, Inputs

__all__ = ["SENTENCES", "Case", "build_cases"]

SENTENCES = Path(__file__).parents[1] / "data" / "sentences.txt"
"""Pairs of English sentences that say nearly the same, one a line."""

_CHOICES = 3


@dataclass(frozen=True)
class Case:
    """One run of a parity check.

    Attributes:
        name: what is particular to it.
        inputs: as the exported model takes them.
        alone: for a padded batch, each row without the others, at the same width: the number of blocks is part of what the
            operator computes; else empty.
    """

    name: str
    inputs: Inputs
    alone: tuple[Inputs, ...] = ()

    @property
    def seq_len(self) -> int:
        """Tokens per row, padding included."""
        return int(self.inputs["input_ids"].shape[-1])


def build_cases(checkpoint: Checkpoint, *, max_seq_len: int | None = None, seed: int = 0) -> tuple[list[Case], str]:
    """The cases for one model.

    Args:
        checkpoint: the model; its tokenizer makes the ids of real text, without one they are random.
        max_seq_len: the longest length to run, None for the model's own maximum.
        seed: of what is random.

    Returns:
        The cases, shortest first, and where their ids come from ("text" or "random ids").

    Raises:
        InputError: `max_seq_len` is above the model's maximum.
    """
    longest = checkpoint.family.max_seq_len(checkpoint.config)
    if max_seq_len is not None and max_seq_len > longest:
        table = checkpoint.config.max_position_embeddings
        room = "" if table == longest else f", which has room for {longest} tokens"
        raise InputError(f"max_seq_len={max_seq_len} is above the model's max_position_embeddings={table}{room}.")
    longest = max_seq_len or longest
    rng = np.random.default_rng(seed)
    tokenizer = load_tokenizer(checkpoint.directory)
    if tokenizer is not None and len(tokenizer) > checkpoint.config.vocab_size:
        raise InputError(
            f"The tokenizer has {len(tokenizer)} tokens, but the model's vocab_size is {checkpoint.config.vocab_size}: "
            "they do not belong together."
        )
    make = _text_ids(tokenizer, rng) if tokenizer is not None else _random_ids(checkpoint.config, rng)
    choices = _CHOICES if checkpoint.task.name == "multiple-choice" else 1
    with_types = "token_type_ids" in input_names(checkpoint.config)

    def inputs(lengths: list[int], holes: bool = False) -> Inputs:
        width = max(lengths)
        lengths = [n for n in lengths for _ in range(choices)]
        ids = np.zeros((len(lengths), width), np.int64)
        mask = np.zeros_like(ids)
        for row, length in enumerate(lengths):
            ids[row, :length] = make(length)
            mask[row, :length] = 1
        # What stands at padding must not matter, so it is not the padding token.
        ids[mask == 0] = rng.integers(0, checkpoint.config.vocab_size, int((mask == 0).sum()))
        if holes:
            mask[:, 1:] *= rng.random(mask[:, 1:].shape) < 0.7
        tensors = {"input_ids": ids, "attention_mask": mask}
        if with_types:
            half = np.array(lengths)[:, None] // 2
            tensors["token_type_ids"] = (np.arange(width)[None, :] >= half).astype(np.int64)
        if checkpoint.task.name == "multiple-choice":
            return {name: value.reshape(-1, choices, width) for name, value in tensors.items()}
        return dict(tensors)

    names = {1: "one token", 31: "odd", 64: "whole blocks", 101: "odd", 256: "whole blocks", longest: "maximal"}
    cases = [Case(f"{name}, {n}", inputs([n])) for n, name in sorted(names.items()) if n <= longest]
    width = min(longest, 384)
    batch = inputs([width, max(1, width * 5 // 8), max(1, width // 9), max(1, width // 40)])
    cases.append(Case(f"mixed padding, {width}", batch, tuple(_alone(batch))))
    cases.append(Case(f"holes in the mask, {min(longest, 200)}", inputs([min(longest, 200)] * 2, holes=True)))
    return sorted(cases, key=lambda case: case.seq_len), "text" if tokenizer is not None else "random ids"


def _alone(batch: Inputs) -> list[Inputs]:
    return [{name: value[row : row + 1] for name, value in batch.items()} for row in range(batch["input_ids"].shape[0])]


def _text_ids(tokenizer: Any, rng: np.random.Generator) -> Callable[[int], Array]:
    """Ids of exactly `length` tokens of running text, special tokens included."""
    sentences = SENTENCES.read_text(encoding="utf-8").split("\n")

    def make(length: int) -> Array:
        words: list[str] = []
        while len(words) < length + 64:
            words += rng.permutation(sentences).tolist()
            words = " ".join(words).split()
        room = max(length, 8)  # tokenizers refuse to cut below their special tokens
        ids = tokenizer(" ".join(words), truncation=True, max_length=room)["input_ids"]
        return np.asarray(ids[:length], np.int64)

    return make


def _random_ids(config: Any, rng: np.random.Generator) -> Callable[[int], Array]:
    return lambda length: rng.integers(0, config.vocab_size, length)
