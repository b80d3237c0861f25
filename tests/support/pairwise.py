"""Combinations of parameters: few rows in which every two values of different parameters meet, or all."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

Row = tuple[int, ...]
Pair = tuple[int, int, int, int]  # a parameter and the index of its value, another one and its


def all_pairs(parameters: Mapping[str, Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Rows of one value a parameter, greedily: each row begins with a pair that is missing and takes what adds the most.

    The same rows each time. Every value of every parameter is in some row, also of a single parameter.
    """
    values = list(parameters.values())
    if len(values) < 2:
        return list(itertools.product(*values))
    missing = _pairs([range(len(each)) for each in values])
    rows: list[Row] = []
    while missing:
        # dicts keep their order, which a set of tuples would not promise
        candidates = [_grow(seed, values, missing) for seed in itertools.islice(missing, 20)]
        best = max(candidates, key=lambda row: _gain(row, missing))
        for pair in _pairs([[index] for index in best]):
            missing.pop(pair, None)
        rows.append(best)
    return [tuple(each[index] for each, index in zip(values, row, strict=True)) for row in rows]


def full_product(parameters: Mapping[str, Sequence[Any]], taking_turns: Collection[str] = ()) -> list[tuple[Any, ...]]:
    """Every combination; the values of parameters that are `taking_turns` go round instead, one a row."""
    turns = {name: itertools.cycle(values) for name, values in parameters.items() if name in taking_turns}
    combined = [name for name in parameters if name not in turns]
    rows = []
    for combination in itertools.product(*(parameters[name] for name in combined)):
        row = dict(zip(combined, combination, strict=True)) | {name: next(values) for name, values in turns.items()}
        rows.append(tuple(row[name] for name in parameters))
    return rows


def _pairs(choices: Sequence[Sequence[int]]) -> dict[Pair, None]:
    return {
        (a, i, b, j): None
        for a, b in itertools.combinations(range(len(choices)), 2)
        for i, j in itertools.product(choices[a], choices[b])
    }


def _gain(row: Row, missing: Mapping[Pair, None]) -> int:
    return sum(pair in missing for pair in _pairs([[index] for index in row]))


def _grow(seed: Pair, values: Sequence[Sequence[Any]], missing: Mapping[Pair, None]) -> Row:
    """The row that begins with a pair; the parameters with the most values are chosen first."""
    row = {seed[0]: seed[1], seed[2]: seed[3]}
    for parameter in sorted(range(len(values)), key=lambda number: -len(values[number])):
        if parameter not in row:
            row[parameter] = max(
                range(len(values[parameter])),
                key=lambda index: sum(
                    ((parameter, index, other, chosen) if parameter < other else (other, chosen, parameter, index))
                    in missing
                    for other, chosen in row.items()
                ),
            )
    return tuple(row[parameter] for parameter in range(len(values)))
