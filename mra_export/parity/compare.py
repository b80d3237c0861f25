"""The parity check: is a candidate the same model as the PyTorch one, and if not, where does it begin to differ and how.

Some attention chooses: MRA's selects blocks, and that choice is discrete: one swapped block moves its output by far more than
rounding does. So the check looks at two things apart.

* Choice: do candidate and reference choose the same? Where they do not, is what was swapped as close as the arithmetic of
  that type makes it?
* Arithmetic: how large is the error when the reference takes the candidate's choice?

What a choice is, a family's `Judge` knows; one of attention without a choice has arithmetic only. The reference that can be
told what to choose is the specification's operator inside the same PyTorch model. It is compared with the unmodified
transformers model in the same way, so that the chain ends at what the user trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.numerics import relative_error, worst
from mra_export.operators.judge import Judge, LayerReport, Tolerance
from mra_export.parity.comparison import Comparison
from mra_export.parity.fidelity import LIMITS
from mra_export.parity.tally import Tally, row_at_tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from mra_export.checkpoint.load import Checkpoint
    from mra_export.parity.cases import Case
    from mra_export.runners.torch import SpecificationRunner
    from mra_export.trace import Array, Inputs, LayerTrace, Runner, Trace

__all__ = ["check_candidate", "check_operator", "compare_outputs"]


def check_candidate(
    checkpoint: Checkpoint,
    reference: Runner,
    candidate: Runner,
    dtype: str,
    cases: list[Case],
    *,
    specification: SpecificationRunner,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Comparison]:
    """Compares a candidate with the PyTorch model and with the specification on the candidate's blocks.

    Args:
        checkpoint: the model.
        reference: the unmodified PyTorch model.
        candidate: what is checked.
        dtype: the candidate's type; one of `TOLERANCES`.
        cases: the inputs.
        specification: the PyTorch model with the specification's operator.
        progress: called with the name of each case.

    Returns:
        Two comparisons: with `reference`, judged on the rows for which both choose the same blocks; with `specification`
        on the candidate's blocks, judged on all rows.
    """
    family = checkpoint.family
    judge = family.judge(family.layer_attributes(checkpoint.config), family.constants(checkpoint.model))
    names = [name for name, _ in family.attention_modules(checkpoint.model)]
    tolerance = judge.tolerance(dtype)
    token_outputs = checkpoint.task.outputs if checkpoint.task.per_token else ()
    whole = Tally(token_outputs)
    forced = Tally(token_outputs)
    layers = [LayerReport(name) for name in names]
    alone_error: list[float] = []
    tied = 0
    for case in cases:
        progress(case.name)
        trace = candidate.trace(case.inputs)
        mask = _flat_mask(case.inputs)
        choices = [
            judge.operator(index, layer, mask, candidate, tolerance, report)
            for index, (layer, report) in enumerate(zip(trace.layers, layers, strict=True))
        ]
        original = reference.trace(case.inputs)
        same, row_ties = _same_choices(judge, original.layers, choices, mask)
        tied += int((~_by_example(~row_ties, case)).sum())
        whole.add(case, original.outputs, trace.outputs, _by_example(same & ~row_ties, case), _by_example(same, case))

        specification.choices = choices if judge.choice else None
        try:
            expected = specification.trace(case.inputs)
        finally:
            specification.choices = None
        agreement = _judge_layers(judge, expected, trace, choices, mask, tolerance, layers)
        rows = np.ones(case.inputs["input_ids"].shape[0], dtype=bool)
        forced.add(case, expected.outputs, trace.outputs, rows, rows * agreement)

        for row, alone in enumerate(case.alone):
            single = candidate.trace(alone)
            error = _invariance(judge, trace, single, row, case, choices, token_outputs)
            if error is not None:
                alone_error.append(error)
    notes = [judge.tie_note(tied)] if tied else []
    notes += getattr(reference, "notes", [])
    return [
        _against_model(judge, reference.name, candidate.name, whole, tolerance, notes, tied),
        _against_specification(judge, candidate.name, forced, layers, alone_error, tolerance),
    ]


def check_operator(
    candidate: Runner,
    judge: Judge,
    names: list[str],
    dtype: str,
    cases: list[Case],
    token_outputs: tuple[str, ...],
    *,
    reference: Runner | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Comparison]:
    """Compares what can be compared where the PyTorch model is not at hand.

    Args:
        candidate: what is checked.
        judge: of the file's family.
        names: of each attention layer.
        dtype: the candidate's type; one of `TOLERANCES`.
        cases: the inputs.
        token_outputs: outputs that have a value for each token.
        reference: the same file in another runtime, or None.
        progress: called with the name of each case.

    Returns:
        With a reference, the outputs of both on the rows for which they choose the same; and in any case each attention
        layer against the specification, on the layer's own inputs.
    """
    tolerance = judge.tolerance(dtype)
    layers = [LayerReport(name) for name in names]
    whole = Tally(token_outputs)
    for case in cases:
        progress(case.name)
        trace = candidate.trace(case.inputs)
        mask = _flat_mask(case.inputs)
        choices = [
            judge.operator(index, layer, mask, candidate, tolerance, report)
            for index, (layer, report) in enumerate(zip(trace.layers, layers, strict=True))
        ]
        if reference is not None:
            other = reference.trace(case.inputs)
            same, _ = _same_choices(judge, other.layers, choices, mask)
            whole.add(case, other.outputs, trace.outputs, _by_example(same, case), _by_example(same, case))
    first = next((layer for layer in layers if layer.problem), None)
    notes = [] if first is None else [f"the difference is in {first.name}: {first.problem}."]
    metrics: dict[str, float | None] = {"operator_error": worst([layer.operator_error for layer in layers])}
    limits = {"operator_error": tolerance.operator}
    alone = Comparison(
        "specification, operator by operator", candidate.name, metrics, limits, not notes, notes, layers, []
    )
    if reference is None:
        return [alone]
    return [_against_model(judge, reference.name, candidate.name, whole, tolerance, [], 0), alone]


def compare_outputs(
    checkpoint: Checkpoint,
    reference: Runner,
    candidate: Runner,
    dtype: str,
    cases: list[Case],
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Compares a candidate end to end whose layers cannot be seen, so that what it chooses is not known.

    It is judged where there is no choice: for MRA on lengths for which every block is selected. Others are run and counted,
    since one swapped block moves an output by more than any arithmetic.

    Args:
        checkpoint: the model.
        reference: the PyTorch model, or the exported file in another runtime.
        candidate: what is checked.
        dtype: the candidate's type; one of `TOLERANCES`, or int8, which is judged by its vectors.
        cases: the inputs.
        progress: called with the name of each case.
    """
    judge = checkpoint.family.judge(checkpoint.family.layer_attributes(checkpoint.config))
    tally = Tally(checkpoint.task.outputs if checkpoint.task.per_token else ())
    for case in cases:
        progress(case.name)
        is_exact = all(checkpoint.family.makes_no_choice(each, case.seq_len) for each in judge.attributes)
        rows = np.full(case.inputs["input_ids"].shape[0], is_exact)
        outputs = candidate.run(case.inputs)
        agreement = np.where(rows, 1.0, np.nan)
        tally.add(case, reference.run(case.inputs), outputs, rows, agreement)
    metrics = tally.metrics()
    metrics["selection_agreement"] = None
    judged, total = int(metrics["judged_rows"] or 0), int(metrics["rows"] or 0)
    if dtype == "int8":  # which no error of arithmetic describes
        bounds = LIMITS[dtype]
        limits = {"cosine_mean": bounds.mean, "cosine_min": bounds.least}
        return Comparison(reference.name, candidate.name, metrics, limits, bounds.hold(metrics), [], [], tally.cases)
    notes = [judge.unseen_note(judged, total)] if judged < total else []
    tolerance = judge.tolerance(dtype)
    error = metrics["relative_error"]
    ok = None if error is None else error <= tolerance.outputs
    return Comparison(
        reference.name, candidate.name, metrics, {"relative_error": tolerance.outputs}, ok, notes, [], tally.cases
    )


