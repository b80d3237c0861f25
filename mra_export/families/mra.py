"""MRA (Zeng et al., 2022): `MraModel` and its heads."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

from mra_export.errors import InputError
from mra_export.families import _mra_kernels
from mra_export.families._base import TransformersSetup
from mra_export.families._bert import BertFamily
from mra_export.families._mra_budgets import check_budgets, with_budgets
from mra_export.operators.limits import HEAD_DIM_MULTIPLE, MAX_HEAD_DIM, MAX_SEQ_LEN, OP_DOMAIN, OP_VERSION
from mra_export.operators.mra2_attention.function_body import MIN_OPSET
from mra_export.operators.mra2_attention.spec import (
    APPROX_MODES,
    ATTRIBUTES,
    BLOCK_SIZE,
    INPUTS,
    OP_TYPE,
    Mra2AttentionAttributes,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from onnx import FunctionProto, ModelProto
    from torch import Tensor

    from mra_export.operators.judge import Judge
    from mra_export.trace import Inputs

__all__ = ["FAMILY", "MraFamily"]


class MraFamily(BertFamily):
    """`mra_export.families._base.Family` for `model_type` "mra"."""

    model_type = "mra"
    title = "MRA"
    operator = (OP_DOMAIN, OP_TYPE)
    operator_version = OP_VERSION
    operator_inputs = INPUTS
    operator_attributes = ATTRIBUTES
    is_linear_in_values = True
    plugin = OP_TYPE
    min_opset = MIN_OPSET
    length_step = BLOCK_SIZE

    def validate(self, config: Any) -> None:
        """Raises `InputError` if the configuration is outside what the operator computes."""
        super().validate(config)
        heads, hidden = config.num_attention_heads, config.hidden_size
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
        if config.block_per_row < 1:
            raise InputError(f"block_per_row={config.block_per_row} must be at least 1. Check config.json.")
        for name in ("initial_prior_first_n_blocks", "initial_prior_diagonal_n_blocks"):
            if not 0 <= getattr(config, name) <= MAX_SEQ_LEN:
                raise InputError(
                    f"{name}={getattr(config, name)} must be between 0 and {MAX_SEQ_LEN}. Check config.json."
                )
        check_budgets(config)
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
        """The attributes of every attention node, but for what config.json says of single layers."""
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

    def layer_attributes(self, config: Any) -> list[Mra2AttentionAttributes]:
        """The attributes of each attention node, with the budgets of single layers."""
        return with_budgets(config, self.attributes(config))

    def attributes_from(self, values: Mapping[str, Any]) -> Mra2AttentionAttributes:
        """The attributes from what a node or a manifest says."""
        return Mra2AttentionAttributes(**{name: values[name] for name in ATTRIBUTES})

    def prepare(self, model: Any, options: Mapping[str, Any]) -> None:
        """Gives transformers' modules the budgets of single layers, of which it knows nothing."""
        modules = self.attention_modules(model)
        for (_, module), attributes in zip(modules, self.layer_attributes(model.config), strict=True):
            module.num_block = attributes.num_blocks
            module.initial_prior_first_n_blocks = attributes.initial_prior_first_n_blocks
            module.initial_prior_diagonal_n_blocks = attributes.initial_prior_diagonal_n_blocks

    def attend(
        self, attributes: Mra2AttentionAttributes, tensors: Sequence[Tensor], mask: Tensor, choice: Any = None
    ) -> Tensor:
        """The operator by its specification; `choice` is bool [batch, num_heads, blocks, blocks], the selected blocks."""
        from mra_export.operators.mra2_attention.reference import mra2_attention

        query, key, value = tensors
        return mra2_attention(query, key, value, mask, attributes, selected=choice)

    def transformers_setup(self, config: Any, device: str, kernel_sources: Path | None) -> TransformersSetup:
        """Supplies its kernels, and runs it example by example: it gives heads another example's mask in a padded batch.

        The lengths are filled to a multiple of 32 that its top-k accepts, in the layer with the largest budget.
        """
        budget = max(attributes.num_blocks for attributes in self.layer_attributes(config))

        @contextlib.contextmanager
        def kernels() -> Iterator[str]:
            with _mra_kernels.installed(device, sources=kernel_sources) as source:
                yield source.name

        def filled_length(length: int) -> int:
            blocks = -(-length // BLOCK_SIZE)
            while blocks * blocks < budget:
                blocks += 1
            return blocks * BLOCK_SIZE

        def arguments(one: Inputs, length: int) -> dict[str, Any]:
            """Arguments that spare transformers its buffers, which end at max_position_embeddings."""
            import torch

            positions = torch.arange(length).clamp(max=config.max_position_embeddings - 1) + 2
            extra: dict[str, Any] = {"position_ids": positions[None]}
            if "token_type_ids" not in one:
                extra["token_type_ids"] = torch.zeros((1, length), dtype=torch.int64)
            return extra

        return TransformersSetup(
            kernels=kernels,
            probe=_mra_kernels.probe_attention,
            one_by_one=True,
            filled_length=filled_length,
            arguments=arguments,
            mended=_mra_kernels.mended_mask,
        )

    def functions(self, opset: int) -> list[FunctionProto]:
        """The function bodies that let a stock runtime run the exported file."""
        from mra_export.operators.mra2_attention.function_body import function_body

        return [function_body(opset)]

    def operator_model(
        self, attributes: Any, hidden_size: int, dtype: str, opset: int, functions: Sequence[Any]
    ) -> ModelProto:
        """An ONNX model of one node; see `mra_export.operators.mra2_attention.function_body.operator_model`."""
        from mra_export.operators.mra2_attention.function_body import operator_model

        return operator_model(attributes, hidden_size, dtype, opset, list(functions))

    def judge(
        self, attributes: Sequence[Mra2AttentionAttributes], constants: Sequence[tuple[Tensor, ...]] = ()
    ) -> Judge:
        """Tells a difference of selection from one of arithmetic."""
        from mra_export.operators.mra2_attention.judge import SelectionJudge

        return SelectionJudge(self.attend, attributes, constants)

    def blocks_per_row(self, attributes: Mra2AttentionAttributes, seq_len: int) -> tuple[float, int]:
        """The budget, which is a total, for each block of queries."""
        blocks = -(-seq_len // BLOCK_SIZE)
        return min(attributes.num_blocks / blocks, float(blocks)), blocks

    def makes_no_choice(self, attributes: Mra2AttentionAttributes, seq_len: int) -> bool:
        """Whether the budget selects every block."""
        selected, blocks = self.blocks_per_row(attributes, seq_len)
        return selected == blocks


FAMILY = MraFamily()
