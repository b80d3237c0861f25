"""The operator for whole batches in torch, differentiable: the steps of the reference without a loop over examples.

Blocks are selected as in the reference, step by step; sums may be rounded in another order. On a CPU a few heads are taken at a
time, so that their blocks stay in the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from mra_export.operators.mra2_attention.reference import validate
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

__all__ = ["mra2_attention_batched"]

_CACHED = 2**19
"""Logits of selected blocks that are held at a time on a CPU: 2 MiB in float32."""


def mra2_attention_batched(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, attributes: Mra2AttentionAttributes
) -> Tensor:
    """As `reference.mra2_attention`, all examples at once, and differentiable in query, key and value.

    The choice of blocks is a constant to the gradient, and so is the shift M: it cancels in step 11 but for the 1e-6 beside the
    denominator.

    Args:
        query: float [batch, seq_len, num_heads * head_dim]; float64 is computed in float64, any other type in float32.
        key: as query.
        value: as query.
        attention_mask: [batch, seq_len], 0 = padding, anything else = token.
        attributes: the node's attributes.

    Returns:
        context, of the shape and type of query; 0 at padding.

    Raises:
        InputError: a size or an attribute is outside the limits.
    """
    validate(query, key, value, attention_mask, attributes)
    batch, seq_len, hidden_size = query.shape
    heads, rows = attributes.num_heads, -(-seq_len // BLOCK_SIZE)
    every, missing = batch * heads, rows * BLOCK_SIZE - seq_len
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    tokens = attention_mask != 0
    keep = pad(tokens, (0, missing)).reshape(batch, 1, rows, BLOCK_SIZE)

    def blocked(x: Tensor) -> Tensor:
        full = pad(torch.where(tokens[:, :, None], x.to(dtype), 0.0), (0, 0, 0, missing))  # step 1
        cut = full.reshape(batch, rows, BLOCK_SIZE, heads, hidden_size // heads)
        return cut.permute(0, 3, 1, 2, 4).reshape(every, rows, BLOCK_SIZE, hidden_size // heads)

    q, k, v = blocked(query), blocked(key), blocked(value)
    keep = keep.expand(batch, heads, rows, BLOCK_SIZE).reshape(every, rows, BLOCK_SIZE)
    count = keep.sum(2).to(dtype)  # [every, rows]
    divisor = (count + POOL_EPSILON)[..., None]
    low = attributes.scale * ((q.sum(2) / divisor) @ (k.sum(2) / divisor).transpose(1, 2))  # steps 2, 3
    row_max = low.detach().amax(2)  # step 4
    empty = count == 0
    low = low - MASKED_BLOCK_PENALTY * (empty[:, :, None] | empty[:, None, :]).to(dtype)  # step 5
    chosen = _chosen(low.detach() - row_max[..., None], attributes)  # [every, budget]

    size = every
    if query.device.type == "cpu":
        size = max(1, _CACHED // (chosen.shape[1] * BLOCK_SIZE * BLOCK_SIZE))
    parts = [
        _attend(attributes, *(x[first : first + size] for x in (q, k, v, keep, count, low, row_max, chosen)))
        for first in range(0, every, size)
    ]
    context = torch.cat(parts) if parts else v  # [every, rows, 32, head_dim]
    context = torch.where(keep[..., None], context, 0.0)  # step 12
    context = context.reshape(batch, heads, rows * BLOCK_SIZE, hidden_size // heads).transpose(1, 2)
    return context.reshape(batch, rows * BLOCK_SIZE, hidden_size)[:, :seq_len].to(query.dtype)


def _chosen(score: Tensor, attributes: Mra2AttentionAttributes) -> Tensor:
    """Steps 6 and 7: the flat indices of the selected blocks in ascending order, int64 [every, min(num_blocks, rows ** 2)].

    Args:
        score: [every, rows, rows], without the priors.
        attributes: the node's.
    """
    rows = score.shape[2]
    index = torch.arange(rows, device=score.device)
    if attributes.initial_prior_diagonal_n_blocks > 0:
        distance = (index[:, None] - index[None, :]).abs()
        score = score + PRIOR_BONUS * (distance <= attributes.initial_prior_diagonal_n_blocks // 2).to(score.dtype)
    first = (index < attributes.initial_prior_first_n_blocks).to(score.dtype)
    score = score + PRIOR_BONUS * first[:, None]
    score = score + PRIOR_BONUS * first[None, :]
    # A stable sort keeps equal scores in index order, which topk does not promise.
    order = torch.sort(score.flatten(1), dim=1, descending=True, stable=True).indices
    return order[:, : attributes.num_blocks].sort(dim=1).values


def _attend(
    attributes: Mra2AttentionAttributes,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor,
    count: Tensor,
    low: Tensor,
    row_max: Tensor,
    chosen: Tensor,
) -> Tensor:
    """Steps 8 to 11 for some heads of some examples: [heads, rows, 32, head_dim]."""
    heads, rows, _, head_dim = q.shape
    first = (torch.arange(heads, device=q.device) * rows)[:, None]
    row, column = (first + chosen // rows).flatten(), (first + chosen % rows).flatten()  # [heads * budget]
    logit = attributes.scale * (q.flatten(0, 1)[row] @ k.flatten(0, 1)[column].transpose(1, 2))  # step 8

    tile_max = logit.detach().amax(2)  # [heads * budget, 32]
    high_max = torch.full((heads * rows, BLOCK_SIZE), NO_BLOCK_MAX, dtype=logit.dtype, device=logit.device)
    high_max = high_max.scatter_reduce(0, row[:, None].expand_as(tile_max), tile_max, "amax", include_self=False)
    full = attributes.approx_mode == APPROX_MODES["full"]
    shift = torch.maximum(row_max.reshape(-1, 1), high_max) if full else high_max  # steps 9, 11, [heads * rows, 32]

    unused = ~keep.flatten(0, 1)[column][:, None]
    weight = torch.exp((logit - shift[row][..., None]).masked_fill(unused, float("-inf")))
    normalizer = torch.zeros_like(shift).index_add(0, row, weight.sum(2))
    total = torch.zeros((heads * rows, BLOCK_SIZE, head_dim), dtype=logit.dtype, device=logit.device)
    total = total.index_add(0, row, weight @ v.flatten(0, 1)[column])
    if full:  # step 10
        selected = torch.zeros_like(low, dtype=torch.bool).flatten(1).scatter_(1, chosen, True).reshape(low.shape)
        share = torch.exp(low - row_max[..., None]) * count[:, None, :]  # W e^-r: at most 32, cannot overflow
        share = share.masked_fill(selected, 0.0)
        pooled = v.sum(2) / (count + POOL_EPSILON)[..., None]
        rescale = torch.exp(row_max.reshape(-1, 1) - shift)  # e^(r - M) <= 1
        normalizer = normalizer + share.sum(2).reshape(-1, 1) * rescale
        total = total + (share @ pooled).reshape(-1, 1, head_dim) * rescale[..., None]
    return (total / (normalizer + NORMALIZER_EPSILON)[..., None]).reshape(heads, rows, BLOCK_SIZE, head_dim)