def _against_model(
    judge: Judge, reference: str, candidate: str, tally: Tally, tolerance: Tolerance, notes: list[str], tied: int
) -> Comparison:
    metrics = tally.metrics()
    if not judge.choice:
        metrics["selection_agreement"] = None
    error = metrics["relative_error"]
    judged, rows = int(metrics["judged_rows"] or 0), int(metrics["rows"] or 0)
    if judged < rows - tied:
        notes = [
            f"judged on {judged} of {rows} rows; in {rows - tied - judged} the two choose different {judge.choice} in some "
            f"layer, which the comparison on equal {judge.choice} below judges.",
            *notes,
        ]
    ok = None if error is None else error <= tolerance.outputs
    return Comparison(reference, candidate, metrics, {"relative_error": tolerance.outputs}, ok, notes, [], tally.cases)


def _against_specification(
    judge: Judge,
    candidate: str,
    tally: Tally,
    layers: list[LayerReport],
    alone_error: list[float],
    tolerance: Tolerance,
) -> Comparison:
    metrics = tally.metrics()
    metrics["operator_error"] = worst([layer.operator_error for layer in layers])
    metrics["input_error"] = worst([layer.input_error for layer in layers])
    agreement = float(np.mean([layer.selection_agreement for layer in layers]))
    metrics["selection_agreement"] = agreement if judge.choice else None
    metrics["batch_invariance_error"] = worst(alone_error) if alone_error else None
    limits = {
        "operator_error": tolerance.operator,
        "input_error": tolerance.inputs,
        "relative_error": tolerance.outputs,
        "cosine_min": tolerance.cosine,
        "batch_invariance_error": tolerance.outputs,
    }
    notes = []
    first = next((layer for layer in layers if layer.problem), None)
    if first is not None:
        notes.append(f"the difference starts in {first.name}: {first.problem}.")
    elif not _within(metrics, limits, "relative_error") or not _within(metrics, limits, "cosine_min"):
        notes.append(
            f"the difference starts after the last attention layer ({layers[-1].name}): arithmetic of the head."
        )
    if not _within(metrics, limits, "batch_invariance_error"):
        notes.append("a row's result depends on the rows beside it.")
    near = sum(layer.near_ties for layer in layers)
    if near:
        notes.append(f"{near} head(s) took the other side of a tie within float32's rounding.")
    ok = first is None and all(_within(metrics, limits, name) for name in limits)
    return Comparison(judge.specification, candidate, metrics, limits, ok, notes, layers, tally.cases)


