"""YOSO (Zeng et al., 2021): `YosoModel` and its heads, with the expectation of the hashing or with the hashing itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mra_export.errors import InputError
from mra_export.families._base import Option, TransformersSetup
from mra_export.families._bert import BertFamily
from mra_export.families._yoso_kernels import hash_functions, mended_mask, unmended
from mra_export.operators.limits import OP_DOMAIN, OP_VERSION
from mra_export.operators.yoso_attention.function_body import MIN_OPSET
from mra_export.operators.yoso_attention.spec import ATTRIBUTES, INPUTS, MODES, OP_TYPE, YosoAttentionAttributes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import onnx_ir
    from torch import Tensor

    from mra_export.operators.judge import Judge

__all__ = ["FAMILY", "YosoFamily"]

MAX_SEED = 2**32 - 1


def _check_seed(seed: int) -> None:
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"option seed={seed} must be between 0 and {MAX_SEED}.")


class YosoFamily(BertFamily):
    """`mra_export.families._base.Family` for `model_type` "yoso"."""

    model_type = "yoso"
    title = "YOSO"
    operator = (OP_DOMAIN, OP_TYPE)
    operator_version = OP_VERSION
    operator_inputs = INPUTS
    operator_integers = ("attention_mask", "hash_constants")
    operator_attributes = ATTRIBUTES
    plugin = OP_TYPE
    min_opset = MIN_OPSET
    options = {  # noqa: RUF012  (typed as a Mapping in Family)
        "seed": Option(0, "of the hash functions' random numbers, where use_expectation is false", _check_seed)
    }

    def validate(self, config: Any) -> None:
        """Raises `InputError` if the configuration is outside what the operator computes."""
        from mra_export.operators.yoso_attention.reference import validate_attributes

        super().validate(config)
        if config.max_position_embeddings < 1:
            raise InputError(
                f"max_position_embeddings={config.max_position_embeddings} must be at least 1. Check config.json."
            )
        if config.conv_window == 0:
            raise InputError("conv_window=0 must be odd, or null for no convolution. Check config.json.")
        validate_attributes(self.attributes(config), config.hidden_size // config.num_attention_heads)
        kind = getattr(config, "position_embedding_type", None)
        if kind not in (None, "absolute"):
            raise InputError(
                f"position_embedding_type={kind!r} leaves positions out in some releases of transformers and is ignored by "
                'others; only "absolute" is supported. Check config.json.'
            )
        for name, why in (
            ("add_cross_attention", "transformers' YosoModel ignores it"),
            ("output_attentions", "YOSO computes no attention matrix"),
        ):
            if getattr(config, name, False):
                raise InputError(f"{name}=true: {why}. Set it to false in config.json.")

    def attributes(self, config: Any) -> YosoAttentionAttributes:
        """The attributes of every attention node of the model."""
        lsh = not config.use_expectation
        return YosoAttentionAttributes(
            num_heads=config.num_attention_heads,
            mode=MODES["lsh" if lsh else "expectation"],
            hash_code_len=config.hash_code_len,
            num_hash=config.num_hash if lsh else 0,
            fast_hash=int(config.use_fast_hash) if lsh else 0,
            conv_window=config.conv_window or 0,
        )

    def attributes_from(self, values: Mapping[str, Any]) -> YosoAttentionAttributes:
        """The attributes from what a node or a manifest says."""
        return YosoAttentionAttributes(**{name: values[name] for name in ATTRIBUTES})

    def constant_shapes(self, attributes: YosoAttentionAttributes, head_dim: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the constant inputs of a node."""
        return attributes.constant_shapes(head_dim)

    def prepare(self, model: Any, options: Mapping[str, Any]) -> None:
        """Draws the constants of the hash functions, for each layer its own."""
        from mra_export.operators.yoso_attention.reference import draw_hash_constants

        attributes = self.attributes(model.config)
        if attributes.mode != MODES["lsh"]:
            return
        head_dim = model.config.hidden_size // attributes.num_heads
        for layer, (_, module) in enumerate(self.attention_modules(model)):
            drawn = draw_hash_constants(attributes, head_dim, options["seed"], layer)
            module.register_buffer("hash_constants", drawn, persistent=False)

    def constants(self, model: Any) -> list[tuple[Tensor, ...]]:
        """The hash constants in mode lsh, and the weights [num_heads, conv_window] of a convolution."""
        found = []
        for _, module in self.attention_modules(model):
            hashes = getattr(module, "hash_constants", None)
            conv = getattr(module, "conv", None)
            layer = () if hashes is None else (hashes,)
            found.append(layer if conv is None else (*layer, conv.weight.detach().flatten(1)))
        return found

    def attend(
        self, attributes: YosoAttentionAttributes, tensors: Sequence[Tensor], mask: Tensor, choice: Any = None
    ) -> Tensor:
        """The operator by its specification; `choice` is a `yoso_reference.HashCodes`."""
        from mra_export.operators.yoso_attention.reference import yoso_attention

        query, key, value, *constants = tensors
        return yoso_attention(query, key, value, mask, attributes, *_typed(attributes, constants), codes=choice)

    def transformers_setup(self, config: Any, device: str, kernel_sources: Path | None) -> TransformersSetup:
        """Gives it the mask that its attention is to have and, in mode lsh, hash functions: the constants of the file."""
        super().transformers_setup(config, device, kernel_sources)
        if self.attributes(config).mode == MODES["lsh"]:
            return TransformersSetup(
                kernels=lambda: hash_functions(
                    self.attributes(config), config.hidden_size // config.num_attention_heads
                ),
                mended=mended_mask,
                unmended=unmended,
            )
        return TransformersSetup(mended=mended_mask, unmended=unmended)

    def lower(self, model: onnx_ir.Model, nodes: list[onnx_ir.Node], attributes: Any, opset: int) -> None:
        """Leaves the nodes, and adds their function body, which is written for their attributes."""
        import onnx_ir

        from mra_export.operators.yoso_attention.function_body import yoso_function_body

        query = nodes[0].inputs[0]
        assert query is not None
        assert query.shape is not None
        function = yoso_function_body(attributes, int(query.shape[2]) // attributes.num_heads, opset)  # type: ignore[arg-type]
        converted = onnx_ir.serde.deserialize_function(function)
        model.functions[converted.identifier()] = converted

    def judge(
        self, attributes: Sequence[YosoAttentionAttributes], constants: Sequence[tuple[Tensor, ...]] = ()
    ) -> Judge:
        """In mode lsh tells a difference of the hash codes from one of arithmetic."""
        from mra_export.operators.judge import Judge

        if any(each.mode != MODES["lsh"] for each in attributes):
            return Judge(self.attend, attributes, constants)
        from mra_export.operators.yoso_attention.judge import HashJudge

        typed = [_typed(each, layer) for each, layer in zip(attributes, constants, strict=bool(constants))]
        return HashJudge(self.attend, attributes, typed)

    def makes_no_choice(self, attributes: YosoAttentionAttributes, seq_len: int) -> bool:
        """Whether there are no hash codes."""
        return attributes.mode != MODES["lsh"]


def _typed(attributes: YosoAttentionAttributes, constants: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Constants with hash constants in int32, whatever they were read as."""
    import torch

    names = attributes.inputs()[4:]
    return tuple(c.to(torch.int32) if name == "hash_constants" else c for name, c in zip(names, constants, strict=True))


FAMILY = YosoFamily()
