"""How hash codes are compared: at tokens alone, of queries and of keys."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from yoso_cases import LSH, draw

from mra_export.operators.judge import TOLERANCES, LayerReport
from mra_export.operators.yoso_attention.judge import HashJudge
from mra_export.operators.yoso_attention.reference import HashCodes, yoso_attention
from mra_export.trace import LayerTrace

ROWS, TOKENS, HEAD_DIM = 3, 6, 8
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 0, 1, 0, 0, 0]])
TENSORS = [x.float() if x.is_floating_point() else x for x in draw(0, LSH, HEAD_DIM, TOKENS, ROWS)]


def judge() -> HashJudge:
    """Of two layers; the second has the constants."""
    return HashJudge(
        lambda attributes, given, mask: yoso_attention(*given[:3], mask, attributes, *given[3:]),
        [LSH, LSH],
        [(), (TENSORS[3],)],
    )


def layer(context: torch.Tensor | None = None) -> LayerTrace:
    made = yoso_attention(*TENSORS[:3], MASK, LSH, TENSORS[3]) if context is None else context
    return LayerTrace(*(x.numpy() for x in (*TENSORS[:3], made)))


def codes() -> HashCodes:
    report, nobody = LayerReport("layer.1"), None
    made = judge().operator(1, layer(), MASK, nobody, TOLERANCES["fp32"], report)  # type: ignore[arg-type]
    assert (report.problem, report.operator_error < 1e-6) == (None, True)
    return made


def changed(part: str, row: int, token: int, head: int = 1, number: int = 3) -> HashCodes:
    found = HashCodes(*(x.clone() for x in codes()))
    getattr(found, part)[row, head, number, token] += 1
    return found


def test_the_codes_of_a_layer_are_those_of_its_inputs() -> None:
    found = codes()
    assert found.query.shape == found.key.shape == (ROWS, 2, 16, TOKENS)
    assert not torch.equal(found.query, found.key)
    same, tied = judge().same(1, layer(), found, MASK)
    assert (same.tolist(), tied.tolist()) == ([True] * ROWS, [False] * ROWS)
    total = 2 * (6 + 4 + 2) * 2 * 16
    assert judge().overlap(1, layer(), found, MASK, LayerReport("x")) == (total, total)


@pytest.mark.parametrize("part", ["query", "key"])
@pytest.mark.parametrize(
    ("row", "token", "counts"), [(0, 5, True), (1, 4, False), (1, 3, True), (2, 2, True), (2, 1, False)]
)
def test_a_code_at_a_token_counts_and_at_padding_does_not(part: str, row: int, token: int, counts: bool) -> None:
    found = changed(part, row, token)
    same, _ = judge().same(1, layer(), found, MASK)
    assert same.tolist() == [not (counts and each == row) for each in range(ROWS)]
    ours, total = judge().overlap(1, layer(), found, MASK, LayerReport("x"))
    assert (total - ours, total) == (int(counts), 768)


def test_the_codes_of_some_rows() -> None:
    found = codes()
    part = judge().rows_of(found, slice(1, 3))
    assert torch.equal(part.query, found.query[1:3])
    assert torch.equal(part.key, found.key[1:3])


def test_wrong_arithmetic_is_named() -> None:
    context = torch.from_numpy(layer().context).clone()
    context[1, 2, HEAD_DIM:] *= 1.5
    report, nobody = LayerReport("layer.1"), None
    judge().operator(1, layer(context), MASK, nobody, TOLERANCES["fp32"], report)  # type: ignore[arg-type]
    assert report.problem is not None
    assert report.problem.startswith("arithmetic of the attention (head 1: relative error ")


def test_what_is_said_of_codes() -> None:
    made: Any = judge()
    assert made.specification == "specification, same hash codes"
    assert made.unseen_note(2, 9).startswith("judged on 2 of 9 rows: hash codes cannot be seen from outside")
    assert made.tolerance("fp16") == TOLERANCES["fp16"]
    assert np.isfinite(dataclasses.astuple(made.tolerance("bf16"))).all()
