"""YOSO (Zeng et al., 2021): `YosoModel` and its heads, with the expectation of the hashing or with the hashing itself."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from mra_export.errors import InputError
from mra_export.families import Family, Option, TransformersSetup
from mra_export.operators.limits import OP_DOMAIN, OP_VERSION
from mra_export.operators.yoso_attention.function_body import MIN_OPSET
from mra_export.operators.yoso_attention.spec import ATTRIBUTES, MODES, OP_TYPE, YosoAttentionAttributes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import onnx_ir
    from torch import Tensor

    from mra_export.operators.judge import Judge
    from mra_export.trace import Array

__all__ = ["FAMILY", "YosoFamily"]

MAX_SEED = 2**32 - 1


def _check_seed(seed: int) -> None:
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"option seed={seed} must be between 0 and {MAX_SEED}.")


class YosoFamily(Family):
    """`mra_export.families.Family` for `model_type` "yoso"."""

    model_type = "yoso"
    title = "YOSO"
    operator = (OP_DOMAIN, OP_TYPE)
    operator_version = OP_VERSION
    plugin = OP_TYPE
    min_opset = MIN_OPSET
    options = {  # noqa: RUF012  (typed as a Mapping in Family)
        "seed": Option(0, "of the hash functions' random numbers, where use_expectation is false", _check_seed)
    }

    def validate(self, config: Any) -> None:
        """Raises `InputError` if the configuration is outside what the operator computes."""
        from mra_export.operators.yoso_attention.reference import validate_attributes

        heads, hidden = config.num_attention_heads, config.hidden_size
        if heads < 1 or hidden < 1 or hidden % heads:
            raise InputError(
                f"hidden_size={hidden} must be a positive multiple of num_attention_heads={heads}. Check config.json."
            )
        if config.num_hidden_layers < 1:
            raise InputError(f"num_hidden_layers={config.num_hidden_layers} must be at least 1. Check config.json.")
        if not config.layer_norm_eps > 0:
            raise InputError(f"layer_norm_eps={config.layer_norm_eps} must be positive. Check config.json.")
        if config.max_position_embeddings < 1:
            raise InputError(
                f"max_position_embeddings={config.max_position_embeddings} must be at least 1. Check config.json."
            )
        if config.conv_window == 0:
            raise InputError("conv_window=0 must be odd, or null for no convolution. Check config.json.")
        validate_attributes(self.attributes(config), hidden // heads)
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

    def attention_modules(self, model: Any) -> list[tuple[str, Any]]:
        """Name and module of every self-attention, first layer first."""
        return [(f"layer.{i}", layer.attention.self) for i, layer in enumerate(model.base_model.encoder.layer)]

    def replace_attention(self, model: Any, compute: Callable[..., Tensor]) -> None:
        """Puts in the place of every self-attention its projections followed by `compute(layer, query, key, value, *constants)`."""
        import torch
        from torch import nn

        constants = self.constants(model)

        class Attention(nn.Module):
            def __init__(self, original: Any, index: int) -> None:
                super().__init__()
                self.query, self.key, self.value = original.query, original.key, original.value
                self.index = index
                for number, constant in enumerate(constants[index]):
                    self.register_buffer(f"constant_{number}", constant, persistent=False)

            def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
                projected = (self.query(hidden_states), self.key(hidden_states), self.value(hidden_states))
                added = [getattr(self, f"constant_{number}") for number in range(len(constants[self.index]))]
                return (compute(self.index, *projected, *added),)

        with torch.no_grad():
            for index, layer in enumerate(model.base_model.encoder.layer):
                layer.attention.self = Attention(layer.attention.self, index)

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
                kernels=lambda: _hash_functions(
                    self.attributes(config), config.hidden_size // config.num_attention_heads
                ),
                mended=_mended_mask,
                unmended=_unmended,
            )
        return TransformersSetup(mended=_mended_mask, unmended=_unmended)

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

    def judge(self, attributes: YosoAttentionAttributes, constants: Sequence[tuple[Tensor, ...]] = ()) -> Judge:
        """In mode lsh tells a difference of the hash codes from one of arithmetic."""
        from mra_export.operators.judge import Judge

        if attributes.mode != MODES["lsh"]:
            return Judge(self.attend, attributes, constants)
        from mra_export.operators.yoso_attention.judge import HashJudge

        return HashJudge(self.attend, attributes, [_typed(attributes, layer) for layer in constants])

    def makes_no_choice(self, attributes: YosoAttentionAttributes, seq_len: int) -> bool:
        """Whether there are no hash codes."""
        return attributes.mode != MODES["lsh"]


def _typed(attributes: YosoAttentionAttributes, constants: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Constants with hash constants in int32, whatever they were read as."""
    import torch

    names = attributes.inputs()[4:]
    return tuple(c.to(torch.int32) if name == "hash_constants" else c for name, c in zip(names, constants, strict=True))


