"""How far an attention layer is from its specification: one number for each row and head, of what stands at tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mra_export.operators.judge import TOLERANCES, Judge, LayerReport
from mra_export.trace import LayerTrace, Runner

ROWS, TOKENS, HEADS, HEAD_DIM = 2, 5, 3, 4


def judge() -> Judge:
    return Judge(lambda attributes, tensors, mask: tensors[2], [SimpleNamespace(num_heads=HEADS)])


def contexts() -> tuple[torch.Tensor, torch.Tensor]:
    """Ones, and a mask that leaves the last token of the last row out."""
    mask = torch.ones(ROWS, TOKENS, dtype=torch.int32)
    mask[1, 4] = 0
    return torch.ones(ROWS, TOKENS, HEADS * HEAD_DIM), mask


def test_an_error_is_that_of_its_row_and_head() -> None:
    """Each row and head is off by another amount, over all its tokens and all its elements."""
    expected, mask = contexts()
    wanted = torch.tensor([[0.5, 0.0, 0.25], [0.125, 2.0, 1.0]], dtype=torch.float64)
    factors = (1 + wanted).repeat_interleave(HEAD_DIM, dim=1)[:, None]
    errors = judge().head_errors((expected * factors).float(), expected, mask)
    assert torch.equal(errors, wanted)


@pytest.mark.parametrize(("token", "element"), [(0, 0), (0, 3), (4, 0), (2, 2)])
def test_one_wrong_number_counts_wherever_it_stands(token: int, element: int) -> None:
    expected, mask = contexts()
    actual = expected.clone()
    actual[0, token, HEAD_DIM + element] += 1
    wanted = torch.zeros(ROWS, HEADS, dtype=torch.float64)
    wanted[0, 1] = 1 / (TOKENS * HEAD_DIM) ** 0.5
    torch.testing.assert_close(judge().head_errors(actual, expected, mask), wanted, rtol=1e-12, atol=0)


def test_what_stands_at_padding_does_not_count() -> None:
    expected, mask = contexts()
    actual = expected.clone()
    actual[1, 4] = float("nan")
    assert torch.equal(judge().head_errors(actual, expected, mask), torch.zeros(ROWS, HEADS, dtype=torch.float64))


def test_nothing_against_nothing_is_no_error_and_something_is_one() -> None:
    expected, mask = contexts()
    nothing = torch.zeros_like(expected)
    assert torch.equal(judge().head_errors(nothing, nothing, mask), torch.zeros(ROWS, HEADS, dtype=torch.float64))
    assert bool((judge().head_errors(expected, nothing, mask) > 1e20).all())
    assert bool(judge().head_errors(expected * float("nan"), expected, mask).isnan().all())


@pytest.mark.parametrize(("factor", "is_wrong"), [(1.0, False), (1.001, True), (float("nan"), True)])
def test_the_head_that_is_wrong_is_named(factor: float, is_wrong: bool) -> None:
    expected, mask = contexts()
    context = expected.clone()
    context[1, :, 2 * HEAD_DIM :] *= factor
    layer = LayerTrace(*(x.numpy() for x in (expected, expected, expected, context)))
    report = LayerReport("layer.0")
    candidate: Runner = None  # type: ignore[assignment]  # attention without a choice is not experimented with
    assert judge().operator(0, layer, mask, candidate, TOLERANCES["fp32"], report) is None
    assert (report.problem is not None) is is_wrong
    if report.problem is not None:
        assert report.problem.startswith("arithmetic of the attention (head 2: relative error ")
        assert f"tolerance {TOLERANCES['fp32'].operator:.1e}" in report.problem
    expected_error = {1.0: 0.0, 1.001: 1e-3}.get(factor, np.nan)
    np.testing.assert_allclose(report.operator_error, expected_error, rtol=1e-3)


def test_attention_without_a_choice_has_the_same_and_shares_nothing() -> None:
    plain = judge()
    mask = torch.ones(3, 2)
    layer: LayerTrace = None  # type: ignore[assignment]
    same, tied = plain.same(0, layer, None, mask)
    assert (same.tolist(), tied.tolist()) == ([True] * 3, [False] * 3)
    assert plain.overlap(0, layer, None, mask, LayerReport("x")) == (0, 0)
    assert plain.rows_of(None, slice(0, 1)) is None
    assert (plain.choice, plain.specification, plain.tolerance("bf16")) == ("", "specification", TOLERANCES["bf16"])
    for note in (lambda: plain.tie_note(1), lambda: plain.unseen_note(1, 2)):
        with pytest.raises(NotImplementedError):
            note()


def test_attributes_and_constants_are_those_of_the_layer() -> None:
    taken: list[list[float]] = []

    def attend(attributes: Any, tensors: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        taken.append([attributes.of, *(float(each.flatten()[0]) for each in tensors)])
        return tensors[2]

    constants = [(torch.tensor(5.0),), (torch.tensor(6.0), torch.tensor(7.0))]
    made = Judge(attend, [SimpleNamespace(num_heads=1, of=layer) for layer in (0, 1)], constants)
    layer = LayerTrace(*(np.full((1, 1, 1), number, np.float32) for number in (1, 2, 3, 3)))
    for index in (0, 1):
        candidate: Runner = None  # type: ignore[assignment]
        made.operator(index, layer, torch.ones(1, 1), candidate, TOLERANCES["fp32"], LayerReport("x"))
    assert taken == [[0, 1.0, 2.0, 3.0, 5.0], [1, 1.0, 2.0, 3.0, 6.0, 7.0]]


def test_the_first_problem_stays_and_the_largest_error_too() -> None:
    report, limit = LayerReport("layer.0"), TOLERANCES["fp32"]
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    judge().note_error(torch.tensor([[0.0, 0.5, 0.25]]), nothing[:1], "arithmetic", limit, report)
    assert (report.problem, report.operator_error) == (None, 0.5)
    bad = nothing.clone()
    bad[1, 2] = True
    judge().note_error(torch.full((2, 3), 0.125), bad, "selection", limit, report)
    first = "selection of the attention (head 2: relative error 1.2e-01 on equal inputs, tolerance 2.0e-05)"
    assert (report.problem, report.operator_error) == (first, 0.5)
    judge().note_error(torch.full((2, 3), 2.0), ~nothing, "arithmetic", limit, report)
    assert (report.problem, report.operator_error) == (first, 2.0)
