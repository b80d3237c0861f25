"""Rows that are judged and rows that are not: what is summed up of each, and what is said."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mra_export.operators.judge import TOLERANCES, Judge, LayerReport
from mra_export.parity import compare
from mra_export.parity.cases import Case
from mra_export.parity.comparison import Comparison
from mra_export.parity.tally import Tally
from mra_export.trace import Inputs, LayerTrace, Trace

IDS = np.arange(12).reshape(3, 4)


def tally(*judged: bool, error: float = 1e-6) -> Tally:
    """Of one case of three rows, each token vector off by `error`."""
    found = Tally(("last_hidden_state",))
    case = Case("three rows", {"input_ids": IDS, "attention_mask": np.ones_like(IDS)})
    expected = np.ones((3, 4, 2))
    outputs = ({"last_hidden_state": expected}, {"last_hidden_state": expected * (1 + error)})
    found.add(case, *outputs, np.array(judged), np.where(judged, 1.0, 0.5))
    return found


def against_model(found: Tally, *, tied: int = 0, choice: str = "blocks") -> Any:
    judge: Any = SimpleNamespace(choice=choice)
    return compare._against_model(judge, "PyTorch", "a file", found, TOLERANCES["fp32"], ["what was said before"], tied)


def test_rows_are_counted_and_only_those_judged_are_measured() -> None:
    metrics = tally(True, False, False).metrics()
    assert metrics["max_abs_error"] == pytest.approx(1e-6)
    assert tally(False, False, False).metrics()["max_abs_error"] is None
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


def test_cosines_and_labels_are_of_every_row_and_the_largest_error_of_those_judged() -> None:
    """Padding counts nowhere; a label's place is the last axis."""
    found = Tally(("last_hidden_state",))
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    case = Case("padded", {"input_ids": np.zeros((2, 3)), "attention_mask": mask})
    expected = np.array([[[3.0, 0], [1, 4], [7, 7]], [[0, 2], [7, 7], [7, 7]]])
    actual = np.array([[[3.0, 0], [1, 3], [9, 0]], [[0, -2], [0, 9], [0, 9]]])
    logits = (np.array([[1.0, 2], [3, 4]]), np.array([[1.0, 2], [4, 3]]))
    found.add(
        case,
        {"last_hidden_state": expected, "logits": logits[0]},
        {"last_hidden_state": actual, "logits": logits[1]},
        np.array([True, False]),
        np.array([1.0, 0.5]),
    )
    (report,) = found.cases
    assert (report.name, report.seq_len, report.judged_rows, report.rows) == ("padded", 3, 1, 2)
    assert report.relative_error == pytest.approx(1 / 26**0.5)
    assert report.max_abs_error == 1.0
    assert report.cosine_min == -1.0  # of the row that was not judged
    assert report.selection_agreement == 0.75
    again = Case("one token", {"input_ids": np.zeros((1, 1)), "attention_mask": np.ones((1, 1))})
    logits = (np.array([[1.0, 2]]), np.array([[1.0, 2]]))
    states = (np.array([[[3.0, 0]]]), np.array([[[3.0, 3]]]))
    found.add(
        again,
        {"last_hidden_state": states[0], "logits": logits[0]},
        {"last_hidden_state": states[1], "logits": logits[1]},
        np.array([True]),
        np.array([0.25]),
    )
    means = (2 * 2 + 2 * 1.5) / (8 * (4 + 2.25)) ** 0.5  # of [2, 2] and [2, 1.5]
    metrics = found.metrics()
    assert metrics["relative_error"] == pytest.approx(1.0)
    assert metrics["max_abs_error"] == 3.0
    assert metrics["cosine_min"] == -1.0
    assert metrics["cosine_mean"] == pytest.approx((means - 1 + 0.5**0.5) / 3)
    assert metrics["top1_agreement"] == pytest.approx(2 / 3)
    assert metrics["selection_agreement"] == 0.5
    assert (metrics["judged_rows"], metrics["rows"]) == (2.0, 3.0)


def test_the_embedding_is_what_a_cosine_is_of() -> None:
    found = Tally(("last_hidden_state",))
    case = Case("one", {"input_ids": np.zeros((1, 1)), "attention_mask": np.ones((1, 1))})
    states, vectors = np.array([[[1.0, 0]]]), np.array([[0.0, 1]])
    found.add(
        case,
        {"last_hidden_state": states, "sentence_embedding": vectors},
        {"last_hidden_state": -states, "sentence_embedding": vectors},
        np.array([True]),
        np.ones(1),
    )
    assert found.metrics()["cosine_min"] == 1.0
    assert found.metrics()["top1_agreement"] is None


