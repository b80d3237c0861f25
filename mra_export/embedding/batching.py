"""Length handling: which texts share a batch, so that padding costs little and no vector depends on its neighbours.

The number of blocks of tokens is part of what MRA's operator computes: a text that is padded into one more block may get another
vector. So only texts with the same number of blocks share a batch; how long a block is, the family says (`length_step`).
Where in its last block the padding ends changes nothing; so within a group the texts are sorted by length, and a batch is as wide
as its longest text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.errors import InputError, MraExportError

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence

__all__ = ["Batch", "batches_run", "blocks_of", "collate", "padded_width", "plan_batches"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Batch:
    """Texts that are run together.

    Attributes:
        rows: int64 [batch], their places in the window.
        width: tokens to which each is padded.
    """

    rows: Array
    width: int


def blocks_of(length: int, step: int) -> int:
    """Blocks of a text of so many tokens, special tokens included; an empty one takes one block."""
    return max(1, -(-length // step))


def padded_width(length: int, step: int, max_length: int | None = None) -> int:
    """Tokens to which a text may be padded without another result: the end of its last block, or of the model.

    Args:
        length: tokens of the text, special tokens included; an empty one takes one block.
        step: of the model's family, tokens of a block.
        max_length: positions of the model; None for no limit. The number of blocks is the same with it.

    Raises:
        InputError: the text is longer than `max_length`.
    """
    if max_length is not None and length > max_length:
        raise InputError(
            f"A text of {length} tokens is longer than the model's {max_length}. Truncate it when you tokenize."
        )
    width = blocks_of(length, step) * step
    return width if max_length is None else min(width, max_length)


def plan_batches(
    lengths: Sequence[int], *, max_tokens: int, step: int, max_length: int | None = None, few_shapes: bool = False
) -> list[Batch]:
    """Batches of texts with the same number of blocks, the longest texts first.

    The longest come first so that what does not fit into memory fails at once. The plan depends on `lengths` alone.

    Args:
        lengths: tokens of each text of a window.
        max_tokens: most tokens of a batch, padding included; a single text may have more.
        step: of the model's family, tokens of a block.
        max_length: positions of the model; None for no limit.
        few_shapes: for a runtime that compiles anew for each shape. Texts of a batch are then 1, 2, 3, 4, 6, 8, 12 ..., and its
            width is a multiple of 8 which follows from the length of each of its texts alone.

    Returns:
        Batches that hold each text once, padded by less than a block. A group that needs several batches is divided evenly,
        with `few_shapes` into batches of the largest sizes that there are.

    Raises:
        InputError: `max_tokens` is less than 1, or a text is longer than `max_length`.
    """
    if max_tokens < 1:
        raise InputError(f"max_tokens={max_tokens} must be at least 1.")
    known = np.asarray(lengths, dtype=np.int64)
    if max_length is not None and len(known) and known.max() > max_length:
        raise InputError(
            f"A text of {known.max()} tokens is longer than the model's {max_length}. Truncate it when you tokenize."
        )
    blocks = np.array([blocks_of(int(length), step) for length in known], dtype=np.int64)
    order = np.argsort(-known, kind="stable")
    batches = []
    if few_shapes:
        widths = np.array([_few_widths(int(length), step, max_length) for length in known], dtype=np.int64)
        for width in sorted({int(n) for n in widths}, reverse=True):
            rows = order[widths[order] == width]
            sizes = _few_sizes(len(rows), max(1, max_tokens // width))
            batches += [Batch(part, width) for part in np.split(rows, np.cumsum(sizes)[:-1])]
        return batches
    for count in sorted({int(n) for n in blocks}, reverse=True):
        rows = order[blocks[order] == count]
        longest = max(1, int(known[rows[0]]))
        parts = -(-len(rows) // max(1, max_tokens // longest))
        batches += [Batch(part, max(1, int(known[part[0]]))) for part in np.array_split(rows, parts)]
    return batches


def _few_widths(length: int, step: int, max_length: int | None) -> int:
    """Tokens to which a text is padded where widths shall be few: at most an eighth of it, or 7, and never another block."""
    part = min(step, max(8, (1 << max(1, length).bit_length() >> 1) // 8))
    width = blocks_of(length, part) * part
    return width if max_length is None else min(width, max_length)


def _few_sizes(count: int, most: int) -> list[int]:
    """`count` as a sum of sizes, the largest first: powers of two and three times those, none above `most`."""
    sizes = []
    while count:
        power = 1 << (min(count, most).bit_length() - 1)
        more = power + power // 2
        sizes.append(more if more <= min(count, most) else power)
        count -= sizes[-1]
    return sizes


def collate(
    batch: Batch,
    token_ids: Sequence[Sequence[int]],
    type_ids: Sequence[Sequence[int]] | None = None,
    *,
    pad_id: int = 0,
) -> dict[str, Array]:
    """The model's inputs for a batch.

    Args:
        batch: which texts, and how wide.
        token_ids: of each text of the window.
        type_ids: of each token; None for zeros.
        pad_id: the padding token.

    Returns:
        `input_ids`, `attention_mask` and `token_type_ids`, int64 [batch, width].
    """
    shape = (len(batch.rows), batch.width)
    inputs = {
        "input_ids": np.full(shape, pad_id, np.int64),
        "attention_mask": np.zeros(shape, np.int64),
        "token_type_ids": np.zeros(shape, np.int64),
    }
    for place, row in enumerate(batch.rows):
        count = len(token_ids[row])
        inputs["input_ids"][place, :count] = token_ids[row]
        inputs["attention_mask"][place, :count] = 1
        if type_ids is not None:
            inputs["token_type_ids"][place, :count] = type_ids[row]
    return inputs


def batches_run(
    run: Callable[[dict[str, Array]], Array],
    token_ids: Sequence[Sequence[int]],
    type_ids: Sequence[Sequence[int]] | None = None,
    *,
    max_tokens: int,
    step: int,
    hidden_size: int,
    max_length: int | None = None,
    pad_id: int = 0,
    done: Container[int] = (),
    few_shapes: bool = False,
) -> Iterator[tuple[Batch, Array]]:
    """Runs a window of texts batch by batch; the batches are the same whatever is done.

    A vector is the same bits whatever else is in the window, as long as `run` gives the rows of a batch independently.

    Args:
        run: takes int64 inputs [batch, width], returns float32 [batch, hidden_size].
        token_ids: of each text.
        type_ids: as for `collate`.
        max_tokens: as for `plan_batches`.
        step: as for `plan_batches`.
        hidden_size: length of a vector.
        max_length: as for `plan_batches`.
        pad_id: the padding token.
        done: texts; a batch of which all are done is left out.
        few_shapes: as for `plan_batches`.

    Yields:
        Each batch and its vectors, float32 [batch, hidden_size].

    Raises:
        InputError: as `plan_batches`.
        MraExportError: `run` returned another shape.
    """
    lengths = [len(ids) for ids in token_ids]
    plan = plan_batches(lengths, max_tokens=max_tokens, step=step, max_length=max_length, few_shapes=few_shapes)
    for batch in plan:
        if all(int(row) in done for row in batch.rows):
            continue
        out = run(collate(batch, token_ids, type_ids, pad_id=pad_id))
        if out.shape != (len(batch.rows), hidden_size):
            raise MraExportError(
                f"The model returned vectors of shape {list(out.shape)} for {len(batch.rows)} texts; expected is "
                f"[{len(batch.rows)}, {hidden_size}]."
            )
        yield batch, out
