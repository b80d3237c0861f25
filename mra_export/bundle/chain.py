"""Token vectors to one vector, by the modules of a bundle's manifest: NumPy alone, in float64 and in one order of sums.

Triton's Python models get a copy of this file: it imports nothing of this package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["Step", "vector_of"]

Array = np.ndarray[Any, Any]
Step = tuple[Mapping[str, Any], Mapping[str, Array]]
"""A module as the manifest states it, and its weights by name, float64."""

EPSILON = 1e-5
"""Of torch's LayerNorm."""


def vector_of(states: Array, steps: Sequence[Step], skip: int = 0) -> Array:
    """The vector of one text, as sentence-transformers' modules define it.

    Its bits depend on nothing else: neither on other texts, nor on padding, nor on the number of threads.

    Args:
        states: float32 [tokens, hidden_size], of the text's tokens, without padding.
        steps: the modules in their order, `Pooling` first.
        skip: tokens at the beginning that do not count in the pooling: those of a prompt.

    Returns:
        float32 [dimension]. A pooling for which no token counts gives zeros; "cls" then gives the first token.
    """
    vector = np.asarray(states, np.float64)
    for module, weights in steps:
        kind = module["kind"]
        if kind == "Pooling":
            vector = np.concatenate([_pooled(vector, mode, skip) for mode in module["modes"]])
        elif kind == "Dense":
            linear = _linear(vector, weights["linear.weight"], weights.get("linear.bias"))
            out, beside = _ACTIVATIONS[module["activation"]](linear), weights.get("residual.weight")
            if module["residual"]:
                out = out + (vector if beside is None else _linear(vector, beside, None))
            vector = out
        elif kind == "LayerNorm":
            centred = vector - vector.mean()
            scaled = centred / math.sqrt(float((centred * centred).mean()) + EPSILON)
            vector = scaled * weights["norm.weight"] + weights["norm.bias"]
        elif kind == "Normalize":
            vector = vector / max(float(np.sqrt((vector * vector).sum())), 1e-12)
        elif kind == "Truncate":
            vector = vector[: module["dimension"]]
        else:
            raise ValueError(f"{kind} is no module that can be computed here")
    return vector.astype(np.float32)


def _pooled(states: Array, mode: str, skip: int) -> Array:
    counted = states[skip:]
    if mode == "cls" and len(states):
        return states[skip] if len(counted) else states[0]
    if not len(counted):
        return np.zeros(states.shape[1])
    if mode == "max":
        return np.asarray(counted.max(axis=0))
    if mode == "lasttoken":
        return np.asarray(counted[-1])
    if mode == "mean_sqrt_len_tokens":
        return np.asarray(counted.sum(axis=0) / math.sqrt(len(counted)))
    if mode == "weightedmean":  # a token's weight is its place in the text, the prompt included
        places = np.arange(skip + 1, len(states) + 1, dtype=np.float64)
        return np.asarray((counted * places[:, None]).sum(axis=0) / places.sum())
    return np.asarray(counted.mean(axis=0))


def _linear(vector: Array, weight: Array, bias: Array | None) -> Array:
    # Not `weight @ vector`: BLAS sums in an order that depends on its threads.
    out = np.einsum("oi,i->o", weight, vector)
    return out if bias is None else out + bias


def _sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0.0, -x))


def _gelu(x: Array) -> Array:
    return np.array([0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in x.tolist()])


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0.0),
    "GELU": _gelu,
    "Sigmoid": _sigmoid,
    "SiLU": lambda x: x * _sigmoid(x),
}
