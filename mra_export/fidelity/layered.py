"""An MRA checkpoint run layer by layer, each with a budget of its own; budgets that begin alike share their first layers."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.families.mra import FAMILY
from mra_export.operators.mra2_attention.batched import mra2_attention_batched
from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from mra_export.checkpoint.load import Checkpoint
    from mra_export.fidelity.samples import Batch
    from mra_export.trace import Array

__all__ = ["LayeredModel", "Plan"]

Plan = tuple[Mra2AttentionAttributes, ...]
"""The attributes of each layer, first layer first."""


class LayeredModel:
    """The encoder of an MRA checkpoint with what follows it; where all blocks are selected it computes dense attention.

    Args:
        checkpoint: the model. Its own budgets do not matter.

    Attributes:
        layers: how many there are.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        from mra_export.checkpoint.layout import sentence_root
        from mra_export.checkpoint.load import share_weights
        from mra_export.checkpoint.module_torch import as_torch
        from mra_export.checkpoint.text import read_contract

        self._model = share_weights(checkpoint.model).base_model
        FAMILY.replace_attention(self._model, self._attend)
        is_encoder = checkpoint.task.name == "feature-extraction"
        modules = read_contract(checkpoint.directory, embedding=is_encoder).modules if is_encoder else ()
        self._chain = as_torch(modules, sentence_root(checkpoint.directory)) if modules else None
        self._heads = checkpoint.config.num_attention_heads
        self._scale = FAMILY.attributes(checkpoint.config).scale
        self._attributes: Mra2AttentionAttributes | None = None
        self._mask: Any = None
        self.layers = int(checkpoint.config.num_hidden_layers)

    def vectors(self, batch: Batch, plans: Sequence[Plan | None]) -> list[Array]:
        """The vectors of a batch with several budgets.

        Args:
            batch: the texts.
            plans: the budgets; None for dense attention.

        Returns:
            For each, float64 [rows, width] of length 1: `sentence_embedding`, or the mean of the token vectors.
        """
        import torch

        found: list[Array] = [np.zeros(0)] * len(plans)
        whole = batch.blocks**2
        # What selects every block of these texts is dense, whatever its priors.
        each_layer = [
            [None if plan is None or plan[layer].num_blocks >= whole else plan[layer] for layer in range(self.layers)]
            for plan in plans
        ]

        def descend(layer: int, hidden: Tensor, members: list[int]) -> None:
            if layer == self.layers:
                vectors = self._pooled(hidden)
                for index in members:
                    found[index] = vectors
                return
            groups: dict[Mra2AttentionAttributes | None, list[int]] = defaultdict(list)
            for index in members:
                groups[each_layer[index][layer]].append(index)
            for attributes, group in groups.items():
                self._attributes = attributes
                result = self._model.encoder.layer[layer](hidden)
                descend(layer + 1, result[0] if isinstance(result, tuple) else result, group)

        self._mask = batch.mask
        with torch.no_grad():
            descend(0, self._model.embeddings(input_ids=batch.ids), list(range(len(plans))))
        return found

    def _pooled(self, hidden: Tensor) -> Array:
        import torch

        if self._chain is not None:
            vectors = self._chain(hidden, self._mask)
        else:
            weight = self._mask[:, :, None].to(hidden.dtype)
            vectors = (hidden * weight).sum(1) / weight.sum(1)
        return torch.nn.functional.normalize(vectors.double(), dim=1).numpy()

    def _attend(self, _: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        import torch

        if self._attributes is not None:
            return mra2_attention_batched(query, key, value, self._mask, self._attributes)
        q, k, v = (x.unflatten(2, (self._heads, -1)).transpose(1, 2) for x in (query, key, value))
        keep = None if bool(self._mask.all()) else (self._mask != 0)[:, None, None]
        context = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=keep, scale=self._scale)
        return context.transpose(1, 2).flatten(2)
