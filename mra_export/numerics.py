"""Measures of agreement between arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mra_export.trace import Array

__all__ = ["cosine", "least", "relative_error", "top1_agreement", "worst"]


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


def worst(values: list[float]) -> float:
    """The largest; NaN if there is one, so that it never passes."""
    return float(np.max(values)) if values else 0.0


def least(values: list[float]) -> float:
    """The smallest; NaN if there is one, so that it never passes."""
    return float(np.min(values)) if values else 1.0