def _unmended(difference: float) -> str:
    """What transformers' own mask does."""
    return (
        "transformers gives padded tokens the weight of others (its mask becomes 1 for every token). With its own mask its outputs "
        f"at tokens would differ by up to {difference:.1e} (relative) from those judged here, where padding has no weight."
    )


@contextlib.contextmanager
def _mended_mask(model: Any, mask: Array) -> Iterator[None]:
    """Gives the attention of transformers' model the mask of 0 and 1 in the place of the one that it makes of it."""
    import torch
    from transformers.models.yoso import modeling_yoso

    heads = model.config.num_attention_heads
    right = torch.from_numpy(mask != 0).int().to(model.device).repeat_interleave(heads, dim=0)
    names = ("YosoCumulation", "YosoLSHCumulation")
    originals = {name: getattr(modeling_yoso, name) for name in names}

    class Masked:
        def __init__(self, original: Any) -> None:
            self.original = original

        def apply(self, query_mask: Tensor, key_mask: Tensor, *rest: Any) -> Tensor:
            return self.original.apply(right, right, *rest)

    for name, original in originals.items():
        setattr(modeling_yoso, name, Masked(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(modeling_yoso, name, original)


@contextlib.contextmanager
def _hash_functions(attributes: YosoAttentionAttributes, head_dim: int) -> Iterator[str]:
    """Supplies the primitives of transformers' CUDA kernels, with the constants of each layer; yields "torch".

    `fast_hash` and `lsh_cumulation` have the arguments of the original extension (mlpen/YOSO); `hashing`, which returns the key's
    codes for both, is replaced with what it is meant to be.
    """
    import torch
    from transformers.models.yoso import modeling_yoso

    from mra_export.operators.yoso_attention.reference import hash_codes

    heads = attributes.num_heads
    current: list[Tensor] = []  # the constants of the layer that is running

    def codes(x: Tensor) -> Tensor:
        """[batch * heads, seq_len, head_dim or more] -> int32 [batch * heads, seq_len, num_hash]."""
        flat = x[..., :head_dim].unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)
        return hash_codes(flat, attributes, current[0].to(x.device)).flatten(0, 1).transpose(1, 2).int()

    class Functions:
        @staticmethod
        def fast_hash(
            query_mask: Tensor, query: Tensor, key_mask: Tensor, key: Tensor, *_: Any
        ) -> tuple[Tensor, Tensor]:
            return codes(query), codes(key)

        @staticmethod
        def lsh_cumulation(
            query_mask: Tensor,
            query_code: Tensor,
            key_mask: Tensor,
            key_code: Tensor,
            value: Tensor,
            capacity: int,
            *_: Any,
        ) -> Tensor:
            """The mean over the hashes of the sums of a bucket, table by table."""
            total = torch.zeros_like(value)
            kept = value * key_mask[:, :, None]
            for number in range(query_code.shape[2]):
                table = value.new_zeros((value.shape[0], capacity, value.shape[2]))
                table.scatter_add_(1, key_code[:, :, number, None].long().expand_as(value), kept)
                total += table.gather(1, query_code[:, :, number, None].long().expand_as(value))
            return total / query_code.shape[2] * query_mask[:, :, None]

    def hashing(query: Tensor, key: Tensor, num_hash: int, hash_len: int) -> tuple[Tensor, Tensor]:
        return codes(query), codes(key)

    originals = {name: getattr(modeling_yoso, name) for name in ("lsh_cumulation", "hashing")}
    module = modeling_yoso.YosoSelfAttention
    forward = module.forward

    def forward_with_constants(self: Any, *arguments: Any, **named: Any) -> Any:
        current[:] = [self.hash_constants]
        return forward(self, *arguments, **named)

    setattr(modeling_yoso, "lsh_cumulation", Functions)  # noqa: B010  (typed as None there)
    modeling_yoso.hashing = hashing
    module.forward = forward_with_constants  # type: ignore[method-assign]
    try:
        yield "torch"
    finally:
        module.forward = forward  # type: ignore[method-assign]
        for name, original in originals.items():
            setattr(modeling_yoso, name, original)


FAMILY = YosoFamily()