def _within(metrics: dict[str, float | None], limits: dict[str, float], name: str) -> bool:
    value = metrics[name]
    if value is None:
        return True
    return value >= limits[name] if name == "cosine_min" else value <= limits[name]


def _judge_layers(
    judge: Judge,
    expected: Trace,
    actual: Trace,
    choices: list[Any],
    mask: torch.Tensor,
    tolerance: Tolerance,
    reports: list[LayerReport],
) -> float:
    """Query, key, value and the choice of every layer; returns the share of choices in common."""
    keep = mask.numpy().astype(bool)
    shared = total = 0
    pairs = zip(expected.layers, actual.layers, choices, reports, strict=True)
    for index, (want, got, choice, report) in enumerate(pairs):
        error = worst(
            [relative_error(getattr(got, n)[keep], getattr(want, n)[keep]) for n in ("query", "key", "value")]
        )
        report.input_error = worst([report.input_error, error])
        if not error <= tolerance.inputs and report.problem is None:
            report.problem = (
                f"arithmetic before its attention (query, key or value: relative error {error:.1e}, "
                f"tolerance {tolerance.inputs:.1e})"
            )
        ours, here = judge.overlap(index, want, choice, mask, report)
        report.shared += ours
        report.selected += here
        if report.selected:
            report.selection_agreement = report.shared / report.selected
        shared += ours
        total += here
    return shared / total if total else 1.0


def _same_choices(
    judge: Judge, layers: list[LayerTrace], choices: list[Any], mask: torch.Tensor
) -> tuple[Array, Array]:
    """Per row: whether the reference chose the same in all layers, and whether its own choice was a tie."""
    import torch

    same = torch.ones(mask.shape[0], dtype=torch.bool)
    tied = torch.zeros_like(same)
    for index, (layer, choice) in enumerate(zip(layers, choices, strict=True)):
        here, is_tie = judge.same(index, layer, choice, mask)
        same &= here
        tied |= is_tie
    return same.numpy(), tied.numpy()


def _invariance(
    judge: Judge,
    batch: Trace,
    single: Trace,
    row: int,
    case: Case,
    choices: list[Any],
    token_outputs: tuple[str, ...],
) -> float | None:
    """Error of a row in its batch against the row alone; None where a tie within rounding fell differently."""
    mask = _flat_mask(case.alone[row])
    inside = slice(row * mask.shape[0], (row + 1) * mask.shape[0])
    for index, (layer, choice) in enumerate(zip(single.layers, choices, strict=True)):
        if not bool(judge.same(index, layer, judge.rows_of(choice, inside), mask)[0].all()):
            return None
    tokens = case.inputs["attention_mask"].astype(bool)
    errors = []
    for name, alone in single.outputs.items():
        whole = np.zeros_like(batch.outputs[name])
        whole[row] = alone[0]
        want, got = row_at_tokens(whole, batch.outputs[name], row, tokens if name in token_outputs else None)
        errors.append(relative_error(got, want))
    return worst(errors)


def _flat_mask(inputs: Inputs) -> torch.Tensor:
    """The mask as the attention sees it, [rows, seq_len]: choices count as rows."""
    import torch

    mask = torch.from_numpy(inputs["attention_mask"])
    return mask.reshape(-1, mask.shape[-1])


def _by_example(rows: Array, case: Case) -> Array:
    """Rows of the attention to examples: an example counts if all its choices do."""
    return np.asarray(rows.reshape(case.inputs["input_ids"].shape[0], -1).all(axis=1))