def test_an_error_at_the_limit_passes_and_one_above_does_not() -> None:
    limit = TOLERANCES["fp32"].outputs
    assert against_model(tally(True, True, True, error=limit * 0.99)).ok is True
    assert against_model(tally(True, True, True, error=limit * 1.01)).ok is False
    assert against_model(tally(True, True, True, error=float("nan"))).ok is False


def test_attention_without_a_choice_has_no_agreement() -> None:
    assert against_model(tally(True, True, True), choice="").metrics["selection_agreement"] is None
    assert against_model(tally(True, True, True)).metrics["selection_agreement"] == 1.0


@pytest.mark.parametrize(("longest_exact", "said"), [(4, None), (3, "0 of 3")])
def test_a_candidate_that_shows_no_layers_is_judged_where_there_is_no_choice(
    longest_exact: int, said: str | None
) -> None:
    outputs = {"last_hidden_state": np.ones((3, 4, 2))}
    runner: Any = SimpleNamespace(name="a runner", run=lambda inputs: outputs)
    judge = SimpleNamespace(
        attributes=[None],
        tolerance=lambda dtype: TOLERANCES[dtype],
        unseen_note=lambda judged, rows: f"{judged} of {rows}",
    )
    family = SimpleNamespace(
        layer_attributes=lambda config: [None],
        judge=lambda attributes: judge,
        makes_no_choice=lambda attributes, seq_len: seq_len <= longest_exact,
    )
    task = SimpleNamespace(outputs=("last_hidden_state",), per_token=True)
    checkpoint: Any = SimpleNamespace(family=family, config=None, task=task)
    cases = [Case("three rows", {"input_ids": IDS, "attention_mask": np.ones_like(IDS)})]
    comparison = compare.compare_outputs(checkpoint, runner, runner, "fp32", cases)
    assert comparison.notes == ([] if said is None else [said])
    assert comparison.ok is (True if said is None else None)


LIMITS = TOLERANCES["fp32"]
MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]])


