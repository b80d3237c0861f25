"""Texts as token ids in batches, and which of them a budget is chosen by and which it is judged by."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mra_export.checkpoint.layout import transformer_folder
from mra_export.checkpoint.text import prompt_of, read_contract
from mra_export.checkpoint.text_ids import ids_of, source_tokenizer
from mra_export.operators.mra2_attention.spec import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

__all__ = [
    "Batch",
    "Ids",
    "Samples",
    "batches_of",
    "blocks_of",
    "sampled_ids",
    "split",
    "split_to_train",
    "to_device",
    "token_ids",
]

Ids = tuple[int, ...]

_TEXTS = 4000
"""Texts that are looked at where budgets are chosen, of those that are given."""
_BATCH_TOKENS = 2048
"""Tokens of a batch: more is no faster on a CPU."""


@dataclass(frozen=True)
class Samples:
    """Token ids of texts that are long enough to lose something.

    Attributes:
        chosen_by: those that budgets are chosen by.
        judged_by: those that have no part in it; the same where there are too few texts for two parts.
        seen: texts that were looked at, short ones too.
        longest: tokens of the longest of these.
        long_enough: how many of them could lose something.
    """

    chosen_by: tuple[Ids, ...]
    judged_by: tuple[Ids, ...]
    seen: int
    longest: int
    long_enough: int

    @property
    def is_held_out(self) -> bool:
        """Whether the two parts are disjoint."""
        return self.chosen_by != self.judged_by


@dataclass(frozen=True)
class Batch:
    """Texts of as many blocks.

    Attributes:
        ids: int64 [rows, seq_len], padded on the right.
        mask: int64 [rows, seq_len].
        places: of the rows among the texts.
        blocks: of each row.
    """

    ids: Tensor
    mask: Tensor
    places: tuple[int, ...]
    blocks: int


def blocks_of(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // BLOCK_SIZE)


def token_ids(directory: Path, texts: Sequence[str], positions: int, prompts: Sequence[str] = ()) -> list[Ids] | None:
    """The ids of texts as sentence-transformers gives them to the model, in the order of the texts.

    Args:
        directory: the checkpoint.
        texts: the texts.
        positions: tokens that the model has positions for.
        prompts: names of prompts, of which the first that the checkpoint has is put before each text; else its default one is.

    Returns:
        The ids; None where the checkpoint has no tokenizer.

    Raises:
        InputError: the tokenizer cannot be loaded.
    """
    contract = read_contract(directory, embedding=False)
    tokenizer = source_tokenizer(transformer_folder(directory), contract, positions)
    if tokenizer is None:
        return None
    name = next((name for name in prompts if contract.prompts.get(name)), None)
    prompt = prompt_of(contract.prompts, contract.default_prompt, name)
    return [tuple(ids) for ids, _ in ids_of(tokenizer, [prompt + text for text in texts])]


def sampled_ids(directory: Path, texts: Sequence[str], positions: int, most: int | None = None) -> list[Ids] | None:
    """The ids of texts as `token_ids`, with the default prompt, in an order that has nothing to do with theirs.

    Args:
        directory: the checkpoint.
        texts: the texts; of many, some are taken, the same ones for the same texts. Each counts once.
        positions: tokens that the model has positions for.
        most: texts that are taken; None for as many as budgets are chosen by.

    Returns:
        The ids, without texts that are empty; None where the checkpoint has no tokenizer.

    Raises:
        InputError: the tokenizer cannot be loaded.
    """
    taken = sorted({text for text in texts if text.strip()}, key=_digest)[: most or _TEXTS]
    ids = token_ids(directory, taken, positions)
    return None if ids is None else [each for each in ids if each]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def split(ids: Sequence[Ids], *, longer_than: int, tokens: int) -> Samples:
    """Two disjoint parts of the texts that are long enough, each of about so many tokens.

    Args:
        ids: of the texts, in an order of no meaning; equal ones count once.
        longer_than: tokens up to which a text cannot lose anything.
        tokens: of each part.
    """
    long = list(dict.fromkeys(each for each in ids if len(each) > longer_than))
    first, second = long[0::2], long[1::2]
    if len(second) < _FEW:
        first = second = long
    parts = []
    for part in (first, second):
        taken: list[Ids] = []
        count = 0
        for each in part:
            if count + len(each) > tokens and len(taken) >= _FEW:
                break
            taken.append(each)
            count += len(each)
        parts.append(tuple(taken))
    longest = max((len(each) for each in ids), default=0)
    return Samples(parts[0], parts[1], len(ids), longest, len(long))


def split_to_train(ids: Sequence[Ids], *, longer_than: int, tokens: int) -> Samples:
    """Most of the texts that are long enough, and a fifth of them, up to about so many tokens, that has no part in it.

    Args:
        ids: of the texts, in an order of no meaning; equal ones count once.
        longer_than: tokens up to which a text cannot lose anything.
        tokens: of the part that judges; the other one has no limit.

    Returns:
        The two parts; the first is what to train on. Both are empty where there are too few texts for two.
    """
    long = list(dict.fromkeys(each for each in ids if len(each) > longer_than))
    longest = max((len(each) for each in ids), default=0)
    judged: list[Ids] = []
    for each in long[::5]:
        if sum(map(len, judged)) + len(each) > tokens and len(judged) >= _FEW:
            break
        judged.append(each)
    if len(judged) < _FEW:
        return Samples((), (), len(ids), longest, len(long))
    held_out = set(judged)
    return Samples(tuple(each for each in long if each not in held_out), tuple(judged), len(ids), longest, len(long))


_FEW = 4
"""Texts that a part has at least, however long they are, if there are so many."""


def batches_of(ids: Sequence[Ids], tokens: int = _BATCH_TOKENS) -> list[Batch]:
    """Texts in batches of as many blocks, so that what is selected is what each text selects alone.

    Args:
        ids: of the texts.
        tokens: that a batch has at most, unless it is one text.
    """
    import torch

    order = sorted(range(len(ids)), key=lambda place: (len(ids[place]), place))
    groups: list[list[int]] = []
    for place in order:
        blocks = blocks_of(len(ids[place]))
        full = (
            not groups
            or blocks_of(len(ids[groups[-1][0]])) != blocks
            or (len(groups[-1]) + 1) * blocks * BLOCK_SIZE > tokens
        )
        if full:
            groups.append([])
        groups[-1].append(place)
    found = []
    for places in groups:
        width = max(len(ids[place]) for place in places)
        rows = torch.zeros((len(places), width), dtype=torch.int64)
        mask = torch.zeros_like(rows)
        for row, place in enumerate(places):
            rows[row, : len(ids[place])] = torch.tensor(ids[place])
            mask[row, : len(ids[place])] = 1
        found.append(Batch(rows, mask, tuple(places), blocks_of(width)))
    return found


def to_device(batch: Batch, device: str) -> Batch:
    """A batch in the memory of a device."""
    return replace(batch, ids=batch.ids.to(device), mask=batch.mask.to(device))
