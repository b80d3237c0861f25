"""Where MRA pays, by the committed benchmarks: how much faster than dense attention a model is; and an example of what is lost."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

__all__ = ["PAYS", "SOURCE", "example_of_loss", "faster_than_dense", "pays_from"]

_FACTS = json.loads((Path(__file__).parents[1] / "data" / "facts.json").read_text(encoding="utf-8"))
SOURCE: str = _FACTS["speed"]["source"]
"""The page that the figures come from."""
PAYS = 1.2
"""How many times as fast as with dense attention a model has to be for its budget to be worth a loss."""


@functools.cache
def _table() -> Mapping[int, Mapping[int, float]]:
    """Tokens -> blocks per row -> times as fast."""
    return {
        int(tokens): {int(blocks): factor for blocks, factor in row.items()}
        for tokens, row in _FACTS["speed"]["tokens, blocks per row"].items()
    }


def pays_from() -> int:
    """Tokens of the shortest text that was measured at which some budget pays."""
    return min(tokens for tokens, row in _table().items() if max(row.values()) >= PAYS)


def faster_than_dense(tokens: int, per_row: float) -> tuple[int, int, float]:
    """The measurement nearest to a length and a budget.

    Args:
        tokens: the length.
        per_row: blocks per row.

    Returns:
        Its tokens, its blocks per row, and how many times as fast as with dense attention the model was.
    """
    nearest = min(_table(), key=lambda each: (abs(each - tokens), each))
    row = _table()[nearest]
    blocks = min(row, key=lambda each: (abs(each - per_row), each))
    return nearest, blocks, row[blocks]


def example_of_loss() -> str:
    """What a model keeps with smaller budgets, as part of a sentence."""
    facts = _FACTS["loss"]
    kept = " and ".join(
        f"{cosine:.3f} with {blocks}" for blocks, cosine in sorted(facts["blocks per row"].items(), reverse=True)
    )
    return f"{facts['what']} keeps a mean cosine of {kept} blocks per row ({facts['source']})"
