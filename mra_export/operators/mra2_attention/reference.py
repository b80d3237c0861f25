"""The operator in plain torch: the arbiter of every other implementation, in float32 or float64.

The steps are numbered as in `docs/operators/mra2_attention.md`. It is written to be read, not to be fast; it handles one example
at a time and needs memory in proportion to the number of selected blocks, never to seq_len squared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from mra_export.errors import InputError
from mra_export.operators.limits import HEAD_DIM_MULTIPLE, MAX_HEAD_DIM, MAX_SEQ_LEN
from mra_export.operators.mra2_attention.spec import (
    APPROX_MODES,
    BLOCK_SIZE,
    MASKED_BLOCK_PENALTY,
    NO_BLOCK_MAX,
    NORMALIZER_EPSILON,
    POOL_EPSILON,
    PRIOR_BONUS,
    Mra2AttentionAttributes,
)

if TYPE_CHECKING:
    from torch import Tensor


__all__ = ["Selection", "mra2_attention", "select_blocks", "validate"]


class Selection(NamedTuple):
    """Which blocks are computed at full resolution.

    Attributes:
        selected: bool [batch, num_heads, blocks, blocks], query block by key block.
        gap: float [batch, num_heads], the lowest chosen score minus the highest rejected one; inf where all are chosen,
            0 where the cut falls among equal scores.
        score: float [batch, num_heads, blocks, blocks], what the blocks are chosen by.
        tied_tokens: bool [batch, num_heads], whether a cut among equal scores separates blocks that both hold tokens, which
            is where transformers' own result is not well defined.
    """

    selected: Tensor
    gap: Tensor
    score: Tensor
    tied_tokens: Tensor


class _Blocks(NamedTuple):
    """One example cut into blocks and its low-resolution logits; `dtype` is float32 or float64."""

    query: Tensor  # [heads, blocks, 32, head_dim], 0 at padding
    key: Tensor
    value: Tensor
    keep: Tensor  # bool [blocks, 32]
    tokens: Tensor  # [blocks], how many of a block are not padding
    logit: Tensor  # [heads, blocks, blocks], after step 5
    row_max: Tensor  # [heads, blocks], step 4
    score: Tensor  # [heads, blocks, blocks], step 6


def validate(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, attributes: Mra2AttentionAttributes
) -> None:
    """Refuses what the operator does not define.

    Args:
        query: [batch, seq_len, num_heads * head_dim].
        key: as query.
        value: as query.
        attention_mask: [batch, seq_len].
        attributes: the node's attributes.

    Raises:
        InputError: a size or an attribute is outside the limits; the message names the value and the limit.
    """
    if query.ndim != 3 or key.shape != query.shape or value.shape != query.shape:
        raise InputError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)} must have one shape, "
            "[batch, seq_len, num_heads * head_dim]."
        )
    if attention_mask.shape != query.shape[:2]:
        raise InputError(
            f"attention_mask {tuple(attention_mask.shape)} must be [batch, seq_len] = {tuple(query.shape[:2])}."
        )
    seq_len, hidden_size = query.shape[1:]
    if attributes.num_heads < 1 or hidden_size < 1 or hidden_size % attributes.num_heads:
        raise InputError(
            f"num_heads={attributes.num_heads} must be at least 1 and divide the hidden size {hidden_size}."
        )
    head_dim = hidden_size // attributes.num_heads
    if head_dim % HEAD_DIM_MULTIPLE or head_dim > MAX_HEAD_DIM:
        raise InputError(
            f"head_dim={head_dim} must be a multiple of {HEAD_DIM_MULTIPLE} and at most {MAX_HEAD_DIM}. "
            "Choose another hidden_size or num_attention_heads."
        )
    if not 1 <= seq_len <= MAX_SEQ_LEN:
        raise InputError(f"seq_len={seq_len} must be between 1 and {MAX_SEQ_LEN}.")
    if attributes.num_blocks < 1:
        raise InputError(f"num_blocks={attributes.num_blocks} must be at least 1. Check block_per_row in config.json.")
    if attributes.approx_mode not in APPROX_MODES.values():
        raise InputError(f"approx_mode={attributes.approx_mode} must be one of {APPROX_MODES}.")
    for name in ("initial_prior_first_n_blocks", "initial_prior_diagonal_n_blocks"):
        if getattr(attributes, name) < 0:
            raise InputError(f"{name}={getattr(attributes, name)} must not be negative. Check config.json.")


def mra2_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    attributes: Mra2AttentionAttributes,
    *,
    selected: Tensor | None = None,
) -> Tensor:
    """MRA-2 self-attention (Zeng et al., 2022, section 4; `mra2_attention` in transformers' `modeling_mra.py`).

    Args:
        query: float [batch, seq_len, num_heads * head_dim]; float64 is computed in float64, any other type in float32.
        key: as query.
        value: as query.
        attention_mask: [batch, seq_len], 0 = padding, anything else = token.
        attributes: the node's attributes.
        selected: bool [batch, num_heads, blocks, blocks], equally many in every head of an example, to be used in the place
            of step 7: that is how a parity check tells a difference of selection from one of arithmetic.

    Returns:
        context, of the shape and type of query; 0 at padding.

    Raises:
        InputError: a size or an attribute is outside the limits.
    """
    validate(query, key, value, attention_mask, attributes)
    batch, seq_len = query.shape[:2]
    context = torch.zeros_like(query)
    for example in range(batch):
        blocks = _cut(query[example], key[example], value[example], attention_mask[example], attributes)
        if selected is None:
            order = _ranking(blocks, attributes)
        else:
            order = selected[example].flatten(1).nonzero()[:, 1].reshape(attributes.num_heads, -1)
        rows = _attend(blocks, order, attributes)  # [blocks * 32, hidden_size]
        context[example] = rows[:seq_len].to(context.dtype)
    return context


def select_blocks(query: Tensor, key: Tensor, attention_mask: Tensor, attributes: Mra2AttentionAttributes) -> Selection:
    """Steps 1 to 7 alone: the blocks that are computed at full resolution.

    Args:
        query: float [batch, seq_len, num_heads * head_dim].
        key: as query.
        attention_mask: [batch, seq_len].
        attributes: the node's attributes.

    Returns:
        The selection and how clear it is.

    Raises:
        InputError: a size or an attribute is outside the limits.
    """
    validate(query, key, query, attention_mask, attributes)
    chosen, gaps, scores, ties = [], [], [], []
    for example in range(query.shape[0]):
        blocks = _cut(query[example], key[example], query[example], attention_mask[example], attributes)
        heads, rows, _ = blocks.score.shape
        order = _ranking(blocks, attributes)
        budget = order.shape[1]
        flat = blocks.score.flatten(1)
        selected = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, True)
        rejected = flat.masked_fill(selected, float("-inf"))
        lowest = flat.gather(1, order).amin(1)
        gap = lowest - rejected.amax(1) if budget < rows * rows else torch.full_like(lowest, float("inf"))
        holds_tokens = ((blocks.tokens[:, None] > 0) & (blocks.tokens[None, :] > 0)).flatten()
        at_cut = (flat == lowest[:, None]) & holds_tokens
        tied = (at_cut & selected).any(1) & (at_cut & ~selected).any(1)
        chosen.append(selected.reshape(heads, rows, rows))
        gaps.append(gap)
        scores.append(blocks.score)
        ties.append(tied)
    if not chosen:
        empty = query.new_zeros((0, attributes.num_heads))
        rows = -(-query.shape[1] // BLOCK_SIZE)
        pairs = empty[:, :, None, None].expand(0, attributes.num_heads, rows, rows)
        return Selection(pairs.bool(), empty, pairs, empty.bool())
    return Selection(torch.stack(chosen), torch.stack(gaps), torch.stack(scores), torch.stack(ties))


def _cut(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, attributes: Mra2AttentionAttributes
) -> _Blocks:
    """Steps 1 to 6 for one example; query, key, value [seq_len, hidden_size], attention_mask [seq_len]."""
    seq_len, hidden_size = query.shape
    heads = attributes.num_heads
    rows = -(-seq_len // BLOCK_SIZE)
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    keep = torch.zeros(rows * BLOCK_SIZE, dtype=torch.bool, device=query.device)
    keep[:seq_len] = attention_mask != 0

    def blocked(x: Tensor) -> Tensor:
        full = torch.zeros((rows * BLOCK_SIZE, hidden_size), dtype=dtype, device=x.device)
        full[:seq_len] = torch.where(keep[:seq_len, None], x.to(dtype), 0.0)  # step 1: left out, not multiplied by 0
        return full.reshape(rows, BLOCK_SIZE, heads, hidden_size // heads).permute(2, 0, 1, 3)

    query, key, value = blocked(query), blocked(key), blocked(value)
    keep = keep.reshape(rows, BLOCK_SIZE)
    count = keep.sum(1).to(dtype)
    divisor = (count + POOL_EPSILON)[:, None]
    logit = attributes.scale * ((query.sum(2) / divisor) @ (key.sum(2) / divisor).transpose(1, 2))  # steps 2, 3
    row_max = logit.amax(2)  # step 4
    empty = count == 0
    logit = logit - MASKED_BLOCK_PENALTY * (empty[:, None] | empty[None, :]).to(dtype)  # step 5
    score = logit - row_max[:, :, None]  # step 6
    index = torch.arange(rows, device=query.device)
    if attributes.initial_prior_diagonal_n_blocks > 0:
        distance = (index[:, None] - index[None, :]).abs()
        score = score + PRIOR_BONUS * (distance <= attributes.initial_prior_diagonal_n_blocks // 2).to(dtype)
    first = (index < attributes.initial_prior_first_n_blocks).to(dtype)
    score = score + PRIOR_BONUS * first[:, None]
    score = score + PRIOR_BONUS * first[None, :]
    return _Blocks(query, key, value, keep, count, logit, row_max, score)


def _ranking(blocks: _Blocks, attributes: Mra2AttentionAttributes) -> Tensor:
    """Step 7: the flat indices of the selected blocks, best first, int64 [heads, min(num_blocks, blocks ** 2)]."""
    flat = blocks.score.flatten(1)
    budget = min(attributes.num_blocks, flat.shape[1])
    # A stable sort keeps equal scores in index order, which topk does not promise.
    return torch.sort(flat, dim=1, descending=True, stable=True).indices[:, :budget]


def _attend(blocks: _Blocks, order: Tensor, attributes: Mra2AttentionAttributes) -> Tensor:
    """Steps 8 to 12 for one example: [blocks * 32, hidden_size]."""
    heads, rows, _, head_dim = blocks.query.shape
    head = torch.arange(heads, device=order.device)[:, None]
    row, column = order // rows, order % rows  # [heads, budget]
    logit = attributes.scale * (blocks.query[head, row] @ blocks.key[head, column].transpose(2, 3))  # step 8

    tile_max = logit.amax(3)  # [heads, budget, 32]
    high_max = torch.full((heads, rows, BLOCK_SIZE), NO_BLOCK_MAX, dtype=logit.dtype, device=logit.device)
    index = row[:, :, None].expand_as(tile_max)
    high_max = high_max.scatter_reduce(1, index, tile_max, "amax", include_self=False)  # step 9
    full = attributes.approx_mode == APPROX_MODES["full"]
    shift = torch.maximum(blocks.row_max[:, :, None], high_max) if full else high_max  # step 11, [heads, rows, 32]

    weight = torch.exp(logit - shift[head, row][:, :, :, None])
    weight = torch.where(blocks.keep[column][:, :, None, :], weight, 0.0)
    flat_row = (head * rows + row).flatten()
    normalizer = torch.zeros((heads * rows, BLOCK_SIZE), dtype=logit.dtype, device=logit.device)
    normalizer = normalizer.index_add(0, flat_row, weight.sum(3).flatten(0, 1)).reshape(heads, rows, BLOCK_SIZE)
    total = torch.zeros((heads * rows, BLOCK_SIZE, head_dim), dtype=logit.dtype, device=logit.device)
    tiles = weight @ blocks.value[head, column]  # [heads, budget, 32, head_dim]
    total = total.index_add(0, flat_row, tiles.flatten(0, 1)).reshape(heads, rows, BLOCK_SIZE, head_dim)

    if full:  # step 10
        selected = torch.zeros((heads, rows * rows), dtype=torch.bool, device=order.device).scatter_(1, order, True)
        low = (
            torch.exp(blocks.logit - blocks.row_max[:, :, None]) * blocks.tokens
        )  # W e^-r: at most 32, cannot overflow
        low = low.masked_fill(selected.reshape(heads, rows, rows), 0.0)
        pooled = blocks.value.sum(2) / (blocks.tokens + POOL_EPSILON)[:, None]
        rescale = torch.exp(blocks.row_max[:, :, None] - shift)  # e^(r - M) <= 1
        normalizer = normalizer + low.sum(2)[:, :, None] * rescale
        total = total + (low @ pooled)[:, :, None, :] * rescale[:, :, :, None]

    context = total / (normalizer + NORMALIZER_EPSILON)[:, :, :, None]
    context = torch.where(blocks.keep[:, :, None], context, 0.0)  # step 12
    return context.permute(1, 2, 0, 3).reshape(rows * BLOCK_SIZE, heads * head_dim)
