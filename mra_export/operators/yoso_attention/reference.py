"""YOSO attention in plain torch: the arbiter of every other implementation, in float32 or float64.

The steps are numbered as in `docs/operators/yoso_attention.md`. It is written to be read, not to be fast; it handles one example
at a time, and no tensor grows with the square of seq_len.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from mra_export.errors import InputError
from mra_export.operators.limits import HEAD_DIM_MULTIPLE, MAX_HEAD_DIM, MAX_SEQ_LEN
from mra_export.operators.yoso_attention.spec import (
    GRID_LIMIT,
    MAX_CONV_WINDOW,
    MAX_HASH_CODE_LEN,
    MAX_NUM_HASH,
    MODES,
    NORM_EPSILON,
    PROJECTION_LIMIT,
    PROJECTION_SCALE,
    YosoAttentionAttributes,
)

if TYPE_CHECKING:
    from torch import Tensor


__all__ = [
    "HashCodes",
    "cumulate",
    "draw_hash_constants",
    "hash_codes",
    "validate",
    "validate_attributes",
    "yoso_attention",
]

_QUERY_ROWS = 256  # queries that are compared with all keys at a time
_MAX_SEED = 2**32 - 1


class HashCodes(NamedTuple):
    """The discrete choices of one call in mode lsh.

    Attributes:
        query: int64 [batch, num_heads, num_hash, seq_len], the bucket of each query.
        key: as query, of each key.
    """

    query: Tensor
    key: Tensor


def validate_attributes(attributes: YosoAttentionAttributes, head_dim: int) -> None:
    """Refuses attributes that the operator does not define.

    Args:
        attributes: the node's attributes.
        head_dim: D.

    Raises:
        InputError: a value is outside the limits; the message names it and the limit.
    """
    if head_dim < 1 or head_dim % HEAD_DIM_MULTIPLE or head_dim > MAX_HEAD_DIM:
        raise InputError(
            f"head_dim={head_dim} must be a multiple of {HEAD_DIM_MULTIPLE} and at most {MAX_HEAD_DIM}. "
            "Choose another hidden_size or num_attention_heads."
        )
    if attributes.mode not in MODES.values():
        raise InputError(f"mode={attributes.mode} must be one of {MODES}.")
    if not 1 <= attributes.hash_code_len <= MAX_HASH_CODE_LEN:
        raise InputError(
            f"hash_code_len={attributes.hash_code_len} must be between 1 and {MAX_HASH_CODE_LEN}. Check config.json."
        )
    window = attributes.conv_window
    if window and (window < 1 or window % 2 == 0 or window > MAX_CONV_WINDOW):
        raise InputError(
            f"conv_window={window} must be odd and between 1 and {MAX_CONV_WINDOW}, or 0 for no convolution. "
            "Check config.json."
        )
    if attributes.mode == MODES["lsh"]:
        if not 1 <= attributes.num_hash <= MAX_NUM_HASH:
            raise InputError(f"num_hash={attributes.num_hash} must be between 1 and {MAX_NUM_HASH}. Check config.json.")
        if attributes.fast_hash not in (0, 1):
            raise InputError(f"fast_hash={attributes.fast_hash} must be 0 or 1.")


def validate(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    attributes: YosoAttentionAttributes,
    *constants: Tensor,
) -> None:
    """Refuses what the operator does not define.

    Args:
        query: [batch, seq_len, num_heads * head_dim].
        key: as query.
        value: as query.
        attention_mask: [batch, seq_len].
        attributes: the node's attributes.
        constants: the constant inputs that the attributes ask for, in the order of `YosoAttentionAttributes.inputs`.

    Raises:
        InputError: a size, an attribute or a hash constant is outside the limits; the message names the value and the limit.
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
    validate_attributes(attributes, head_dim)
    if not 1 <= seq_len <= MAX_SEQ_LEN:
        raise InputError(f"seq_len={seq_len} must be between 1 and {MAX_SEQ_LEN}.")
    shapes = attributes.constant_shapes(head_dim)
    if len(constants) != len(shapes):
        raise InputError(f"{len(constants)} constant inputs are given; these attributes ask for {list(shapes)}.")
    for (name, shape), constant in zip(shapes.items(), constants, strict=True):
        if tuple(constant.shape) != shape:
            raise InputError(f"{name} {tuple(constant.shape)} must be {shape} for these attributes.")
        if name == "hash_constants":
            _validate_hash_constants(constant, attributes)


