"""An MRA checkpoint trained to give its dense model's vectors again: what it is trained on, the checks, and what is written."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.checkpoint.files import locate
from mra_export.checkpoint.from_dense.files import copy_as_they_are, write_model_card
from mra_export.checkpoint.from_dense.source import dense_family, positions
from mra_export.checkpoint.from_dense.weights import save_weights
from mra_export.checkpoint.load import load_config
from mra_export.checkpoint.weight_files import read_weights, weight_files
from mra_export.errors import InputError
from mra_export.fidelity.distillation import WEIGHTS, Student, Teacher, load_pair
from mra_export.fidelity.docstrings import builtin_texts
from mra_export.fidelity.healing import Recipe, heal_on
from mra_export.fidelity.memory import Memory
from mra_export.fidelity.samples import sampled_ids, split_to_train
from mra_export.outputs import check_target, file_sha256, staged_directory
from mra_export.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mra_export.checkpoint.load import Checkpoint
    from mra_export.fidelity.healing import Healed, Point
    from mra_export.fidelity.samples import Ids, Samples

__all__ = ["DEFAULT_STEPS", "HealResult", "heal"]

DEFAULT_STEPS = 400
"""Of 8 texts: estimated at less than an hour for six layers of width 384 at 512 tokens on two cores."""
_TEXTS = 50_000
"""Texts that are looked at, of those that are given."""
_HELD_OUT_TOKENS = 2**14
"""Of the texts that the step is chosen by."""


@dataclass(frozen=True)
class HealResult:
    """What `heal` wrote.

    Attributes:
        output: the checkpoint directory.
        steps: that were made.
        best_step: the one whose weights were written.
        before: agreement with the teacher on the held-out texts at the start.
        after: the same of what was written.
        curve: all evaluations, that of the start first.
        ended: why training ended: "steps", "minutes" or "patience" (no better evaluation for so long).
        texts: that were trained on.
        held_out: that chose the step, none of them among the others.
        notes: what to know of it, one sentence each.
        files: what the directory holds, sorted.
    """

    output: Path
    steps: int
    best_step: int
    before: Point
    after: Point
    curve: tuple[Point, ...]
    ended: str
    texts: int
    held_out: int
    notes: tuple[str, ...]
    files: tuple[str, ...]


def heal(
    source: str | Path,
    output: Path,
    *,
    teacher: str | Path,
    texts: Sequence[str] | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    texts_per_step: int = 8,
    learning_rate: float = 1e-4,
    weights: str = "attention",
    evaluate_every: int = 20,
    patience: int = 10,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
) -> HealResult:
    """Trains an MRA checkpoint until it gives the vectors of the dense model that it was made from, as far as it gets.

    The layers learn to give the teacher's hidden states and its vectors (`fidelity.distillation.distance`), by AdamW; embeddings,
    modules and heads stay. A fifth of the texts has no part in it and says which step is written: the one with the highest mean
    cosine of those whose least is not below the start's. What was done is kept beside the output until that is written:
    interrupted, the same call goes on. Without `minutes` the same input gives the same weights on the same machine.

    Args:
        source: the MRA checkpoint, a directory or a hub id.
        output: the directory to write.
        teacher: the dense checkpoint that `source` was made from.
        texts: what the model is to serve, at the lengths that it is to serve; None for documentation of Python's standard library.
        steps: of the optimizer; None for 400, or with `minutes` as many as there is time for.
        minutes: after which training ends; both count where both are given.
        texts_per_step: whose gradients are summed for a step.
        learning_rate: at its highest.
        weights: one of `WEIGHTS`, which of them move.
        evaluate_every: steps from one evaluation to the next.
        patience: evaluations without a better one after which it ends.
        force: whether an existing output is replaced.
        progress: called with a line now and then.

    Returns:
        What was written.

    Raises:
        InputError: the source is no MRA checkpoint or selects all blocks, the teacher is no dense one or of another shape or
            tokenizer, the texts are too short or too few, no step is better than the start, or something cannot be written.
    """
    say = progress or (lambda _: None)
    output = Path(output)
    if steps is None and minutes is None:
        steps = DEFAULT_STEPS
    recipe = Recipe(steps, minutes, texts_per_step, learning_rate, evaluate_every, patience)
    _check_recipe(recipe, weights)
    directory = locate(source)
    check_target(output, force=force, sources=[directory, locate(teacher)])
    say(f"loading {source}")
    checkpoint, dense = load_pair(source, teacher)
    samples = _samples(checkpoint, dense, builtin_texts() if texts is None else texts, str(source))

    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings: dict[str, Any] = {
        "version": __version__,
        "weights": file_sha256(*weight_files(directory), directory / "config.json", *weight_files(dense)),
        "texts": hashlib.sha256(json.dumps([samples.chosen_by, samples.judged_by]).encode()).hexdigest(),
        "recipe": asdict(recipe) | {"weights": weights, "device": device},
    }
    student = Student(checkpoint, device, weights)
    master = Teacher(dense, device, embedding=student.is_embedding)
    with Memory.open(output, settings, "training keeps what it did") as memory:
        healed = heal_on(student, master, samples.chosen_by, samples.judged_by, recipe, memory, say)
        if healed.best.step:
            say(f"writing {output}")
            summary = _summary(healed, samples, Path(teacher).name)
            files = _write(checkpoint, output, summary, force=force)
    start, best = healed.curve[0], healed.best
    if not best.step:
        tried = max(healed.curve[1:], key=lambda point: point.mean)
        raise InputError(
            f"None of the {healed.curve[-1].step} steps was better than the start on the {len(samples.judged_by)} held-out "
            f"texts, so nothing was written: mean cosine {start.mean:.4f} and least {start.least:.4f} at the start, "
            f"{tried.mean:.4f} and {tried.least:.4f} after step {tried.step}. Give more texts (there were "
            f"{len(samples.chosen_by)} to train on), more --steps, or a smaller --learning-rate than {learning_rate:g}."
        )
    return HealResult(
        output,
        healed.curve[-1].step,
        best.step,
        start,
        best,
        healed.curve,
        healed.ended,
        len(samples.chosen_by),
        len(samples.judged_by),
        tuple(_notes(healed, samples, is_builtin=texts is None, recipe=recipe)),
        files,
    )


def _check_recipe(recipe: Recipe, weights: str) -> None:
    for name in ("steps", "texts_per_step", "evaluate_every", "patience"):
        value = getattr(recipe, name)
        if value is not None and value < 1:
            raise InputError(f"{name}={value} must be at least 1.")
    for name in ("minutes", "learning_rate"):
        value = getattr(recipe, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name}={value:g} must be above 0.")
    if weights not in WEIGHTS:
        raise InputError(f"weights={weights!r} must be one of {', '.join(WEIGHTS)}.")


def _samples(checkpoint: Checkpoint, dense: Path, texts: Sequence[str], name: str) -> Samples:
    """The texts to train on and those to choose by, at most as long as both models can read."""
    if not texts:
        raise InputError(
            "There are no texts: the file is empty. Give texts as long as those that the model is to serve."
        )
    config, theirs = checkpoint.config, load_config(dense)
    length = min(checkpoint.family.max_seq_len(config), positions(theirs, dense_family(theirs))[1])
    ids = sampled_ids(checkpoint.directory, texts, length, most=_TEXTS)
    if ids is None:
        raise InputError(
            f"{name} has no tokenizer, and without one no text can be given to it. Put its tokenizer.json beside config.json."
        )
    _check_tokenizer(ids, sampled_ids(dense, texts, length, most=_TEXTS), name, dense)
    attributes = checkpoint.family.layer_attributes(config)
    exact = math.isqrt(min(each.num_blocks for each in attributes)) * 32
    samples = split_to_train(ids, longer_than=exact, tokens=_HELD_OUT_TOKENS)
    if not samples.long_enough:
        raise InputError(
            f"None of the {samples.seen} texts can lose anything: the longest has {samples.longest} tokens, and up to {exact} "
            f"tokens every layer of {name} selects all blocks, so there is nothing to heal. Give texts as long as those that the "
            "model is to serve."
        )
    if not samples.judged_by:
        raise InputError(
            f"Only {samples.long_enough} of the {samples.seen} texts have more than {exact} tokens, from which on anything is "
            "lost, and a fifth of such texts, at least four, has to be held out to judge by. Give 16 of them or more; some hundred "
            "to gain something."
        )
    return samples


def _check_tokenizer(ours: Sequence[Ids], theirs: Sequence[Ids] | None, name: str, dense: Path) -> None:
    """Refuses a teacher that reads texts as other tokens; where the two cut them may differ."""
    if theirs is None:
        raise InputError(
            f"--teacher {dense} has no tokenizer, so nothing shows that it reads texts as {name} does. Put its tokenizer.json "
            "there."
        )
    for a, b in zip(ours, theirs, strict=False):
        shared = min(len(a), len(b)) - (
            1 if len(a) != len(b) else 0
        )  # the last token of a text that was cut is a special one
        if a[:shared] != b[:shared]:
            at = next(place for place in range(shared) if a[place] != b[place])
            raise InputError(
                f"--teacher {dense} reads a text as other tokens than {name} does (token {at} is {b[at]} and {a[at]}). Give the "
                "dense checkpoint that it was made from, with its own tokenizer and default prompt."
            )


def _write(checkpoint: Checkpoint, output: Path, summary: str, *, force: bool) -> tuple[str, ...]:
    """The checkpoint with the weights that the model has now, under the names that it was stored with."""
    stored = read_weights(checkpoint.directory)
    now = checkpoint.model.state_dict()
    prefix = f"{checkpoint.model.base_model_prefix}."
    found = {}
    for name, tensor in stored.items():
        names = (name, prefix + name, name.removeprefix(prefix))
        found[name] = next((now[each].cpu() for each in names if each in now), tensor).clone()
    with staged_directory(output, force=force) as stage:
        shutil.copyfile(checkpoint.directory / "config.json", stage / "config.json")
        copy_as_they_are(checkpoint.directory, stage)
        write_model_card(checkpoint.directory, stage, summary)
        save_weights(found, stage / "model.safetensors")
        return tuple(sorted(p.relative_to(stage).as_posix() for p in stage.rglob("*") if p.is_file()))


def _summary(healed: Healed, samples: Samples, teacher: str) -> str:
    start, best = healed.curve[0], healed.best
    return (
        f"Healed by mra-export {__version__} (`heal`): the weights of the layers were trained for {best.step} steps on "
        f"{len(samples.chosen_by)} texts to give what {teacher} gives, the dense model. On {len(samples.judged_by)} texts that had "
        f"no part in it the cosine of the two rose from {start.mean:.4f} to {best.mean:.4f} on average, from {start.least:.4f} to "
        f"{best.least:.4f} at least"
    )


def _notes(healed: Healed, samples: Samples, *, is_builtin: bool, recipe: Recipe) -> list[str]:
    best, last = healed.best, healed.curve[-1]
    notes = [
        f"{samples.long_enough} of {samples.seen} texts are long enough to lose anything, and only such were used; the longest has "
        f"{samples.longest} tokens."
    ]
    if healed.ended == "patience":
        notes.append(
            f"It ended after step {last.step}: {recipe.patience} evaluations were not better than step {best.step}."
        )
    elif best.step == last.step:
        notes.append("The last evaluation was the best one: more --steps or --minutes may give more.")
    if is_builtin:
        notes.append(
            "Trained and measured on the documentation in Python's standard library, for want of texts of yours: --texts FILE "
            "gives them."
        )
    return notes
