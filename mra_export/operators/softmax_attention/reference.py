"""Softmax attention in plain torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mra_export.dtypes import MASKED

if TYPE_CHECKING:
    from mra_export.operators.softmax_attention.spec import DenseAttentionAttributes

__all__ = ["softmax_attention"]


def softmax_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    attributes: DenseAttentionAttributes,
) -> torch.Tensor:
    """Softmax attention (Vaswani et al., 2017, section 3.2; `eager_attention_forward` in transformers).

    float64 is computed in float64, any other type in float32.

    Args:
        query: [batch, seq_len, num_heads * head_dim].
        key: as query.
        value: as query.
        mask: [batch, seq_len], 0 = padding.
        attributes: of the layer.

    Returns:
        context, like query.
    """
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    batch, seq_len, hidden = query.shape
    shape = (batch, seq_len, attributes.num_heads, hidden // attributes.num_heads)
    q, k, v = (x.to(wide).reshape(shape).transpose(1, 2) for x in (query, key, value))
    keep = (mask != 0)[:, None, None, :]
    if attributes.is_causal:
        keep = keep & torch.ones((seq_len, seq_len), dtype=torch.bool, device=mask.device).tril()
    bias = torch.zeros(keep.shape, dtype=wide, device=mask.device).masked_fill(~keep, MASKED["fp32"])
    weight = torch.softmax(q @ k.transpose(2, 3) * attributes.scale + bias, dim=-1)
    return (weight @ v).transpose(1, 2).reshape(batch, seq_len, hidden).to(query.dtype)
