"""Trains an MRA model until it gives a dense model's vectors again: steps, evaluation on held-out texts, and what outlives a kill.

Nothing is drawn at random but the order of the texts, which follows from the step, and dropout is off: the weights, the optimizer's
moments and the step are the whole state.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.fidelity.distillation import Student, Teacher, distance
from mra_export.fidelity.samples import batches_of, to_device
from mra_export.fidelity.search import agreement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from mra_export.fidelity.memory import Memory
    from mra_export.fidelity.samples import Batch, Ids

__all__ = ["Healed", "Point", "Recipe", "heal_on"]

_STATE = "state.pt"
_SAVE_SECONDS = 120.0
"""What a kill costs at most; an interruption costs nothing."""
_WARM_UP = 0.1
"""Of the budget: the first steps at the full rate hurt, since AdamW knows no size of gradients yet."""
_CLIP = 1.0
"""The most that the norm of all gradients may be."""
_GPU_TOKENS = 2**15
"""Tokens of a batch on a GPU."""


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        steps: of the optimizer; None where minutes alone end it.
        minutes: after which it ends, None for no limit.
        texts_per_step: whose gradients are summed for a step.
        learning_rate: at its highest; it rises over the first tenth and falls to 0 as a cosine.
        evaluate_every: steps from one evaluation to the next.
        patience: evaluations without a better one after which it ends.
    """

    steps: int | None
    minutes: float | None
    texts_per_step: int
    learning_rate: float
    evaluate_every: int
    patience: int

    def done(self, steps: int, seconds: float) -> float:
        """The share of the budget that is spent."""
        shares = [0.0]
        if self.steps is not None:
            shares.append(steps / self.steps)
        if self.minutes is not None:
            shares.append(seconds / 60 / self.minutes)
        return max(shares)

    def rate(self, done: float) -> float:
        """The learning rate at a share of the budget."""
        if done < _WARM_UP:
            return self.learning_rate * done / _WARM_UP
        return self.learning_rate * (1 + math.cos(math.pi * (min(done, 1) - _WARM_UP) / (1 - _WARM_UP))) / 2


@dataclass(frozen=True)
class Point:
    """An evaluation on the held-out texts.

    Attributes:
        step: after which.
        mean: cosine with the teacher's vectors.
        low: what 5 % of the texts are below.
        least: the smallest.
        loss: of the training texts since the evaluation before, a mean; None at the start.
        seconds: of training until then.
    """

    step: int
    mean: float
    low: float
    least: float
    loss: float | None
    seconds: float


@dataclass(frozen=True)
class Healed:
    """What came of it.

    Attributes:
        curve: the evaluations, that of the start first.
        best: of them the one whose weights are kept: the highest mean among those whose least is not below the start's.
        ended: why it ended: "steps", "minutes" or "patience".
    """

    curve: tuple[Point, ...]
    best: Point
    ended: str


@dataclass(frozen=True)
class _Progress:
    """All that changes but the weights and the optimizer; replaced as a whole, so that no interruption comes between."""

    step: int = 0
    seconds: float = 0.0
    losses: tuple[float, ...] = ()
    curve: tuple[Point, ...] = ()
    best: Point | None = None
    best_weights: dict[str, Tensor] | None = None


def heal_on(
    student: Student,
    teacher: Teacher,
    texts: Sequence[Ids],
    held_out: Sequence[Ids],
    recipe: Recipe,
    memory: Memory,
    say: Callable[[str], None] = lambda _: None,
) -> Healed:
    """Trains a student, and leaves it with the weights that were best on the held-out texts.

    Args:
        student: the MRA model.
        teacher: the dense one.
        texts: to train on.
        held_out: to choose the step by, none of them among the others.
        recipe: how.
        memory: of the output; what was done is kept there, and gone on with.
        say: called with a line now and then.

    Raises:
        KeyboardInterrupt: it was interrupted; the text says what is kept.
        InputError: what was done cannot be written.
    """
    run = _Run(student, teacher, texts, held_out, recipe, memory, say)
    with _deterministic():
        return run.go()