def yoso_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    attributes: YosoAttentionAttributes,
    *constants: Tensor,
    codes: HashCodes | None = None,
) -> Tensor:
    """YOSO self-attention (Zeng et al., 2021, section 3; `YosoSelfAttention` in transformers' `modeling_yoso.py`).

    Args:
        query: float [batch, seq_len, num_heads * head_dim]; float64 is computed in float64, any other type in float32.
        key: as query.
        value: as query.
        attention_mask: [batch, seq_len], 0 = padding, anything else = token.
        attributes: the node's attributes.
        constants: the constant inputs that the attributes ask for, in the order of `YosoAttentionAttributes.inputs`.
        codes: in mode lsh, to be used in the place of step 4: that is how a parity check tells a difference of the hash
            codes from one of arithmetic.

    Returns:
        context, of the shape and type of query; 0 at padding.

    Raises:
        InputError: a size, an attribute or a hash constant is outside the limits.
    """
    validate(query, key, value, attention_mask, attributes, *constants)
    named = dict(zip(attributes.inputs()[4:], constants, strict=True))
    total = _cumulate(query, key, value, attention_mask, attributes, named.get("hash_constants"), codes)
    keep = (attention_mask != 0)[:, None, :, None]
    length = torch.linalg.vector_norm(total, dim=-1, keepdim=True)
    context = total / length.clamp(min=NORM_EPSILON)  # step 5
    if attributes.conv_window:  # step 6
        weight = named["conv_weight"].to(total.dtype)
        values = torch.where(keep, _heads(value, attributes, total.dtype), 0.0)
        context = context + torch.nn.functional.conv2d(
            values, weight[:, None, :, None], padding=(attributes.conv_window // 2, 0), groups=attributes.num_heads
        )
    context = torch.where(keep, context, 0.0)  # step 7
    return context.transpose(1, 2).reshape(query.shape).to(query.dtype)


def cumulate(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    attributes: YosoAttentionAttributes,
    hash_constants: Tensor | None = None,
) -> Tensor:
    """Steps 1 to 4 alone: the weighted sums of values, before they are brought to unit length.

    Args:
        query: float [batch, seq_len, num_heads * head_dim].
        key: as query.
        value: as query.
        attention_mask: [batch, seq_len].
        attributes: the node's attributes; a convolution is left out.
        hash_constants: in mode lsh, int32 as in `YosoAttentionAttributes.constant_shapes`.

    Returns:
        float [batch, num_heads, seq_len, head_dim].
    """
    return _cumulate(query, key, value, attention_mask, attributes, hash_constants, None)


def hash_codes(rows: Tensor, attributes: YosoAttentionAttributes, hash_constants: Tensor) -> Tensor:
    """Step 4a: the hash codes of queries or keys, the same bits wherever they are computed.

    Args:
        rows: float [batch, seq_len, num_heads * head_dim]; rounded to float32 first.
        attributes: the node's attributes, of mode lsh.
        hash_constants: int32 as in `YosoAttentionAttributes.constant_shapes`.

    Returns:
        int64 [batch, num_heads, num_hash, seq_len], each below 2**hash_code_len.
    """
    x = _heads(rows, attributes, torch.float32)  # [batch, heads, seq_len, head_dim]
    signs = _transformed(x, hash_constants) if attributes.fast_hash else _projected(x, hash_constants)
    bits = signs[..., : attributes.num_hash * attributes.hash_code_len]
    bits = bits.unflatten(-1, (attributes.num_hash, attributes.hash_code_len))
    powers = 2 ** torch.arange(attributes.hash_code_len, device=rows.device)
    return (bits * powers).sum(-1).transpose(2, 3)


def draw_hash_constants(attributes: YosoAttentionAttributes, head_dim: int, seed: int, layer: int = 0) -> Tensor:
    """Draws the hash constants of one layer.

    Args:
        attributes: the node's attributes, of mode lsh.
        head_dim: D.
        seed: 0 to 2**32 - 1.
        layer: number of the layer: each has constants of its own.

    Returns:
        int32 as in `YosoAttentionAttributes.constant_shapes`; the same for the same arguments on every machine.

    Raises:
        InputError: the seed is outside its range.
    """
    import numpy as np

    if not 0 <= seed <= _MAX_SEED:
        raise InputError(f"seed={seed} must be between 0 and {_MAX_SEED}.")
    # The one generator whose stream is promised never to change: torch's and numpy's newer ones may between releases.
    generator = np.random.RandomState((seed, layer))
    shape = attributes.constant_shapes(head_dim)["hash_constants"]
    if attributes.fast_hash:
        drawn = 2 * generator.randint(0, 2, shape) - 1
    else:
        normal = generator.standard_normal(shape)
        drawn = np.rint(normal * PROJECTION_SCALE).clip(-PROJECTION_LIMIT, PROJECTION_LIMIT)
    return torch.from_numpy(drawn.astype(np.int32))


def _heads(x: Tensor, attributes: YosoAttentionAttributes, dtype: torch.dtype) -> Tensor:
    """[batch, seq_len, heads * head_dim] -> [batch, heads, seq_len, head_dim]."""
    return x.to(dtype).unflatten(-1, (attributes.num_heads, -1)).transpose(1, 2)


def _cumulate(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    attributes: YosoAttentionAttributes,
    hash_constants: Tensor | None,
    codes: HashCodes | None,
) -> Tensor:
    """Steps 1 to 4; [batch, heads, seq_len, head_dim]."""
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    keep = attention_mask != 0
    # 1. Left out, not multiplied by 0.
    query, key, value = (torch.where(keep[:, :, None], x, torch.zeros_like(x)) for x in (query, key, value))
    if attributes.mode == MODES["lsh"] and codes is None:
        assert hash_constants is not None
        codes = HashCodes(hash_codes(query, attributes, hash_constants), hash_codes(key, attributes, hash_constants))
    q, k, v = (_heads(x, attributes, dtype) for x in (query, key, value))
    total = torch.zeros_like(v)
    for example in range(q.shape[0]):
        tokens = keep[example].nonzero()[:, 0]
        if codes is None:
            found = _expectation(q[example][:, tokens], k[example][:, tokens], v[example][:, tokens], attributes)
        else:
            found = _tables(
                codes.query[example][..., tokens], codes.key[example][..., tokens], v[example][:, tokens], attributes
            )
        total[example][:, tokens] = found
    return total


def _expectation(q: Tensor, k: Tensor, v: Tensor, attributes: YosoAttentionAttributes) -> Tensor:
    """Steps 2 and 3 for the tokens of one example, each [heads, tokens, head_dim]."""
    q, k = (torch.nn.functional.normalize(x, dim=-1, eps=NORM_EPSILON) for x in (q, k))
    parts = []
    for rows in q.split(_QUERY_ROWS, dim=1):
        cosine = (rows @ k.transpose(1, 2)).clamp(-1.0, 1.0)
        parts.append((1.0 - torch.acos(cosine) / math.pi) ** attributes.hash_code_len @ v)
    return torch.cat(parts, dim=1) if parts else torch.zeros_like(v)


def _tables(query_codes: Tensor, key_codes: Tensor, v: Tensor, attributes: YosoAttentionAttributes) -> Tensor:
    """Step 4b for the tokens of one example; codes [heads, num_hash, tokens], v [heads, tokens, head_dim]."""
    heads, _, head_dim = v.shape
    total = torch.zeros_like(v)
    for number in range(attributes.num_hash):
        table = torch.zeros((heads, 2**attributes.hash_code_len, head_dim), dtype=v.dtype, device=v.device)
        table = table.scatter_add(1, key_codes[:, number, :, None].expand_as(v), v)
        total += table.gather(1, query_codes[:, number, :, None].expand_as(v))
    return total / attributes.num_hash


def _transformed(x: Tensor, signs: Tensor) -> Tensor:
    """The fast hash's bits, bool [batch, heads, seq_len, transform_dim * parts]."""
    dim = signs.shape[-1]
    y = torch.nn.functional.pad(x, (0, dim - x.shape[-1]))[:, :, :, None]  # [batch, heads, seq_len, 1, dim]
    for number in range(3):
        y = y * signs[:, None, :, number].float()
        stride = dim // 2
        while stride:  # the order of these sums is part of the definition
            low, high = y.unflatten(-1, (-1, 2, stride)).unbind(-2)
            y = torch.stack((low + high, low - high), dim=-2).flatten(-3)
            stride //= 2
    # Bit by bit from one part after the other: bits of one part have orthogonal hyperplanes and are not independent.
    return (y > 0).transpose(-1, -2).flatten(-2)


def _projected(x: Tensor, projections: Tensor) -> Tensor:
    """The random projections' bits, bool [batch, heads, seq_len, num_hash * hash_code_len]."""
    largest = x.abs().amax(-1, keepdim=True)
    exponent = torch.frexp(largest).exponent  # largest < 2**exponent
    shift = (GRID_LIMIT.bit_length() - 1 - exponent).clamp(max=127)
    finite = torch.isfinite(x).all(-1, keepdim=True)
    scale = (shift.int() + 127 << 23).view(torch.float32)  # 2**shift
    grid = torch.where(finite, torch.round(x * scale), 0.0)
    return grid @ projections.float().transpose(1, 2) > 0  # exact: every sum is an integer below 2**24


def _validate_hash_constants(constants: Tensor, attributes: YosoAttentionAttributes) -> None:
    if constants.is_floating_point() or constants.dtype == torch.bool:
        raise InputError(f"hash_constants are of type {constants.dtype}; they must be int32.")
    if attributes.fast_hash:
        if not bool((constants.abs() == 1).all()):
            raise InputError("hash_constants hold a number that is neither -1 nor 1, as the fast hash asks for.")
    elif not bool((constants.abs() <= PROJECTION_LIMIT).all()):
        raise InputError(f"hash_constants hold a number beyond -{PROJECTION_LIMIT} to {PROJECTION_LIMIT}.")
