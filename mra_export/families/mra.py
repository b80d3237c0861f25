"""MRA (Zeng et al., 2022): `MraModel` and its heads."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mra_export.errors import InputError
from mra_export.op_spec import (
    APPROX_MODES,
    BLOCK_SIZE,
    HEAD_DIM_MULTIPLE,
    MAX_HEAD_DIM,
    MAX_SEQ_LEN,
    OP_DOMAIN,
    OP_TYPE,
    Mra2AttentionAttributes,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx import FunctionProto
    from torch import Tensor

__all__ = ["FAMILY", "MraFamily"]


class MraFamily:
    """`mra_export.families.Family` for `model_type` "mra"."""

    model_type = "mra"
    operator = (OP_DOMAIN, OP_TYPE)

    def validate(self, config: Any) -> None:
        """Raises `InputError` if the configuration is outside what the operator computes."""
        heads, hidden = config.num_attention_heads, config.hidden_size
        if heads < 1 or hidden < 1 or hidden % heads:
            raise InputError(
                f"hidden_size={hidden} must be a positive multiple of num_attention_heads={heads}. Check config.json."
            )
        head_dim = hidden // heads
        if head_dim % HEAD_DIM_MULTIPLE or head_dim > MAX_HEAD_DIM:
            raise InputError(
                f"head_dim={head_dim} (hidden_size={hidden} / num_attention_heads={heads}) must be a multiple of "
                f"{HEAD_DIM_MULTIPLE} and at most {MAX_HEAD_DIM}. This model cannot be exported."
            )
        if config.approx_mode not in APPROX_MODES:
            raise InputError(
                f"approx_mode={config.approx_mode!r} must be one of {', '.join(APPROX_MODES)}. Check config.json."
            )
        if config.max_position_embeddings < BLOCK_SIZE:
            raise InputError(
                f"max_position_embeddings={config.max_position_embeddings} must be at least {BLOCK_SIZE}: "
                "the budget is counted in blocks of that many tokens. Check config.json."
            )
        if config.num_hidden_layers < 1:
            raise InputError(f"num_hidden_layers={config.num_hidden_layers} must be at least 1. Check config.json.")
        if not config.layer_norm_eps > 0:
            raise InputError(f"layer_norm_eps={config.layer_norm_eps} must be positive. Check config.json.")
        if config.block_per_row < 1:
            raise InputError(f"block_per_row={config.block_per_row} must be at least 1. Check config.json.")
        for name in ("initial_prior_first_n_blocks", "initial_prior_diagonal_n_blocks"):
            if not 0 <= getattr(config, name) <= MAX_SEQ_LEN:
                raise InputError(
                    f"{name}={getattr(config, name)} must be between 0 and {MAX_SEQ_LEN}. Check config.json."
                )
        kind = getattr(config, "position_embedding_type", None)
        if kind not in (None, "absolute"):
            raise InputError(
                f"position_embedding_type={kind!r} is silently ignored by transformers' MraModel; "
                'only "absolute" is supported. Check config.json.'
            )
        if getattr(config, "output_attentions", False):
            raise InputError(
                "output_attentions=true: MRA computes no attention matrix. Set it to false in config.json."
            )

    def attributes(self, config: Any) -> Mra2AttentionAttributes:
        """The attributes of every attention node of the model."""
        blocks = config.max_position_embeddings // BLOCK_SIZE
        head_dim = config.hidden_size // config.num_attention_heads
        return Mra2AttentionAttributes(
            num_heads=config.num_attention_heads,
            num_blocks=min(blocks * config.block_per_row, blocks * blocks),
            approx_mode=APPROX_MODES[config.approx_mode],
            initial_prior_first_n_blocks=config.initial_prior_first_n_blocks,
            initial_prior_diagonal_n_blocks=config.initial_prior_diagonal_n_blocks,
            # transformers fills head_dim up to 32 before it scales.
            scale=1.0 / math.sqrt(max(head_dim, BLOCK_SIZE)),
        )

    def attention_modules(self, model: Any) -> list[tuple[str, Any]]:
        """Name and module of every self-attention, first layer first."""
        base = model.base_model
        return [(f"layer.{i}", layer.attention.self) for i, layer in enumerate(base.encoder.layer)]

    def replace_attention(self, model: Any, compute: Callable[[int, Tensor, Tensor, Tensor], Tensor]) -> None:
        """Puts in the place of every self-attention its projections followed by `compute(layer, query, key, value)`."""
        from torch import nn

        class Attention(nn.Module):
            def __init__(self, original: Any, index: int) -> None:
                super().__init__()
                self.query, self.key, self.value = original.query, original.key, original.value
                self.index = index

            def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor]:
                return (
                    compute(self.index, self.query(hidden_states), self.key(hidden_states), self.value(hidden_states)),
                )

        for index, layer in enumerate(model.base_model.encoder.layer):
            layer.attention.self = Attention(layer.attention.self, index)

    def functions(self, opset: int) -> list[FunctionProto]:
        """The function bodies that let a stock runtime run the exported file."""
        from mra_export.function_body import function_body

        return [function_body(opset)]


FAMILY = MraFamily()