class _Run:
    """One training."""

    def __init__(
        self,
        student: Student,
        teacher: Teacher,
        texts: Sequence[Ids],
        held_out: Sequence[Ids],
        recipe: Recipe,
        memory: Memory,
        say: Callable[[str], None],
    ) -> None:
        import torch

        self.student, self.teacher, self.recipe, self.memory, self.say = student, teacher, recipe, memory, say
        self.texts = texts
        self.held_out = self._batches(held_out)
        self.optimizer = torch.optim.AdamW(student.moving.values(), lr=0.0, weight_decay=0.0)
        self.progress = _Progress()
        self.is_whole = True
        self.kept = 0
        self._wanted: list[Tensor] = []

    def _batches(self, ids: Sequence[Ids]) -> list[Batch]:
        if self.student.device == "cpu":
            return batches_of(ids)
        return [to_device(batch, self.student.device) for batch in batches_of(ids, tokens=_GPU_TOKENS)]

    def go(self) -> Healed:
        self._restore()
        begun = time.monotonic() - self.progress.seconds
        saved = time.monotonic()
        try:
            while (ended := self._ended()) is None:
                self._step()
                self.progress = replace(self.progress, seconds=time.monotonic() - begun)
                if time.monotonic() - saved >= _SAVE_SECONDS:
                    self._save()
                    saved = time.monotonic()
        except KeyboardInterrupt as error:
            if self.is_whole:
                self._save()
            if not self.kept:
                raise
            kept = f"Interrupted; {self.kept} steps are kept in {self.memory.path}: the same command goes on."
            raise KeyboardInterrupt(kept) from error
        self._save()  # a disk that is full when the output is written costs no step
        assert self.progress.best is not None
        assert self.progress.best_weights is not None
        _put(self.student.moving, self.progress.best_weights)
        return Healed(self.progress.curve, self.progress.best, ended)

    def _ended(self) -> str | None:
        """Why it is at its end, after an evaluation where one is due."""
        now, recipe = self.progress, self.recipe
        over = recipe.done(now.step, now.seconds) >= 1
        if (now.step % recipe.evaluate_every == 0 or over) and (not now.curve or now.curve[-1].step != now.step):
            self._evaluate()
            now = self.progress
        if over:
            return "steps" if recipe.steps is not None and now.step >= recipe.steps else "minutes"
        assert now.best is not None
        later = sum(point.step > now.best.step for point in now.curve)
        return "patience" if later >= recipe.patience else None

    def _step(self) -> None:
        import torch

        now, recipe, device = self.progress, self.recipe, self.student.device
        chosen = _texts_of(now.step, recipe.texts_per_step, len(self.texts))
        self.optimizer.zero_grad()
        loss = 0.0
        for batch in self._batches([self.texts[place] for place in chosen]):
            theirs = self.teacher.run(batch)
            with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
                ours = self.student.run(batch)
            part = distance(ours, theirs, batch.mask) / len(chosen)
            part.backward()
            loss += float(part.detach())
        torch.nn.utils.clip_grad_norm_(self.student.moving.values(), _CLIP)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(max(recipe.done(now.step + 1, now.seconds), 1e-3))
        self.is_whole = False  # from here to the end an interruption leaves some of the weights a step ahead
        self.optimizer.step()
        self.progress = replace(now, step=now.step + 1, losses=(*now.losses, loss))
        self.is_whole = True

    def _evaluate(self) -> None:
        import torch

        now, values = self.progress, []
        with torch.no_grad():
            if not self._wanted:
                self._wanted = [self.teacher.run(batch)[1] for batch in self.held_out]
            for batch, wanted in zip(self.held_out, self._wanted, strict=True):
                ours = self.student.run(batch)[1].double()
                values.append(torch.nn.functional.cosine_similarity(ours, wanted.double()).cpu().numpy())
        found = agreement(np.concatenate(values))
        loss = float(np.mean(now.losses)) if now.losses else None
        point = Point(now.step, found.mean, found.low, found.least, loss, now.seconds)
        start = now.curve[0] if now.curve else point
        best, weights = now.best, now.best_weights
        if best is None or (point.mean > best.mean and point.least >= start.least):
            best = point
            weights = {name: weight.detach().clone() for name, weight in self.student.moving.items()}
        self.progress = replace(now, losses=(), curve=(*now.curve, point), best=best, best_weights=weights)
        trained = "" if loss is None else f", loss {loss:.4f}"
        self.say(
            f"step {now.step}{self._of()}: mean cosine {found.mean:.4f}, least {found.least:.4f}{trained}; best {best.mean:.4f} "
            f"at step {best.step}"
        )

    def _of(self) -> str:
        return f" of {self.recipe.steps}" if self.recipe.steps is not None else ""

    def _save(self) -> None:
        import torch

        now = self.progress
        if now.step == self.kept:
            return
        state = {
            "step": now.step,
            "seconds": now.seconds,
            "losses": list(now.losses),
            "curve": [asdict(point) for point in now.curve],
            "best": None if now.best is None else asdict(now.best),
            "best_weights": now.best_weights,
            "weights": {name: weight.detach() for name, weight in self.student.moving.items()},
            "optimizer": self.optimizer.state_dict(),
        }
        self.memory.write(_STATE, lambda file: torch.save(state, file), f"{now.step} steps")
        self.kept = now.step

    def _restore(self) -> None:
        import torch

        path = self.memory.path / _STATE
        if not path.is_file():
            return
        state: dict[str, Any] = torch.load(path, map_location=self.student.device, weights_only=True)
        _put(self.student.moving, state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = _Progress(
            state["step"],
            state["seconds"],
            tuple(state["losses"]),
            tuple(Point(**point) for point in state["curve"]),
            None if state["best"] is None else Point(**state["best"]),
            state["best_weights"],
        )
        self.kept = self.progress.step
        self.say(f"going on after step {self.progress.step}{self._of()}, which an earlier run left")


def _texts_of(step: int, count: int, texts: int) -> list[int]:
    """The texts of a step: all of them in an order of chance, then in another one, and so on."""
    orders: dict[int, list[int]] = {}
    found = []
    for place in range(step * count, (step + 1) * count):
        turn, at = divmod(place, texts)
        if turn not in orders:
            orders[turn] = list(range(texts))
            random.Random(turn).shuffle(orders[turn])
        found.append(orders[turn][at])
    return list(dict.fromkeys(found))


def _put(weights: dict[str, Any], values: dict[str, Tensor]) -> None:
    import torch

    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(values[name])


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Sums in one order, where torch has one."""
    import torch

    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
