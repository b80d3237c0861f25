"""The parity check: is a candidate the same model as the PyTorch one, and if not, where does it begin to differ and how.

The operator chooses blocks, and that choice is discrete: one swapped block moves its output by far more than rounding does.
So the check looks at two things apart.

* Selection: do candidate and reference choose the same blocks? Where they do not, is the score of what was swapped as close
  as the arithmetic of that type makes it?
* Arithmetic: how large is the error when the reference uses the candidate's blocks?

The reference that can be told which blocks to use is the specification's operator inside the same PyTorch model. It is
compared with the unmodified transformers model in the same way, so that the chain ends at what the user trained.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.op_spec import BLOCK_SIZE, Mra2AttentionAttributes

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from mra_export.cases import Case
    from mra_export.checkpoint import Checkpoint
    from mra_export.runners import Array, Inputs, LayerTrace, Runner, SpecificationRunner, Trace

__all__ = [
    "TOLERANCES",
    "CaseReport",
    "Comparison",
    "LayerReport",
    "Tolerance",
    "check_candidate",
    "compare_outputs",
    "describe_failures",
    "probe_selection",
]


@dataclass(frozen=True)
class Tolerance:
    """The largest errors that pass, by type of the candidate; `scripts/measure_tolerances.py` shows what is usual.

    Attributes:
        operator: relative error of one attention node on the candidate's own inputs and blocks.
        inputs: relative error of query, key and value at a layer, with the same blocks in all layers before it.
        outputs: relative error of the model's outputs, with the same blocks in all layers.
        cosine: least cosine of an embedding, with the same blocks in all layers.
    """

    operator: float
    inputs: float
    outputs: float
    cosine: float


TOLERANCES = {
    "fp32": Tolerance(operator=2e-5, inputs=1e-4, outputs=1e-4, cosine=0.99999),
    "fp16": Tolerance(operator=2e-3, inputs=1e-2, outputs=1e-2, cosine=0.999),
    "bf16": Tolerance(operator=8e-3, inputs=8e-2, outputs=8e-2, cosine=0.995),
}


@dataclass
class LayerReport:
    """One attention layer over all cases.

    Attributes:
        name: as the node is named.
        input_error: largest relative error of query, key and value.
        operator_error: largest relative error of the node on the candidate's own inputs and blocks.
        selection_agreement: share of the selected blocks that candidate and reference have in common.
        swapped_gap: largest difference of score, in the reference, between a block that only the reference selects and one
            that only the candidate selects; what arithmetic has to explain.
        near_ties: heads where candidate and specification differ on equal inputs by a tie within float32's rounding.
        problem: what is wrong, or None.
    """

    name: str
    input_error: float = 0.0
    operator_error: float = 0.0
    selection_agreement: float = 1.0
    swapped_gap: float = 0.0
    near_ties: int = 0
    problem: str | None = None
    shared: int = field(default=0, repr=False)
    selected: int = field(default=0, repr=False)


@dataclass
class CaseReport:
    """One case of one comparison; errors are None where the case could not be judged."""

    name: str
    seq_len: int
    relative_error: float | None
    max_abs_error: float | None
    cosine_min: float
    selection_agreement: float
    judged_rows: int
    rows: int


@dataclass
class Comparison:
    """One reference against one candidate.

    Attributes:
        reference: what is taken as right.
        candidate: what is checked.
        metrics: name -> value over all cases; None where nothing could be judged.
        tolerance: name -> limit.
        ok: whether it passed; None where the reference is not well defined.
        notes: what a person should know.
        layers: layer by layer, where the reference used the candidate's blocks.
        cases: case by case.
    """

    reference: str
    candidate: str
    metrics: dict[str, float | None]
    tolerance: dict[str, float]
    ok: bool | None
    notes: list[str]
    layers: list[LayerReport]
    cases: list[CaseReport]


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
    attributes = checkpoint.family.attributes(checkpoint.config)
    names = [name for name, _ in checkpoint.family.attention_modules(checkpoint.model)]
    tolerance = TOLERANCES[dtype]
    token_outputs = checkpoint.task.outputs if checkpoint.task.per_token else ()
    whole = _Tally(token_outputs)
    forced = _Tally(token_outputs)
    layers = [LayerReport(name) for name in names]
    alone_error: list[float] = []
    tied = 0
    for case in cases:
        progress(case.name)
        trace = candidate.trace(case.inputs)
        mask = _flat_mask(case.inputs)
        selections = [
            _judge_operator(layer, mask, attributes, candidate, tolerance, report)
            for layer, report in zip(trace.layers, layers, strict=True)
        ]
        original = reference.trace(case.inputs)
        same, row_ties = _same_selection(original.layers, selections, mask, attributes)
        tied += int((~_by_example(~row_ties, case)).sum())
        whole.add(case, original.outputs, trace.outputs, _by_example(same & ~row_ties, case), _by_example(same, case))

        specification.selections = selections
        try:
            expected = specification.trace(case.inputs)
        finally:
            specification.selections = None
        agreement = _judge_layers(expected, trace, selections, mask, attributes, tolerance, layers)
        rows = np.ones(case.inputs["input_ids"].shape[0], dtype=bool)
        forced.add(case, expected.outputs, trace.outputs, rows, rows * agreement)

        for row, alone in enumerate(case.alone):
            single = candidate.trace(alone)
            error = _invariance(trace, single, row, case, attributes, selections, token_outputs)
            if error is not None:
                alone_error.append(error)
    notes = []
    if tied:
        notes.append(
            f"{tied} row(s) have equal scores at the cut of the selection: there transformers drops the tied blocks from both "
            "resolutions, so its result is not well defined and is not judged. Raise block_per_row, or lower the priors, "
            "until num_blocks is at least the number of prior blocks plus the number of blocks in the sequence."
        )
    return [
        _against_model(reference.name, candidate.name, whole, tolerance, notes, tied),
        _against_specification(candidate.name, forced, layers, alone_error, tolerance),
    ]


def compare_outputs(
    checkpoint: Checkpoint,
    reference: Runner,
    candidate: Runner,
    dtype: str,
    cases: list[Case],
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Compares a candidate end to end whose layers cannot be seen, so that its choice of blocks is not known.

    It is judged where there is no choice: on lengths for which every block is selected. Longer ones are run and counted, since
    one swapped block moves an output by more than any arithmetic.

    Args:
        checkpoint: the model.
        reference: the PyTorch model, or the exported file in another runtime.
        candidate: what is checked.
        dtype: the candidate's type; one of `TOLERANCES`.
        cases: the inputs.
        progress: called with the name of each case.
    """
    attributes = checkpoint.family.attributes(checkpoint.config)
    tally = _Tally(checkpoint.task.outputs if checkpoint.task.per_token else ())
    for case in cases:
        progress(case.name)
        is_exact = (-(-case.seq_len // BLOCK_SIZE)) ** 2 <= attributes.num_blocks
        rows = np.full(case.inputs["input_ids"].shape[0], is_exact)
        outputs = candidate.run(case.inputs)
        agreement = np.where(rows, 1.0, np.nan)
        tally.add(case, reference.run(case.inputs), outputs, rows, agreement)
    metrics = tally.metrics()
    metrics["selection_agreement"] = None
    judged, total = int(metrics["judged_rows"] or 0), int(metrics["rows"] or 0)
    notes = []
    if judged < total:
        notes.append(
            f"judged on {judged} of {total} rows, those so short that all blocks are selected; the choice of blocks in the "
            "others cannot be seen from outside. Build the engine with --layer-outputs to judge all."
        )
    tolerance = TOLERANCES[dtype]
    error = metrics["relative_error"]
    ok = None if error is None else error <= tolerance.outputs
    return Comparison(
        reference.name, candidate.name, metrics, {"relative_error": tolerance.outputs}, ok, notes, [], tally.cases
    )


def describe_failures(comparisons: list[Comparison]) -> list[str]:
    """A sentence for each comparison that failed."""
    return [
        f"{c.candidate} is not {c.reference}: {' '.join(c.notes) or 'see the numbers'}"
        for c in comparisons
        if c.ok is False
    ]


def probe_selection(
    run: Callable[[list[Array]], Array], query: Array, key: Array, mask: Array, num_heads: int
) -> torch.Tensor:
    """Finds out which blocks an implementation computes at full resolution, from its output alone.

    The values of each key block are +1 and -1 in turn in a channel of its own and add up to exactly 0, so that the block's
    mean is 0: the channel is other than 0 only in query blocks for which that key block was selected.

    Args:
        run: query, key, value -> context, each [batch, seq_len, hidden_size].
        query: float32.
        key: float32.
        mask: [batch, seq_len].
        num_heads: heads.

    Returns:
        bool [batch, num_heads, blocks, blocks]. A key block with fewer than two tokens is reported as not selected.
    """
    import torch

    batch, seq_len, hidden = query.shape
    head_dim = hidden // num_heads
    blocks = -(-seq_len // BLOCK_SIZE)
    found = np.zeros((batch, num_heads, blocks, blocks), dtype=bool)
    sign = np.zeros((batch, blocks * BLOCK_SIZE), np.float32)
    for b in range(batch):
        for block in range(blocks):
            tokens = np.flatnonzero(mask[b, block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE]) + block * BLOCK_SIZE
            even = tokens[: len(tokens) // 2 * 2]
            sign[b, even[0::2]], sign[b, even[1::2]] = 1.0, -1.0
    for start in range(0, blocks, head_dim):
        value = np.zeros((batch, blocks, BLOCK_SIZE, num_heads, head_dim), np.float32)
        for channel, block in enumerate(range(start, min(start + head_dim, blocks))):
            value[:, block, :, :, channel] = sign.reshape(batch, blocks, BLOCK_SIZE)[:, block, :, None]
        context = run([query, key, value.reshape(batch, -1, hidden)[:, :seq_len]])
        padded = np.zeros((batch, blocks * BLOCK_SIZE, hidden), np.float32)
        padded[:, :seq_len] = context
        seen = np.abs(padded.reshape(batch, blocks, BLOCK_SIZE, num_heads, head_dim)).max(2) > 0  # [B, a, H, channel]
        width = min(head_dim, blocks - start)
        found[:, :, :, start : start + width] = seen.transpose(0, 2, 1, 3)[..., :width]
    return torch.from_numpy(found)


class _Tally:
    """Sums the cases of one comparison up."""

    def __init__(self, token_outputs: tuple[str, ...]) -> None:
        self.token_outputs = token_outputs
        self.cases: list[CaseReport] = []
        self.cosines: list[float] = []
        self.top1: list[float] = []

    def add(
        self, case: Case, expected: dict[str, Array], actual: dict[str, Array], judged: Array, agreement: Array
    ) -> None:
        """`judged` bool [batch]; `agreement` [batch], the share of blocks in common."""
        token_mask = case.inputs["attention_mask"].astype(bool)
        relative, absolute, cosines = [], [], []
        for row in range(token_mask.shape[0]):
            pairs = [
                _real(expected[name], actual[name], row, token_mask if name in self.token_outputs else None)
                for name in expected
            ]
            if judged[row]:
                relative += [_relative(got, want) for want, got in pairs]
                absolute += [float(np.abs(got - want).max(initial=0.0)) for want, got in pairs]
            cosines.append(_cosine(*_embedding(dict(zip(expected, pairs, strict=True)))))
            self.top1 += [
                _top1(want, got) for name, (want, got) in zip(expected, pairs, strict=True) if "logits" in name
            ]
        self.cosines += cosines
        self.cases.append(
            CaseReport(
                case.name,
                case.seq_len,
                _worst(relative) if relative else None,
                _worst(absolute) if absolute else None,
                _least(cosines),
                float(np.mean(agreement)),
                int(judged.sum()),
                len(judged),
            )
        )

    def metrics(self) -> dict[str, float | None]:
        """Over all cases."""
        relative = [c.relative_error for c in self.cases if c.relative_error is not None]
        absolute = [c.max_abs_error for c in self.cases if c.max_abs_error is not None]
        return {
            "relative_error": _worst(relative) if relative else None,
            "max_abs_error": _worst(absolute) if absolute else None,
            "cosine_min": _least(self.cosines),
            "cosine_mean": float(np.mean(self.cosines)),
            "top1_agreement": float(np.mean(self.top1)) if self.top1 else None,
            "selection_agreement": float(np.mean([c.selection_agreement for c in self.cases])),
            "judged_rows": float(sum(c.judged_rows for c in self.cases)),
            "rows": float(sum(c.rows for c in self.cases)),
        }


def _against_model(
    reference: str, candidate: str, tally: _Tally, tolerance: Tolerance, notes: list[str], tied: int
) -> Comparison:
    metrics = tally.metrics()
    error = metrics["relative_error"]
    judged, rows = int(metrics["judged_rows"] or 0), int(metrics["rows"] or 0)
    if judged < rows - tied:
        notes = [
            f"judged on {judged} of {rows} rows; in {rows - tied - judged} the two choose different blocks in some layer, "
            "which the comparison on equal blocks below judges.",
            *notes,
        ]
    ok = None if error is None else error <= tolerance.outputs
    return Comparison(reference, candidate, metrics, {"relative_error": tolerance.outputs}, ok, notes, [], tally.cases)


def _against_specification(
    candidate: str, tally: _Tally, layers: list[LayerReport], alone_error: list[float], tolerance: Tolerance
) -> Comparison:
    metrics = tally.metrics()
    metrics["operator_error"] = _worst([layer.operator_error for layer in layers])
    metrics["input_error"] = _worst([layer.input_error for layer in layers])
    metrics["selection_agreement"] = float(np.mean([layer.selection_agreement for layer in layers]))
    metrics["batch_invariance_error"] = _worst(alone_error) if alone_error else None
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
    return Comparison("specification, same blocks", candidate, metrics, limits, ok, notes, layers, tally.cases)


def _within(metrics: dict[str, float | None], limits: dict[str, float], name: str) -> bool:
    value = metrics[name]
    if value is None:
        return True
    return value >= limits[name] if name == "cosine_min" else value <= limits[name]


def _judge_operator(
    layer: LayerTrace,
    mask: torch.Tensor,
    attributes: Mra2AttentionAttributes,
    candidate: Runner,
    tolerance: Tolerance,
    report: LayerReport,
) -> torch.Tensor:
    """The candidate's node on its own inputs; returns its blocks, bool [batch, num_heads, blocks, blocks]."""
    import torch

    from mra_export.reference import mra2_attention, select_blocks

    query, key, value = (torch.from_numpy(x) for x in (layer.query, layer.key, layer.value))
    context = torch.from_numpy(layer.context)
    choice = select_blocks(query, key, mask, attributes)
    selected = choice.selected
    error = _head_errors(context, mra2_attention(query, key, value, mask, attributes, selected=selected), attributes)
    bad = ~(error <= tolerance.operator)  # NaN is bad
    if bool(bad.any()):
        actual = _actual_selection(candidate, attributes, layer, mask)
        cause = "arithmetic"
        if actual is not None:
            near = _near_tie(choice.score, choice.selected)
            # The probe cannot see key blocks with fewer than two tokens.
            swapped = (actual != choice.selected) & _real_pairs(mask, attributes.num_heads, least_keys=2)
            by_tie = bad & swapped.flatten(2).any(2) & ~(swapped & ~near).flatten(2).any(2)
            # Only whole swaps: one whose other half the probe cannot see would change the count.
            by_tie &= (swapped & actual).flatten(2).sum(2) == (swapped & choice.selected).flatten(2).sum(2)
            resolved = torch.where(by_tie[:, :, None, None] & swapped, actual, selected)
            again = _head_errors(
                context, mra2_attention(query, key, value, mask, attributes, selected=resolved), attributes
            )
            fixed = by_tie & (again <= tolerance.operator)
            selected = torch.where(fixed[:, :, None, None], resolved, selected)
            error = torch.where(fixed, again, error)
            report.near_ties += int(fixed.sum())
            bad &= ~fixed
            if bool((swapped.flatten(2).any(2) & bad & torch.isfinite(error)).any()):
                cause = "selection"
        if bool(bad.any()) and report.problem is None:
            b, h = (int(i) for i in bad.nonzero()[0])
            report.problem = (
                f"{cause} of the attention (head {h}: relative error {float(error[b, h]):.1e} on equal inputs, "
                f"tolerance {tolerance.operator:.1e})"
            )
    report.operator_error = _worst([report.operator_error, _worst(error.flatten().tolist())])
    return selected


def _judge_layers(
    expected: Trace,
    actual: Trace,
    selections: list[torch.Tensor],
    mask: torch.Tensor,
    attributes: Mra2AttentionAttributes,
    tolerance: Tolerance,
    reports: list[LayerReport],
) -> float:
    """Query, key, value and the selection of every layer; returns the share of blocks in common."""
    import torch

    from mra_export.reference import select_blocks

    keep = mask.numpy().astype(bool)
    shared = total = 0
    for want, got, selected, report in zip(expected.layers, actual.layers, selections, reports, strict=True):
        error = _worst([_relative(getattr(got, n)[keep], getattr(want, n)[keep]) for n in ("query", "key", "value")])
        report.input_error = _worst([report.input_error, error])
        if not error <= tolerance.inputs and report.problem is None:
            report.problem = (
                f"arithmetic before its attention (query, key or value: relative error {error:.1e}, "
                f"tolerance {tolerance.inputs:.1e})"
            )
        choice = select_blocks(torch.from_numpy(want.query), torch.from_numpy(want.key), mask, attributes)
        real = _real_pairs(mask, attributes.num_heads)
        ours, theirs = choice.selected & real, selected & real
        report.shared += int((ours & theirs).sum())
        report.selected += int(ours.sum())
        report.selection_agreement = report.shared / max(report.selected, 1)
        shared += int((ours & theirs).sum())
        total += int(ours.sum())
        dropped = choice.score.masked_fill(~(ours & ~theirs), float("-inf")).flatten(2).amax(2)
        taken = choice.score.masked_fill(~(theirs & ~ours), float("inf")).flatten(2).amin(2)
        gap = (dropped - taken)[torch.isfinite(dropped) & torch.isfinite(taken)]
        if gap.numel():
            report.swapped_gap = max(report.swapped_gap, float(gap.max()))
    return shared / max(total, 1)


def _same_selection(
    layers: list[LayerTrace], selections: list[torch.Tensor], mask: torch.Tensor, attributes: Mra2AttentionAttributes
) -> tuple[Array, Array]:
    """Per row: whether the reference chose the same blocks in all layers, and whether its own choice was a tie."""
    import torch

    from mra_export.reference import select_blocks

    real = _real_pairs(mask, attributes.num_heads)
    same = torch.ones(mask.shape[0], dtype=torch.bool)
    tied = torch.zeros_like(same)
    for layer, selected in zip(layers, selections, strict=True):
        choice = select_blocks(torch.from_numpy(layer.query), torch.from_numpy(layer.key), mask, attributes)
        same &= ~((choice.selected != selected) & real).flatten(1).any(1)
        tied |= choice.tied_tokens.any(1)
    return same.numpy(), tied.numpy()


def _invariance(
    batch: Trace,
    single: Trace,
    row: int,
    case: Case,
    attributes: Mra2AttentionAttributes,
    selections: list[torch.Tensor],
    token_outputs: tuple[str, ...],
) -> float | None:
    """Error of a row in its batch against the row alone; None where a tie within rounding fell differently."""
    import torch

    from mra_export.reference import select_blocks

    mask = _flat_mask(case.alone[row])
    inside = slice(row * mask.shape[0], (row + 1) * mask.shape[0])
    real = _real_pairs(mask, attributes.num_heads)
    for layer, selected in zip(single.layers, selections, strict=True):
        choice = select_blocks(torch.from_numpy(layer.query), torch.from_numpy(layer.key), mask, attributes)
        if bool(((choice.selected != selected[inside]) & real).any()):
            return None
    tokens = case.inputs["attention_mask"].astype(bool)
    errors = []
    for name, alone in single.outputs.items():
        whole = np.zeros_like(batch.outputs[name])
        whole[row] = alone[0]
        want, got = _real(whole, batch.outputs[name], row, tokens if name in token_outputs else None)
        errors.append(_relative(got, want))
    return _worst(errors)


def _actual_selection(
    candidate: Runner, attributes: Mra2AttentionAttributes, layer: LayerTrace, mask: torch.Tensor
) -> torch.Tensor | None:
    masked = mask.numpy()
    if candidate.run_operator(attributes, [layer.query, layer.key, layer.value], masked) is None:
        return None

    def run(tensors: list[Array]) -> Array:
        context = candidate.run_operator(attributes, tensors, masked)
        assert context is not None
        return context

    return probe_selection(run, layer.query, layer.key, masked, attributes.num_heads)


def _near_tie(score: torch.Tensor, selected: torch.Tensor) -> torch.Tensor:
    """Blocks whose score is as close to the cut as float32 can tell: bool like `score`."""
    import torch

    lowest = score.masked_fill(~selected, float("inf")).flatten(2).amin(2)[:, :, None, None]
    size = score.abs().clamp(max=1e3).flatten(2).amax(2)[:, :, None, None]
    return (score - lowest).abs() <= 1e-5 * size + 4 * torch.finfo(torch.float32).eps * lowest.abs()


def _head_errors(actual: torch.Tensor, expected: torch.Tensor, attributes: Mra2AttentionAttributes) -> torch.Tensor:
    """Relative error per row and head, [batch, num_heads]; 0 where both are 0."""
    shape = (*actual.shape[:2], attributes.num_heads, -1)
    a, e = actual.reshape(shape).double(), expected.reshape(shape).double()
    return (a - e).pow(2).sum((1, 3)).sqrt() / e.pow(2).sum((1, 3)).sqrt().clamp(min=1e-30)


def _real_pairs(mask: torch.Tensor, num_heads: int, least_keys: int = 1) -> torch.Tensor:
    """Pairs of a query block with tokens and a key block with at least `least_keys`: bool [batch, num_heads, blocks, blocks]."""
    import torch

    rows, seq_len = mask.shape
    blocks = -(-seq_len // BLOCK_SIZE)
    filled = torch.nn.functional.pad((mask != 0).int(), (0, blocks * BLOCK_SIZE - seq_len))
    tokens = filled.reshape(rows, blocks, BLOCK_SIZE).sum(2)
    pairs = (tokens[:, :, None] > 0) & (tokens[:, None, :] >= least_keys)
    return pairs[:, None].expand(-1, num_heads, -1, -1)


def _flat_mask(inputs: Inputs) -> torch.Tensor:
    """The mask as the attention sees it, [rows, seq_len]: choices count as rows."""
    import torch

    mask = torch.from_numpy(inputs["attention_mask"])
    return mask.reshape(-1, mask.shape[-1])


def _by_example(rows: Array, case: Case) -> Array:
    """Rows of the attention to examples: an example counts if all its choices do."""
    return np.asarray(rows.reshape(case.inputs["input_ids"].shape[0], -1).all(axis=1))


def _real(expected: Array, actual: Array, row: int, token_mask: Array | None) -> tuple[Array, Array]:
    """One row of an output in float64; with `token_mask` [batch, seq_len] without what stands at padding."""
    want, got = expected[row].astype(np.float64), actual[row].astype(np.float64)
    return (want, got) if token_mask is None else (want[token_mask[row]], got[token_mask[row]])


def _embedding(pairs: dict[str, tuple[Array, Array]]) -> tuple[Array, Array]:
    """One vector for a row: its sentence embedding, the mean of its token vectors, or its logits."""
    name = "sentence_embedding" if "sentence_embedding" in pairs else next(iter(pairs))
    want, got = pairs[name]
    return (want.mean(0), got.mean(0)) if name == "last_hidden_state" else (want.ravel(), got.ravel())


def _relative(actual: Array, expected: Array) -> float:
    difference = np.linalg.norm(actual.astype(np.float64).ravel() - expected.astype(np.float64).ravel())
    return float(difference / max(float(np.linalg.norm(expected.astype(np.float64).ravel())), 1e-30))


def _cosine(a: Array, b: Array) -> float:
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))


def _top1(want: Array, got: Array) -> float:
    """Share of equal argmax: over labels, or over positions and choices where there is only one axis."""
    return float(np.mean(want.argmax(-1) == got.argmax(-1)))


def _worst(values: list[float]) -> float:
    """The largest; NaN if there is one, so that it never passes."""
    return float(np.max(values)) if values else 0.0


def _least(values: list[float]) -> float:
    return float(np.min(values)) if values else 1.0


def as_json(comparison: Comparison) -> dict[str, Any]:
    """A comparison as plain data, NaN and infinity as None."""
    from dataclasses import asdict

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    data = plain(asdict(comparison))
    for layer in data["layers"]:
        del layer["shared"], layer["selected"]
    return dict(data)
