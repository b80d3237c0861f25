"""Budgets of single layers: what config.json says of each layer under a key of our own, which transformers passes over."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mra_export.errors import InputError
from mra_export.operators.limits import MAX_SEQ_LEN
from mra_export.operators.mra2_attention.spec import BLOCK_SIZE
from mra_export.schema import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes

__all__ = ["BUDGET_FIELDS", "BUDGET_KEY", "as_stated", "check_budgets", "with_budgets"]

BUDGET_KEY = "mra_export"
"""In config.json: an object of `BUDGET_FIELDS`, each a list with a number for each layer, first layer first."""
BUDGET_FIELDS = ("num_blocks", "initial_prior_first_n_blocks", "initial_prior_diagonal_n_blocks")
"""The attributes that layers may have of their own. A field that is left out is for all layers what config.json says without it."""


def check_budgets(config: Any) -> None:
    """Refuses budgets of single layers that are not of this model, or beyond what there is.

    Args:
        config: a transformers configuration, or anything else with the settings of config.json.

    Raises:
        InputError: the message names the field, the layer and the limit.
    """
    stated = getattr(config, BUDGET_KEY, None)
    if stated is None:
        return
    if not isinstance(stated, dict):
        raise InputError(
            f"{BUDGET_KEY}={shown(stated)} must be an object with the budgets of single layers. Mend config.json, or take the key "
            "away: then all layers have the budget of block_per_row."
        )
    layers = config.num_hidden_layers
    blocks = -(-config.max_position_embeddings // BLOCK_SIZE)
    for name, values in stated.items():
        if name not in BUDGET_FIELDS:
            raise InputError(
                f"{BUDGET_KEY}.{name} is not known here; {', '.join(BUDGET_FIELDS)} are. Take it away, or install the mra-export "
                "that wrote this config.json."
            )
        if not isinstance(values, list) or len(values) != layers:
            raise InputError(
                f"{BUDGET_KEY}.{name}={shown(values)} must be a list of {layers} integers, one for each of the layers "
                "(num_hidden_layers). Mend config.json."
            )
        least, most = (1, blocks * blocks) if name == "num_blocks" else (0, MAX_SEQ_LEN)
        for layer, value in enumerate(values):
            if not isinstance(value, int) or isinstance(value, bool):
                raise InputError(
                    f"{BUDGET_KEY}.{name}={shown(value)} of layer {layer} must be an integer. Mend config.json."
                )
            if not least <= value <= most:
                of_all = f", all blocks of {config.max_position_embeddings} tokens" if name == "num_blocks" else ""
                raise InputError(
                    f"{BUDGET_KEY}.{name}={value} of layer {layer} must be between {least} and {most}{of_all}. "
                    "Mend config.json."
                )


def with_budgets(config: Any, common: Mra2AttentionAttributes) -> list[Mra2AttentionAttributes]:
    """The attributes of each layer.

    Args:
        config: as `check_budgets`, which has passed.
        common: what config.json says for all layers.
    """
    stated = getattr(config, BUDGET_KEY, None) or {}
    return [
        replace(common, **{name: values[layer] for name, values in stated.items()})
        for layer in range(config.num_hidden_layers)
    ]


def as_stated(attributes: Sequence[Mra2AttentionAttributes]) -> dict[str, list[int]]:
    """What stands under `BUDGET_KEY` for the attributes of each layer."""
    return {name: [getattr(each, name) for each in attributes] for name in BUDGET_FIELDS}