class Chooser(Judge):
    """Attention that chooses numbers; the first query of a row says which, and a negative one is a tie."""

    choice = "numbers"

    def __init__(self) -> None:
        super().__init__(lambda *_: torch.zeros(0), None)

    def operator(self, index: int, layer: LayerTrace, mask: torch.Tensor, *rest: Any) -> Any:
        report = rest[-1]
        report.operator_error = max(report.operator_error, float(layer.context.max()))
        if report.operator_error > rest[-2].operator and report.problem is None:
            report.problem = f"wrong by {report.operator_error:g}"
        return layer.query[:, 0, 0]

    def same(self, index: int, layer: LayerTrace, choice: Any, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        own = layer.query[:, 0, 0]
        return torch.from_numpy(np.abs(own) == np.abs(choice)), torch.from_numpy(own < 0)

    def rows_of(self, choice: Any, rows: slice) -> Any:
        return choice[rows]

    def overlap(
        self, index: int, layer: LayerTrace, choice: Any, mask: torch.Tensor, report: LayerReport
    ) -> tuple[int, int]:
        return int((np.abs(layer.query[:, 0, 0]) == np.abs(choice)).sum()), len(choice)

    def tie_note(self, rows: int) -> str:
        return f"{rows} tied"


def layer(*chosen: float, error: float = 0.0, value: float = 1.0) -> LayerTrace:
    """A layer of three rows that choose these numbers; what is at padding is not a number."""
    tensors = [np.full((3, 4, 1), value) for _ in range(4)]
    tensors[0][:, :, 0] = np.array(chosen)[:, None]
    tensors[3][:] = error
    for tensor in tensors[:3]:
        tensor[MASK == 0] = np.nan
    return LayerTrace(*tensors)


class Shown:
    """A runner with outputs of 3 rows by 4 tokens and layers as given; a row alone is a row of the same."""

    def __init__(self, name: str, outputs: np.ndarray[Any, Any], *layers: LayerTrace) -> None:
        self.name, self.outputs, self.layers = name, outputs, layers
        self.choices: Any = None
        self.taken: list[Any] = []
        self.alone: dict[int, Trace] = {}

    def trace(self, inputs: Inputs) -> Trace:
        self.taken.append(self.choices)
        if len(inputs["input_ids"]) == 1:
            return self.alone[int(inputs["input_ids"][0, 0]) // 4]
        return Trace({"last_hidden_state": self.outputs}, list(self.layers))


def states(*factors: float) -> np.ndarray[Any, Any]:
    """Of three rows of 4 tokens with 2 numbers; not a number at padding."""
    found = np.ones((3, 4, 2)) * np.array(factors)[:, None, None]
    found[MASK == 0] = np.nan
    return found


def candidate_checked(
    candidate: Shown, reference: Shown, specification: Shown, *, alone: bool = False, judge: type[Judge] = Chooser
) -> list[Comparison]:
    rows: tuple[Inputs, ...] = ()
    if alone:
        rows = tuple({"input_ids": IDS[i : i + 1], "attention_mask": MASK[i : i + 1]} for i in range(3))
    case = Case("three rows", {"input_ids": IDS, "attention_mask": MASK}, rows)
    family = SimpleNamespace(
        judge=lambda attributes, constants: judge(),
        layer_attributes=lambda config: [None],
        constants=lambda model: (),
        attention_modules=lambda model: [("layer.0", None), ("layer.1", None)],
    )
    task = SimpleNamespace(outputs=("last_hidden_state",), per_token=True)
    checkpoint: Any = SimpleNamespace(family=family, config=None, model=None, task=task)
    said: list[str] = []
    spec: Any = specification
    found = compare.check_candidate(
        checkpoint, reference, candidate, "fp32", [case], specification=spec, progress=said.append
    )
    assert said == ["three rows"]
    assert specification.choices is None
    return found


def three(name: str = "right", error: float = 0.0) -> Shown:
    return Shown(name, states(1, 1, 1), layer(1, 2, 3, error=error), layer(4, 5, 6, error=error))


def test_the_same_model_passes() -> None:
    specification = three("specification")
    model, forced = candidate_checked(three("a file"), three("PyTorch"), specification)
    assert [each.tolist() for each in specification.taken[0]] == [[1, 2, 3], [4, 5, 6]]
    assert (model.reference, model.candidate, model.ok, model.notes) == ("PyTorch", "a file", True, [])
    assert (forced.reference, forced.ok, forced.notes) == ("specification, same numbers", True, [])
    assert forced.metrics["selection_agreement"] == model.metrics["selection_agreement"] == 1.0
    assert forced.metrics["batch_invariance_error"] is None
    assert forced.tolerance == {
        "operator_error": LIMITS.operator,
        "input_error": LIMITS.inputs,
        "relative_error": LIMITS.outputs,
        "cosine_min": LIMITS.cosine,
        "batch_invariance_error": LIMITS.outputs,
    }
    assert [report.name for report in forced.layers] == ["layer.0", "layer.1"]


class Plain(Chooser):
    """Attention without a choice."""

    choice = ""

    def overlap(self, *_: Any) -> tuple[int, int]:
        return 0, 0


def test_attention_without_a_choice_agrees_wholly() -> None:
    specification = three("specification")
    model, forced = candidate_checked(three("a file"), three("PyTorch"), specification, judge=Plain)
    assert specification.taken == [None]
    assert (model.ok, forced.ok, forced.reference) == (True, True, "specification")
    assert model.metrics["selection_agreement"] is forced.metrics["selection_agreement"] is None
    assert [each.selection_agreement for each in (*forced.cases, *forced.layers)] == [1.0] * 3


def test_rows_that_chose_otherwise_in_any_layer_are_not_judged_against_the_model() -> None:
    candidate = Shown("a file", states(1, 1.5, 1), layer(1, 2, 3), layer(4, 5, 6))
    reference = Shown("PyTorch", states(1, 1, 1), layer(1, 7, 3), layer(4, 5, -6))
    model, forced = candidate_checked(candidate, reference, three())
    assert (model.metrics["judged_rows"], model.ok) == (1.0, True)
    assert model.metrics["selection_agreement"] == pytest.approx(2 / 3)
    assert model.notes[0].startswith("judged on 1 of 3 rows; in 1 the two choose different numbers")
    assert model.notes[1:] == ["1 tied"]
    assert forced.metrics["judged_rows"] == 3.0
    assert forced.ok is False  # on its own choice the second row is wrong
    assert "after the last attention layer (layer.1)" in forced.notes[0]


def test_the_layer_whose_inputs_differ_first_is_named() -> None:
    candidate = Shown("a file", states(1, 1, 1), layer(1, 2, 3), layer(4, 5, 6, value=1.5))
    _, forced = candidate_checked(candidate, three(), three())
    assert forced.ok is False
    assert forced.metrics["input_error"] == pytest.approx(0.5)
    assert [report.input_error for report in forced.layers] == [0.0, pytest.approx(0.5)]
    assert forced.notes == [
        "the difference starts in layer.1: arithmetic before its attention (query, key or value: relative error 5.0e-01, "
        "tolerance 1.0e-04)."
    ]
    candidate.layers = (layer(1, 2, 3, value=float("nan")), layer(4, 5, 6, error=1.0))
    _, forced = candidate_checked(candidate, three(), three())
    assert forced.notes[0].startswith("the difference starts in layer.0: arithmetic before")
    assert [report.problem is None for report in forced.layers] == [False, False]
    assert forced.layers[1].problem == "wrong by 1"  # the operator was wrong before its inputs were looked at
    assert forced.metrics["operator_error"] == 1.0


def test_a_query_at_a_token_counts_and_what_is_shared_is_summed() -> None:
    specification = Shown("specification", states(1, 1, 1), layer(1, 2, 4), layer(4, 5, 6))
    _, forced = candidate_checked(three("a file"), three(), specification)
    assert forced.layers[0].input_error == pytest.approx(1 / (3 * 1 + 2 * 4 + 16) ** 0.5)
    assert [(report.shared, report.selected) for report in forced.layers] == [(2, 3), (3, 3)]
    assert [report.selection_agreement for report in forced.layers] == [pytest.approx(2 / 3), 1.0]
    assert forced.metrics["selection_agreement"] == pytest.approx(5 / 6)
    assert forced.cases[0].selection_agreement == pytest.approx(5 / 6)


def test_a_row_that_depends_on_the_rows_beside_it_is_found() -> None:
    def single(factor: float, first: float, second: float) -> Trace:
        alone = layer(first, 0, 0), layer(second, 0, 0)
        rows = [LayerTrace(*(x[:1] for x in (each.query, each.key, each.value, each.context))) for each in alone]
        return Trace({"last_hidden_state": np.full((1, 4, 2), factor)}, rows)

    candidate = three("a file")
    candidate.alone = {0: single(1.0, 1, 4), 1: single(1.0, 2, 5), 2: single(1.0, 3, 6)}
    _, forced = candidate_checked(candidate, three(), three(), alone=True)
    assert (forced.metrics["batch_invariance_error"], forced.ok) == (0.0, True)
    candidate.alone[2] = single(2.0, 3, 7)  # chose otherwise alone: nothing can be said
    _, forced = candidate_checked(candidate, three(), three(), alone=True)
    assert (forced.metrics["batch_invariance_error"], forced.ok) == (0.0, True)
    candidate.alone[1] = single(2.0, 2, 5)
    _, forced = candidate_checked(candidate, three(), three(), alone=True)
    assert forced.metrics["batch_invariance_error"] == pytest.approx(0.5)
    assert (forced.ok, forced.notes) == (False, ["a row's result depends on the rows beside it."])


def test_near_ties_are_counted_in_a_note() -> None:
    layers = [LayerReport("layer.0", near_ties=2), LayerReport("layer.1", near_ties=1)]
    found = compare._against_specification(Chooser(), "a file", tally(True, True, True), layers, [], LIMITS)
    assert found.ok is True
    assert found.notes == ["3 head(s) took the other side of a tie within float32's rounding."]


def test_the_operator_alone() -> None:
    """Without the PyTorch model there are only the layers, and another runtime if there is one."""
    case = Case("three rows", {"input_ids": IDS, "attention_mask": MASK})
    names, outputs, said = ["layer.0", "layer.1"], ("last_hidden_state",), []
    (alone,) = compare.check_operator(three("a file"), Chooser(), names, "fp32", [case], outputs, progress=said.append)
    assert said == ["three rows"]
    assert (alone.reference, alone.candidate) == ("specification, operator by operator", "a file")
    assert (alone.ok, alone.notes, alone.metrics) == (True, [], {"operator_error": 0.0})
    assert alone.tolerance == {"operator_error": LIMITS.operator}
    candidate = Shown("a file", states(1, 1, 1), layer(1, 2, 3, error=1e-6), layer(4, 5, 6, error=0.5))
    reference = Shown("another runtime", states(1, 1.5, 1), layer(1, 0, 3), layer(4, 5, 6))
    model, alone = compare.check_operator(candidate, Chooser(), names, "fp32", [case], outputs, reference=reference)
    assert (alone.ok, alone.notes) == (False, ["the difference is in layer.1: wrong by 0.5."])
    assert alone.metrics == {"operator_error": 0.5}
    assert [report.name for report in alone.layers] == names
    assert (model.reference, model.ok, model.metrics["judged_rows"]) == ("another runtime", True, 2.0)
    assert model.metrics["selection_agreement"] == pytest.approx(2 / 3)
    assert model.notes[0].startswith("judged on 2 of 3 rows; in 1 the two choose different numbers")
