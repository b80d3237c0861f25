"""The sweeps' choice of combinations: no pair of values is left out."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise import all_pairs, full_product

SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=5)


@given(SIZES)
@settings(max_examples=60, deadline=None)
def test_every_two_values_meet(sizes: list[int]) -> None:
    parameters = {f"p{number}": [(number, index) for index in range(size)] for number, size in enumerate(sizes)}
    rows = all_pairs(parameters)
    product = set(itertools.product(*parameters.values()))
    assert set(rows) <= product
    assert len(set(rows)) == len(rows)
    for one, other in itertools.combinations(parameters.values(), 2):
        for pair in itertools.product(one, other):
            assert any(set(pair) <= set(row) for row in rows), pair
    assert {value for row in rows for value in row} == {value for each in parameters.values() for value in each}


@pytest.mark.parametrize(("sizes", "most"), [((3, 6, 7, 2, 4), 46), ((2, 2, 2, 2), 6), ((5, 5), 25), ((4,), 4)])
def test_there_are_few_rows(sizes: tuple[int, ...], most: int) -> None:
    """The two largest parameters need as many rows as they have pairs; a product would have 1008 in the first case."""
    parameters: dict[str, Any] = {f"p{number}": range(size) for number, size in enumerate(sizes)}
    assert len(all_pairs(parameters)) <= most


def test_values_may_be_equal_and_need_no_hash() -> None:
    rows = all_pairs({"a": [[1], [1]], "b": [{"x": 1}, {}]})
    assert rows == [([1], {"x": 1}), ([1], {}), ([1], {"x": 1}), ([1], {})]


def test_the_same_rows_each_time() -> None:
    parameters = {"a": "abc", "b": "de", "c": "fghi"}
    assert all_pairs(parameters) == all_pairs(dict(parameters))


def test_all_combinations() -> None:
    parameters = {"a": "xy", "b": [1, 2, 3], "c": "pq"}
    assert full_product(parameters) == list(itertools.product("xy", [1, 2, 3], "pq"))
    assert full_product(parameters, ("b",)) == [("x", 1, "p"), ("x", 2, "q"), ("y", 3, "p"), ("y", 1, "q")]
