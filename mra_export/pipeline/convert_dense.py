"""A dense checkpoint as an MRA checkpoint, with the budgets that were asked for, that a search finds, or that pay."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.checkpoint.files import locate
from mra_export.checkpoint.from_dense import convert
from mra_export.checkpoint.from_dense.source import dense_family, length_of, positions
from mra_export.checkpoint.load import load_checkpoint, load_config
from mra_export.checkpoint.weight_files import weight_files
from mra_export.errors import InputError
from mra_export.fidelity.docstrings import builtin_texts
from mra_export.fidelity.layered import LayeredModel
from mra_export.fidelity.memory import Memory
from mra_export.fidelity.samples import Samples, sampled_ids, split
from mra_export.fidelity.search import Found, Meter, Scale, as_json, check_long_enough, least_even, least_for, place
from mra_export.fidelity.speed import SOURCE, example_of_loss, faster_than_dense, pays_from
from mra_export.outputs import check_target, file_sha256
from mra_export.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mra_export.checkpoint.from_dense.convert import FromDenseResult

__all__ = ["DEFAULT_TARGET", "from_dense"]

DEFAULT_TARGET = 0.99
"""The mean cosine that the default keeps where MRA pays."""
MAX_TARGET = 0.9999
"""What rounding in float32 leaves room for."""
_TOKENS = 2**14
"""Of the texts that budgets are chosen by, and of those that they are judged by."""


def from_dense(
    source: str | Path,
    output: Path,
    *,
    task: str = "auto",
    block_per_row: int | None = None,
    mean_block_per_row: float | None = None,
    target_cosine: float | None = None,
    texts: Sequence[str] | None = None,
    max_position: int | None = None,
    approx_mode: str = "full",
    force: bool = False,
    progress: Callable[[str], None] | None = None,
) -> FromDenseResult:
    """Writes a BERT, RoBERTa or XLM-R checkpoint as an MRA checkpoint, as `convert.from_dense`, and chooses its budgets.

    With `mean_block_per_row` or `target_cosine` each layer gets a budget of its own, by a search that measures whole models on
    texts. It keeps what it measured beside the output until that is written: interrupted, the same call goes on. Without any of the
    three options all blocks are selected up to the length from which MRA pays on a CPU, and for longer models the least budget for
    all layers that keeps a mean cosine of 0.99.

    Args:
        source: a checkpoint directory or a hub id.
        output: the directory to write.
        task: the head to keep, as for `convert.from_dense`.
        block_per_row: one budget for all layers.
        mean_block_per_row: what the budgets may cost on average over the layers; where they lose least is searched.
        target_cosine: the mean cosine with the dense model's vectors, of the texts that are long enough to lose anything; the
            budgets of least cost that reach it are searched.
        texts: what the model is to serve, at the lengths that it is to serve; None for documentation of Python's standard library.
        max_position: the longest input in tokens; None for all that the source's position table holds.
        approx_mode: one of `APPROX_MODES`.
        force: whether an existing output is replaced.
        progress: called with a line about each step that takes time.

    Returns:
        What was written; `notes` say what was chosen and why, `measured` has the figures.

    Raises:
        InputError: as `convert.from_dense`; also if options exclude each other, or the texts are too short to lose anything.
    """
    say = progress or (lambda _: None)
    _check_options(block_per_row, mean_block_per_row, target_cosine, texts)
    output = Path(output)
    how: dict[str, Any] = {"task": task, "max_position": max_position, "approx_mode": approx_mode, "force": force}
    if block_per_row is not None:
        return convert.from_dense(source, output, block_per_row=block_per_row, progress=progress, **how)
    check_target(output, force=force)
    directory = locate(source)
    convert.check_not_source(output, source, directory)
    config = load_config(directory)
    length = length_of(positions(config, dense_family(config))[1], max_position, config)
    is_asked = mean_block_per_row is not None or target_cosine is not None
    if not is_asked and length < pays_from():
        result = convert.from_dense(source, output, progress=progress, **how)
        return dataclasses.replace(result, notes=(*result.notes, _all_blocks_note(length)))

    what = builtin_texts() if texts is None else texts
    if not what:
        raise InputError(
            "There are no texts: the file is empty. Give texts as long as those that the model is to serve."
        )
    ids = sampled_ids(directory, what, length)
    if ids is None and is_asked:
        raise InputError(
            f"{directory} has no tokenizer, and without one nothing can be measured on texts. Put its tokenizer.json or vocab.txt "
            "beside config.json, or give --block-per-row."
        )
    if ids is None:
        result = convert.from_dense(source, output, progress=progress, **how)
        note = "All blocks are selected: without a tokenizer no text shows what a smaller budget loses."
        return dataclasses.replace(result, notes=(*result.notes, note))
    settings = {
        "version": __version__,
        "weights": file_sha256(*weight_files(directory), directory / "config.json"),
        "texts": hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
        **{name: value for name, value in how.items() if name != "force"},
    }
    with Memory.open(output, settings) as memory:
        searched = _Searched(source, memory, how, say)
        if is_asked:
            budgets, measured, notes = searched.by_layer(ids, mean_block_per_row, target_cosine)
            result = convert.from_dense(source, output, budgets=budgets, progress=progress, **how)
        else:
            per_row, measured, notes = searched.even(ids)
            result = convert.from_dense(source, output, block_per_row=per_row, progress=progress, **how)
    if texts is None:
        notes.append(
            "Measured on the documentation in Python's standard library, for want of texts of yours: --texts FILE gives them."
        )
    return dataclasses.replace(result, notes=(*result.notes, *notes), measured=measured)


def _check_options(
    block_per_row: int | None, mean: float | None, target: float | None, texts: Sequence[str] | None
) -> None:
    given = {"--block-per-row": block_per_row, "--mean-block-per-row": mean, "--target-cosine": target}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise InputError(
            f"{' and '.join(named)} exclude each other: each says how budgets are chosen. Give one of them."
        )
    if block_per_row is not None and texts is not None:
        raise InputError(
            "--texts is for budgets that are searched, and --block-per-row states one. Leave one of them out."
        )
    if mean is not None and not 1 <= mean < math.inf:
        raise InputError(f"mean_block_per_row={mean:g} must be a number of at least 1.")
    if target is not None and not 0 < target <= MAX_TARGET:
        raise InputError(
            f"target_cosine={target:g} must be above 0 and at most {MAX_TARGET}: beyond that rounding shows. All blocks, "
            f"the default below {pays_from()} tokens, lose nothing."
        )


class _Searched:
    """The model of a search: all blocks, converted into the search's own directory."""

    def __init__(self, source: str | Path, memory: Memory, how: dict[str, Any], say: Callable[[str], None]) -> None:
        self.memory, self.say = memory, say
        directory = memory.path / "checkpoint"
        if not directory.is_dir():
            convert.from_dense(source, directory, progress=say, **{**how, "force": True})
        checkpoint = load_checkpoint(directory)
        config = checkpoint.config
        self.length = int(config.max_position_embeddings)
        self.model = LayeredModel(checkpoint)
        self.scale = Scale.of(config)
        if memory.found:
            say(f"going on: {memory.found} measurements of an earlier run are there")

    def samples(self, ids: Sequence[tuple[int, ...]]) -> Samples:
        """The two parts of the texts; refuses texts that are too short."""
        exact = int(self.scale.layer(1).num_blocks ** 0.5) * 32
        samples = split(ids, longer_than=exact, tokens=_TOKENS)
        check_long_enough(samples, exact, self.length)
        return samples

    def by_layer(
        self, ids: Sequence[tuple[int, ...]], mean: float | None, target: float | None
    ) -> tuple[Any, dict[str, Any], list[str]]:
        """Budgets layer by layer, the figures, and what to say of them."""
        samples = self.samples(ids)
        meter = Meter(self.model, samples.chosen_by, self.memory, "chosen by", self.say)
        judge = Meter(self.model, samples.judged_by, self.memory, "judged by", self.say)
        if target is None:
            assert mean is not None
            found = place(meter, judge, self.scale, mean)
        else:
            found = least_for(meter, judge, self.scale, target)
        return found.plan, as_json(found) | _facts(samples), self._notes(found, samples, target)

    def even(self, ids: Sequence[tuple[int, ...]]) -> tuple[int, dict[str, Any], list[str]]:
        """The least budget for all layers that keeps the default's target."""
        samples = self.samples(ids)
        meter = Meter(self.model, samples.chosen_by, self.memory, "chosen by", self.say)
        per_row, measured = least_even(meter, self.scale, DEFAULT_TARGET)
        shown = ", ".join(f"{level} {cosine:.4f}" for level, cosine in measured.items())
        notes = [
            f"{per_row} blocks per row are the least tried that keep a mean cosine of {DEFAULT_TARGET} with the dense model "
            f"({shown}), on {len(samples.chosen_by)} texts. {_gain(self.length, per_row)} --target-cosine and "
            "--mean-block-per-row give each layer a budget of its own.",
        ]
        return per_row, {"block_per_row": per_row, "curve": measured, **_facts(samples)}, notes

    def _notes(self, found: Found, samples: Samples, target: float | None) -> list[str]:
        there, even = found.judged_by, found.even
        on = f"{there.texts} held-out texts" if samples.is_held_out else f"the same {there.texts} texts"
        notes = [
            f"The budgets cost {found.mean_block_per_row:.3g} blocks per row on average over the layers. On {on} the mean cosine "
            f"with the dense model is {there.mean:.4f}, the least {there.least:.4f}; one budget for all layers at that cost has "
            f"{even.mean:.4f} and {even.least:.4f}.",
            f"{samples.long_enough} of {samples.seen} texts are long enough to lose anything, and only such were measured; the "
            f"longest has {samples.longest} tokens.",
        ]
        if target is not None and there.mean < target:
            notes.append(
                f"That is below {target:g}, which the texts reached that the budgets were chosen by: give more texts."
            )
        if samples.longest < self.length:
            notes.append(
                f"Texts of {samples.longest + 1} to {self.length} tokens, if there will be any, may lose more than these did."
            )
        if self.length < pays_from():
            notes.append(
                f"This does not pay on a CPU. {_gain(self.length, found.mean_block_per_row)} All blocks, the default, lose nothing."
            )
        return notes


def _facts(samples: Samples) -> dict[str, Any]:
    return {
        "texts": samples.seen,
        "long_enough": samples.long_enough,
        "longest": samples.longest,
        "held_out": samples.is_held_out,
    }


def _all_blocks_note(length: int) -> str:
    return (
        f"All blocks are selected, so that nothing is lost: at {length} tokens a smaller budget does not pay. {_gain(length, 8)} "
        f"What it would lose depends on model and texts: {example_of_loss()}. --mean-block-per-row 8 or --target-cosine 0.99 "
        "measure it, on your texts with --texts FILE."
    )


def _gain(length: int, per_row: float) -> str:
    """What a budget gains, by the benchmark."""
    tokens, blocks, factor = faster_than_dense(length, per_row)
    return f"By {SOURCE} a model with {blocks} blocks per row is {factor:.2f} times as fast as dense attention at {tokens} tokens."
