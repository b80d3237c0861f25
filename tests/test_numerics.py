"""Measures of agreement, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mra_export.numerics import cosine, least, relative_error, top1_agreement, worst


def test_the_relative_error_is_over_the_norm_of_what_was_expected() -> None:
    expected = np.array([[3.0, 0.0], [0.0, 4.0]], np.float32)
    assert relative_error(expected, expected) == 0.0
    assert relative_error(expected + np.array([[0.0, 1.0], [0.0, 0.0]], np.float32), expected) == pytest.approx(0.2)
    assert relative_error(np.zeros(1), np.zeros(1)) == 0.0
    assert relative_error(np.array([2.0]), np.zeros(1)) == pytest.approx(2e30)
    assert math.isnan(relative_error(np.array([np.nan]), np.ones(1)))
    assert relative_error(np.full(4, 60000, np.float16), np.full(4, 30000, np.float16)) == pytest.approx(1.0)


def test_the_cosine_is_that_of_the_angle() -> None:
    assert cosine(np.array([2.0, 0.0]), np.array([3.0, 3.0])) == pytest.approx(math.sqrt(0.5))
    assert cosine(np.array([0.5, 0.0]), np.array([-0.25, 0.0])) == -1.0
    assert cosine(np.zeros(2), np.ones(2)) == 0.0
    assert cosine(np.array([1e-10]), np.array([1e-10])) == 1.0


def test_equal_labels_are_counted_along_the_last_axis() -> None:
    want = np.array([[1.0, 3.0, 2.0], [0.0, 1.0, 5.0], [6.0, 1.0, 5.0], [6.0, 9.0, 5.0]])
    got = np.array([[0.0, 9.0, 1.0], [7.0, 0.0, 1.0], [7.0, 9.0, 1.0], [0.0, 1.0, 0.5]])
    assert top1_agreement(want, got) == 0.5
    assert top1_agreement(want[0], got[0]) == 1.0


def test_what_is_not_a_number_is_the_worst_and_the_least() -> None:
    assert (worst([0.5, 2.0, 1.0]), least([0.5, 2.0, 1.0])) == (2.0, 0.5)
    assert (worst([]), least([])) == (0.0, 1.0)
    assert math.isnan(worst([0.5, math.nan, 1.0]))
    assert math.isnan(least([0.5, math.nan, 1.0]))
