"""A float32 export in int8: ranges measured, smoothing chosen, losses proved, and layers left in float where it must be."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mra_export.checkpoint.layout import transformer_folder
from mra_export.checkpoint.tokenizer import load_tokenizer
from mra_export.errors import InputError
from mra_export.export.int8 import (
    RANGE_PREFIX,
    SWITCHES,
    Int8Request,
    Linear,
    check_quantizable,
    linears_of,
    quantize,
    with_ranges,
    with_switches,
)
from mra_export.export.onnx_model import read_onnx
from mra_export.numerics import least as least_of
from mra_export.parity.fidelity import LIMITS, Limits, Vectors, compare_vectors, vectors_of
from mra_export.parity.texts import calibration_texts, proof_texts, samples_of, sha256_of_texts, tuning_texts
from mra_export.runners.onnxruntime import OnnxRuntimeRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from mra_export.export.onnx_model import OnnxModel
    from mra_export.parity.comparison import Comparison
    from mra_export.trace import Array, Inputs, Runner

__all__ = ["MOST_TEXTS", "check_request", "to_int8"]

MOST_TEXTS = 512
"""Texts from which ranges are measured; of more, as many evenly spaced ones."""
STRENGTHS = (None, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Of smoothing. Below 0.7 it is worse than none for some models; see docs/int8.md."""
_FEW = 8
"""Texts by which layers are told apart."""


def check_request(request: Int8Request) -> tuple[str, ...]:
    """The calibration texts of a request.

    Raises:
        InputError: there is none, or all are blank.
    """
    texts = tuple(calibration_texts()) if request.texts is None else request.texts
    kept = [text for text in texts if text.strip()]
    if not kept:
        found = f"{len(texts)} texts, all of them blank" if texts else "no text"
        raise InputError(
            f"The calibration has {found}. Give some dozens of texts as the model will see them, one a line, or leave --calibrate "
            "out: there are 64 built in."
        )
    step = max(1.0, len(kept) / MOST_TEXTS)
    return tuple(kept[int(i * step)] for i in range(min(len(kept), MOST_TEXTS)))


