"""Measures of agreement, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mra_export.numerics import cosine, least, neighbour_overlap, relative_error, top1_agreement, worst


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


def test_neighbours_that_stay_are_counted_row_by_row() -> None:
    angles, moved = np.array([0.0, 0.1, 0.25, 1.0, 1.2]), np.array([0.0, 0.1, 0.9, 1.0, 1.2])
    before, after = (np.stack([np.cos(each), np.sin(each)], axis=1) * 3 for each in (angles, moved))
    # Nearest: 1 0 1 4 3, and then 1 0 3 2 3. Of the two nearest only those of row 2 change: 1 and 0, and then 3 and 4.
    assert neighbour_overlap(before, after, [1, 2]) == {1: pytest.approx(0.6), 2: pytest.approx(0.8)}
    assert neighbour_overlap(before, before * 2, [1, 4]) == {1: 1.0, 4: 1.0}


def test_neighbours_of_many_rows() -> None:
    """More than are looked at together: against all at once."""
    generator = np.random.default_rng(0)
    before = generator.normal(size=(1100, 4))
    after = before + 0.1 * generator.normal(size=before.shape)
    nearest = []
    for rows in (before, after):
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        near = unit @ unit.T - 3 * np.eye(len(rows))
        nearest.append(near.argsort(axis=1)[:, ::-1][:, :3])
    expected = np.mean([len(set(a) & set(b)) / 3 for a, b in zip(*nearest, strict=True)])
    assert neighbour_overlap(before, after, [3])[3] == pytest.approx(expected)
