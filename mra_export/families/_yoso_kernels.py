"""Makes transformers' own YOSO model run: supplies the primitives of its CUDA module and the mask that it means."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from mra_export.operators.yoso_attention.spec import YosoAttentionAttributes
    from mra_export.trace import Array

__all__ = ["hash_functions", "mended_mask", "unmended"]


def unmended(difference: float) -> str:
    """What transformers' own mask does."""
    return (
        "transformers gives padded tokens the weight of others (its mask becomes 1 for every token). With its own mask its outputs "
        f"at tokens would differ by up to {difference:.1e} (relative) from those judged here, where padding has no weight."
    )


@contextlib.contextmanager
def mended_mask(model: Any, mask: Array) -> Iterator[None]:
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
def hash_functions(attributes: YosoAttentionAttributes, head_dim: int) -> Iterator[str]:
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
    module.forward = forward_with_constants
    try:
        yield "torch"
    finally:
        module.forward = forward
        for name, original in originals.items():
            setattr(modeling_yoso, name, original)