def to_int8(
    source: OnnxModel,
    target: Path,
    request: Int8Request,
    *,
    library: Path | None = None,
    judge: Callable[[list[Comparison]], None] | None = None,
    random_ids: bool = False,
    notes: list[str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> OnnxModel:
    """Writes a float32 export with its linear layers in int8, and proves what it loses.

    Args:
        source: the export, in its directory, with its tokenizer.
        target: the .onnx file to write.
        request: from which texts, and whether all layers.
        library: the ONNX Runtime library to run it with; None for the function body.
        judge: takes the comparison with the float32 file and raises `ParityError` if it failed (`Proof.judge`); before that more
            layers are left in float until the limits hold, unless all are asked for. None to leave all of that out.
        random_ids: whether a model without a tokenizer is calibrated and compared on random ids.
        notes: takes what a person should know.
        progress: called with a line before each step.

    Returns:
        The written file.

    Raises:
        InputError: the file, its tokenizer or the texts cannot be used.
        ParityError: it loses more than its limits allow.
        DependencyError: ONNX Runtime is missing.
    """
    check_quantizable(source)
    texts = check_request(request)
    samples = samples_of(source, texts, random_ids=random_ids and request.texts is None, joined=True)
    tuning = samples_of(source, tuning_texts(), random_ids=random_ids)
    linears = linears_of(source)
    in_float = set() if request.every_layer else _second_feed_forwards(source, linears)
    limits = "int8-all" if request.every_layer else "int8"
    noted = {
        "int8.limits": limits,
        "int8.texts": str(len(texts)),
        "int8.texts_sha256": sha256_of_texts(texts),
    }
    if random_ids and load_tokenizer(transformer_folder(source.directory)) is None:
        noted["int8.texts"] = "random ids"
        del noted["int8.texts_sha256"]
    with tempfile.TemporaryDirectory(prefix="mra-export-") as folder:
        work = Path(folder) / "work.onnx"
        ranges = _ranges(source, linears, samples, work, library, progress)
        reference = OnnxRuntimeRunner(source, library=library)
        expected = vectors_of(reference, tuning)
        smoothing, switched = _choose_smoothing(
            source, ranges, linears, in_float, expected, tuning, work, library, progress
        )
        in_int8 = [linear for linear in linears if not set(linear.names) & in_float]
        few = vectors_of(reference, tuning[:_FEW])
        losses = _losses(switched, linears, in_int8, few, tuning[:_FEW], progress)
        order = sorted(in_int8, key=lambda linear: -losses[linear])
        facts = [
            f"int8 by {noted['int8.texts']}{' texts' if 'int8.texts_sha256' in noted else ''}, smoothing {smoothing or 'none'}; "
            + (f"in float: {_shown(in_float)}" if in_float else "all linear layers")
            + f"; of those in int8 {_shown(order[0].names)} loses most (1 - cosine {losses[order[0]]:.1e} by itself)."
        ]
        if judge is not None:
            proof = samples_of(source, proof_texts(), random_ids=random_ids)
            progress(f"{reference.name}: {len(proof)} texts")
            expected = vectors_of(reference, proof)
        moved = 0
        while True:
            progress(f"writing {target.name} in int8")
            kept = in_float | {name for linear in order[:moved] for name in linear.names}
            written = quantize(source, ranges, target, smoothing=smoothing, float_layers=kept, noted=noted)
            if judge is None:
                break
            one, two = (OnnxRuntimeRunner(written, library=library, threads=threads) for threads in (1, 2))
            progress(f"{one.name}: {len(proof)} texts")
            comparison = compare_vectors(reference, one, proof, limits, again=two, expected=expected)
            comparison.notes += facts
            more = None
            if not request.every_layer and not LIMITS[limits].hold(comparison.metrics):
                more = _enough(switched, linears, in_float, order, moved + 1, LIMITS[limits], expected, proof, progress)
            if more is None:
                judge([comparison])
                break
            moved = more
            layers = {name for linear in order[:moved] for name in linear.names}
            facts = [facts[0], f"beyond the limits as it was, so that these are in float too: {_shown(layers)}."]
    if notes is not None:
        notes += facts
    return written


def _second_feed_forwards(model: OnnxModel, linears: Sequence[Linear]) -> set[str]:
    """The names of each layer's second feed-forward product."""
    last = f".{model.family.second_feed_forward}"
    # layer.0.output.dense, and not layer.0.attention.output.dense
    return {name for linear in linears for name in linear.names if re.fullmatch(rf"layer\.\d+{re.escape(last)}", name)}


def _shown(names: Iterable[str]) -> str:
    """Names of layers for people: what is in every layer once."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        _, number, rest = name.split(".", 2)
        found.setdefault(rest, []).append(number)
    return ", ".join(f"{rest} of layer {' '.join(sorted(numbers, key=int))}" for rest, numbers in found.items())


def _ranges(
    source: OnnxModel,
    linears: Sequence[Linear],
    samples: Sequence[Inputs],
    work: Path,
    library: Path | None,
    progress: Callable[[str], None],
) -> dict[str, Array]:
    """The largest absolute value of each number that each layer reads, over all texts."""
    runner = OnnxRuntimeRunner(read_onnx(with_ranges(source, work)), library=library)
    ranges: dict[str, Array] = {}
    progress(f"measuring ranges: {len(samples)} texts")
    for sample in samples:
        found = runner.run(sample)
        for linear in linears:
            seen = found[RANGE_PREFIX + linear.source]
            ranges[linear.source] = np.maximum(ranges.get(linear.source, seen), seen)
    for linear in linears:
        if not np.isfinite(ranges[linear.source]).all():
            raise InputError(
                f"{source.path} computes a number that is not finite before {linear.names[0]}, in float32: the model is broken "
                "for one of the texts. Look for it with `mra-export check`."
            )
    return ranges


def _switched(samples: Sequence[Inputs], linears: Sequence[Linear], in_int8: Callable[[Linear], bool]) -> list[Inputs]:
    return [{**sample, SWITCHES: np.array([in_int8(linear) for linear in linears])} for sample in samples]


def _choose_smoothing(
    source: OnnxModel,
    ranges: Mapping[str, Array],
    linears: Sequence[Linear],
    in_float: Collection[str],
    expected: Vectors,
    samples: Sequence[Inputs],
    work: Path,
    library: Path | None,
    progress: Callable[[str], None],
) -> tuple[float | None, Runner]:
    """The strength whose vectors are nearest to the float32 ones, and the file with switches that was made with it."""
    inputs = _switched(samples, linears, lambda linear: not set(linear.names) & set(in_float))
    found: dict[float | None, float] = {}
    for strength in STRENGTHS:
        progress(f"choosing the smoothing: {strength or 'none'}")
        runner = OnnxRuntimeRunner(with_switches(source, ranges, work, smoothing=strength), library=library)
        found[strength] = float(np.mean(expected.agreements(vectors_of(runner, inputs))))
    best = max(found, key=lambda strength: found[strength])
    return best, OnnxRuntimeRunner(with_switches(source, ranges, work, smoothing=best), library=library)


def _losses(
    switched: Runner,
    linears: Sequence[Linear],
    asked: Sequence[Linear],
    expected: Vectors,
    samples: Sequence[Inputs],
    progress: Callable[[str], None],
) -> dict[Linear, float]:
    """What each of the layers asked for loses where it alone is in int8: 1 - the mean cosine."""
    losses = {}
    for number, linear in enumerate(asked, 1):
        progress(f"finding what each layer loses: {number} of {len(asked)}")
        alone = vectors_of(switched, _switched(samples, linears, lambda each, linear=linear: each is linear))  # type: ignore[misc]
        losses[linear] = 1 - float(np.mean(expected.agreements(alone)))
    return losses


def _enough(
    switched: Runner,
    linears: Sequence[Linear],
    in_float: Collection[str],
    order: Sequence[Linear],
    least: int,
    limits: Limits,
    expected: Vectors,
    samples: Sequence[Inputs],
    progress: Callable[[str], None],
) -> int | None:
    """How many of the layers that lose most have to be in float for the limits to hold; None where only all would do."""
    for count in range(least, len(order)):
        progress(f"leaving {count} more layers in float")
        kept = {*in_float, *(name for linear in order[:count] for name in linear.names)}
        inputs = _switched(samples, linears, lambda linear, kept=kept: not set(linear.names) & kept)  # type: ignore[misc]
        cosines = expected.agreements(vectors_of(switched, inputs))
        if limits.hold({"cosine_mean": float(np.mean(cosines)), "cosine_min": least_of(cosines)}):
            return count
    return None
