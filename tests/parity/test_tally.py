"""Rows that are judged and rows that are not: what is summed up of each, and what is said."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mra_export.operators.judge import TOLERANCES
from mra_export.parity import compare
from mra_export.parity.cases import Case
from mra_export.parity.tally import Tally

IDS = np.arange(9).reshape(3, 3)


def tally(*judged: bool, error: float = 1e-6) -> Tally:
    """Of one case of three rows, each token vector off by `error`."""
    found = Tally(("last_hidden_state",))
    case = Case("three rows", {"input_ids": IDS, "attention_mask": np.ones_like(IDS)})
    expected = np.ones((3, 3, 4))
    outputs = ({"last_hidden_state": expected}, {"last_hidden_state": expected * (1 + error)})
    found.add(case, *outputs, np.array(judged), np.where(judged, 1.0, 0.5))
    return found


def against_model(found: Tally, *, tied: int = 0, choice: str = "blocks") -> Any:
    judge: Any = SimpleNamespace(choice=choice)
    return compare._against_model(judge, "PyTorch", "a file", found, TOLERANCES["fp32"], ["what was said before"], tied)


def test_rows_are_counted_and_only_those_judged_are_measured() -> None:
    metrics = tally(True, False, False).metrics()
    assert (metrics["judged_rows"], metrics["rows"]) == (1.0, 3.0)
    assert metrics["relative_error"] == pytest.approx(1e-6)
    assert metrics["selection_agreement"] == pytest.approx(2 / 3)
    assert tally(False, False, False).metrics()["relative_error"] is None


@pytest.mark.parametrize(
    ("judged", "tied", "said"),
    [
        ((True, False, False), 0, "judged on 1 of 3 rows; in 2 the two choose different blocks in some layer"),
        ((True, False, False), 1, "judged on 1 of 3 rows; in 1 the two choose different blocks in some layer"),
        ((False, False, False), 0, "judged on 0 of 3 rows; in 3 the two choose different blocks in some layer"),
        ((True, False, False), 2, None),  # all the others are ties, of which another note tells
        ((True, True, True), 0, None),
    ],
)
def test_rows_that_were_not_judged_are_counted_in_a_note(judged: tuple[bool, ...], tied: int, said: str | None) -> None:
    comparison = against_model(tally(*judged), tied=tied)
    assert (comparison.metrics["judged_rows"], comparison.metrics["rows"]) == (float(sum(judged)), 3.0)
    assert comparison.ok is (True if any(judged) else None)
    assert comparison.notes[-1] == "what was said before"
    assert len(comparison.notes) == (1 if said is None else 2)
    if said is not None:
        assert comparison.notes[0].startswith(said)
        assert "the comparison on equal blocks below" in comparison.notes[0]


def test_an_error_at_the_limit_passes_and_one_above_does_not() -> None:
    limit = TOLERANCES["fp32"].outputs
    assert against_model(tally(True, True, True, error=limit * 0.99)).ok is True
    assert against_model(tally(True, True, True, error=limit * 1.01)).ok is False
    assert against_model(tally(True, True, True, error=float("nan"))).ok is False


def test_attention_without_a_choice_has_no_agreement() -> None:
    assert against_model(tally(True, True, True), choice="").metrics["selection_agreement"] is None
    assert against_model(tally(True, True, True)).metrics["selection_agreement"] == 1.0


@pytest.mark.parametrize(("longest_exact", "said"), [(3, None), (2, "0 of 3")])
def test_a_candidate_that_shows_no_layers_is_judged_where_there_is_no_choice(
    longest_exact: int, said: str | None
) -> None:
    outputs = {"last_hidden_state": np.ones((3, 3, 4))}
    runner: Any = SimpleNamespace(name="a runner", run=lambda inputs: outputs)
    judge = SimpleNamespace(
        attributes=None,
        tolerance=lambda dtype: TOLERANCES[dtype],
        unseen_note=lambda judged, rows: f"{judged} of {rows}",
    )
    family = SimpleNamespace(
        attributes=lambda config: None,
        judge=lambda attributes: judge,
        makes_no_choice=lambda attributes, seq_len: seq_len <= longest_exact,
    )
    task = SimpleNamespace(outputs=("last_hidden_state",), per_token=True)
    checkpoint: Any = SimpleNamespace(family=family, config=None, task=task)
    cases = [Case("three rows", {"input_ids": IDS, "attention_mask": np.ones_like(IDS)})]
    comparison = compare.compare_outputs(checkpoint, runner, runner, "fp32", cases)
    assert comparison.notes == ([] if said is None else [said])
    assert comparison.ok is (True if said is None else None)
