"""The families of models: what is particular to each is in one module here, and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from mra_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx import FunctionProto
    from torch import Tensor

    from mra_export.op_spec import Mra2AttentionAttributes

__all__ = ["Family", "family_of"]


class Family(Protocol):
    """What the commands need to know of a kind of model."""

    model_type: str
    """`model_type` in `config.json`."""
    operator: tuple[str, str]
    """Domain and type of the node that computes the attention."""

    def validate(self, config: Any) -> None:
        """Raises `InputError` if the configuration is outside what the operator computes."""

    def attributes(self, config: Any) -> Mra2AttentionAttributes:
        """The attributes of every attention node of the model."""

    def attention_modules(self, model: Any) -> list[tuple[str, Any]]:
        """Name and module of every self-attention, first layer first."""

    def replace_attention(self, model: Any, compute: Callable[[int, Tensor, Tensor, Tensor], Tensor]) -> None:
        """Puts in the place of every self-attention its projections followed by `compute(layer, query, key, value)`.

        `query`, `key` and `value` are [batch, seq_len, hidden_size]; so is what `compute` returns.
        """

    def functions(self, opset: int) -> list[FunctionProto]:
        """The function bodies that let a stock runtime run the exported file."""


def family_of(config: Any) -> Family:
    """The family of a configuration.

    Args:
        config: a transformers configuration.

    Raises:
        InputError: it is of no family we know.
    """
    from mra_export.families import mra

    families: dict[str, Family] = {mra.FAMILY.model_type: mra.FAMILY}
    family = families.get(config.model_type)
    if family is None:
        hint = (
            " Its attention can be replaced with `mra-export from-dense`."
            if config.model_type in ("bert", "roberta", "xlm-roberta")
            else ""
        )
        raise InputError(
            f"model_type {config.model_type!r} is not one that this tool exports ({', '.join(families)}).{hint}"
        )
    return family
