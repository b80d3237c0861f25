"""What families with BERT's layer structure have in common: where the attention is, how it is replaced, what is refused first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mra_export.errors import InputError
from mra_export.families._base import Family

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["BertFamily"]


class BertFamily(Family):
    """A family whose layers are `base_model.encoder.layer`, each with its self-attention in `attention.self`."""

    second_feed_forward = "output.dense"

    def validate(self, config: Any) -> None:
        """Raises `InputError` if the configuration is not that of an encoder at all."""
        heads, hidden = config.num_attention_heads, config.hidden_size
        if heads < 1 or hidden < 1 or hidden % heads:
            raise InputError(
                f"hidden_size={hidden} must be a positive multiple of num_attention_heads={heads}. Check config.json."
            )
        if config.num_hidden_layers < 1:
            raise InputError(f"num_hidden_layers={config.num_hidden_layers} must be at least 1. Check config.json.")
        if not config.layer_norm_eps > 0:
            raise InputError(f"layer_norm_eps={config.layer_norm_eps} must be positive. Check config.json.")

    def attention_modules(self, model: Any) -> list[tuple[str, Any]]:
        """Name and module of every self-attention, first layer first."""
        return [(f"layer.{i}", layer.attention.self) for i, layer in enumerate(model.base_model.encoder.layer)]

    def attention_result(self, context: Tensor) -> tuple[Tensor | None, ...]:
        """What transformers' layer takes from its self-attention."""
        return (context,)

    def replace_attention(self, model: Any, compute: Callable[..., Tensor]) -> None:
        """Puts in the place of every self-attention its projections followed by `compute(layer, query, key, value, *constants)`."""
        import torch
        from torch import nn

        constants, result = self.constants(model), self.attention_result

        class Attention(nn.Module):
            def __init__(self, original: Any, index: int) -> None:
                super().__init__()
                self.query, self.key, self.value = original.query, original.key, original.value
                self.index = index
                for number, constant in enumerate(constants[index]):
                    self.register_buffer(f"constant_{number}", constant, persistent=False)

            def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor | None, ...]:
                projected = (self.query(hidden_states), self.key(hidden_states), self.value(hidden_states))
                added = [getattr(self, f"constant_{number}") for number in range(len(constants[self.index]))]
                return result(compute(self.index, *projected, *added))

        with torch.no_grad():
            for index, layer in enumerate(model.base_model.encoder.layer):
                layer.attention.self = Attention(layer.attention.self, index)
