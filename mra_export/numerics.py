"""Measures of agreement between arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mra_export.trace import Array

__all__ = ["cosine", "least", "neighbour_overlap", "relative_error", "top1_agreement", "worst"]


def relative_error(actual: Array, expected: Array) -> float:
    """Norm of the difference over that of what was expected (Frobenius), in float64."""
    difference = np.linalg.norm(actual.astype(np.float64).ravel() - expected.astype(np.float64).ravel())
    return float(difference / max(float(np.linalg.norm(expected.astype(np.float64).ravel())), 1e-30))


def cosine(a: Array, b: Array) -> float:
    """Of the angle between two vectors."""
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))


def top1_agreement(want: Array, got: Array) -> float:
    """Share of equal argmax: over labels, or over positions and choices where there is only one axis."""
    return float(np.mean(want.argmax(-1) == got.argmax(-1)))


def neighbour_overlap(expected: Array, actual: Array, counts: Sequence[int]) -> dict[int, float]:
    """The share of each row's nearest neighbours that stay among them.

    Args:
        expected: [rows, width]; neighbours are by the angle, and of equal ones the first.
        actual: the same rows otherwise, [rows, any width].
        counts: of the neighbours that are looked at, each less than there are rows.

    Returns:
        Count -> mean over the rows.
    """
    most, at_once = max(counts), 1024
    shared = dict.fromkeys(counts, 0)
    unit = [rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30) for rows in (expected, actual)]
    for first in range(0, len(expected), at_once):
        nearest = []
        for rows in unit:
            near = rows[first : first + at_once] @ rows.T
            near[np.arange(len(near)), first + np.arange(len(near))] = -np.inf
            nearest.append(np.argsort(-near, axis=1, kind="stable")[:, :most])
        for a, b in zip(*(each.tolist() for each in nearest), strict=True):
            for count in counts:
                shared[count] += len({*a[:count]} & {*b[:count]})
    return {count: shared[count] / (count * len(expected)) for count in counts}


def worst(values: list[float]) -> float:
    """The largest; NaN if there is one, so that it never passes."""
    return float(np.max(values)) if values else 0.0


def least(values: list[float]) -> float:
    """The smallest; NaN if there is one, so that it never passes."""
    return float(np.min(values)) if values else 1.0
