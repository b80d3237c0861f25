"""Training: it helps, it is the same after a kill, and its end is the best step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fidelity_support import letters

from mra_export.checkpoint.from_dense.convert import from_dense
from mra_export.checkpoint.load import load_checkpoint
from mra_export.errors import InputError
from mra_export.fidelity import healing as module
from mra_export.fidelity.distillation import Student, Teacher
from mra_export.fidelity.healing import Healed, Recipe, heal_on
from mra_export.fidelity.memory import Memory, memory_path
from mra_export.fidelity.samples import Ids, sampled_ids

RECIPE = Recipe(8, None, 3, 3e-4, 2, 10)


class Killed(BaseException):
    """As by a kill: nothing is cleaned up for it but what an exception does."""


@pytest.fixture(scope="module")
def small(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("small") / "mra"
    from_dense(dense, output, block_per_row=1)
    return output


@pytest.fixture(scope="module")
def ids(dense: Path) -> list[Ids]:
    return sampled_ids(dense, letters([160, 150, 155, 158, 140, 145, 152, 159, 130, 135]), 256) or []


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def healed(
    small: Path, dense: Path, ids: list[Ids], output: Path, recipe: Recipe = RECIPE, said: Any = lambda _: None
) -> tuple[Healed, dict[str, torch.Tensor]]:
    student = Student(load_checkpoint(small), "cpu", "all")
    teacher = Teacher(dense, "cpu", embedding=True)
    with Memory.open(output, {"recipe": str(recipe)}) as memory:
        found = heal_on(student, teacher, ids[:6], ids[6:], recipe, memory, said)
    return found, {name: weight.detach().clone() for name, weight in student.moving.items()}


def test_the_rate_rises_and_falls() -> None:
    recipe = Recipe(100, 10.0, 8, 1e-3, 1, 1)
    assert [recipe.rate(done) for done in (0.0, 0.05, 0.1)] == pytest.approx([0, 5e-4, 1e-3])
    assert [recipe.rate(done) for done in (0.55, 1.0, 1.2)] == pytest.approx([5e-4, 0, 0])
    assert recipe.done(50, 60.0) == 0.5
    assert recipe.done(50, 540.0) == 0.9
    assert Recipe(None, 10.0, 8, 1e-3, 1, 1).done(10**6, 300.0) == 0.5


def test_each_text_has_its_turn() -> None:
    taken = [place for step in range(10) for place in module._texts_of(step, 3, 6)]
    assert all(sorted(taken[at : at + 6]) == list(range(6)) for at in range(0, 30, 6))
    assert len({tuple(taken[at : at + 6]) for at in range(0, 30, 6)}) > 1
    assert sorted(module._texts_of(0, 8, 3)) == [0, 1, 2]


def test_it_heals(small: Path, dense: Path, ids: list[Ids], tmp_path: Path) -> None:
    said: list[str] = []
    found, weights = healed(small, dense, ids, tmp_path / "mra", said=said.append)
    assert [point.step for point in found.curve] == [0, 2, 4, 6, 8]
    assert found.best == max(found.curve, key=lambda point: point.mean)
    assert found.best.step > 0
    assert found.best.mean > found.curve[0].mean
    assert found.best.least >= found.curve[0].least
    assert found.curve[0].loss is None
    losses = [point.loss for point in found.curve[1:] if point.loss is not None]
    assert losses[-1] < losses[0]
    assert found.ended == "steps"
    assert said[-1].startswith("step 8 of 8: mean cosine ")
    assert not memory_path(tmp_path / "mra").exists()
    start = dict(Student(load_checkpoint(small), "cpu", "all").moving)
    assert all(not torch.equal(weights[name], start[name]) for name in start)
    # The weights are those of the best step: evaluated again they give its figures.
    again = Student(load_checkpoint(small), "cpu", "all")
    module._put(again.moving, weights)
    with Memory.open(tmp_path / "again", {}) as memory:
        run = module._Run(again, Teacher(dense, "cpu", embedding=True), ids[:6], ids[6:], RECIPE, memory, said.append)
        run._evaluate()
    assert run.progress.curve[0].mean == pytest.approx(found.best.mean, abs=1e-9)


@pytest.mark.parametrize("how", [Killed, KeyboardInterrupt])
def test_after_an_interruption_it_gives_the_same(
    small: Path,
    dense: Path,
    ids: list[Ids],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_thread: None,
    how: Any,
) -> None:
    whole, weights = healed(small, dense, ids, tmp_path / "whole")
    monkeypatch.setattr(module, "_SAVE_SECONDS", 0.0)
    run = Teacher.run
    calls: list[int] = []

    def stopping(self: Teacher, batch: Any) -> Any:
        calls.append(1)
        if len(calls) == stop:
            raise how
        return run(self, batch)

    monkeypatch.setattr(Teacher, "run", stopping)
    stop = 7
    with pytest.raises(how) as raised:
        healed(small, dense, ids, tmp_path / "mra")
    assert memory_path(tmp_path / "mra").is_dir()
    if how is KeyboardInterrupt:
        assert "steps are kept in" in str(raised.value)
    stop = 0
    said: list[str] = []
    found, again = healed(small, dense, ids, tmp_path / "mra", said=said.append)
    assert said[0].startswith("going on after step ")
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert [(point.step, point.mean, point.loss) for point in found.curve] == [
        (point.step, point.mean, point.loss) for point in whole.curve
    ]
    assert list(tmp_path.glob(".*")) == []


def test_an_interruption_amid_an_update_is_not_kept(
    small: Path, dense: Path, ids: list[Ids], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: Any, closure: Any = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", stopped)
    with pytest.raises(KeyboardInterrupt) as raised:
        healed(small, dense, ids, tmp_path / "mra")
    assert "kept" not in str(raised.value)
    assert list(tmp_path.glob(".*")) == []


def test_it_ends_when_nothing_gets_better(small: Path, dense: Path, ids: list[Ids], tmp_path: Path) -> None:
    recipe = Recipe(1000, None, 3, 100.0, 1, 3)  # a rate that destroys the model
    found, weights = healed(small, dense, ids, tmp_path / "mra", recipe)
    assert found.ended == "patience"
    assert (found.best.step, len(found.curve)) == (0, 4)
    start = Student(load_checkpoint(small), "cpu", "all").moving
    assert all(torch.equal(weights[name], start[name]) for name in start)


def test_it_ends_by_the_clock(
    small: Path, dense: Path, ids: list[Ids], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 7.0
        return now[0]

    monkeypatch.setattr(module.time, "monotonic", clock)
    found, _ = healed(small, dense, ids, tmp_path / "mra", Recipe(None, 1.0, 2, 1e-4, 100, 3))
    assert found.ended == "minutes"
    assert 0 < found.curve[-1].step < 10


def test_no_space(small: Path, dense: Path, ids: list[Ids], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SAVE_SECONDS", 0.0)

    def full(state: Any, file: Any) -> None:
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos")  # noqa: B904  (as torch's writer does it)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="could not be written: No space left on device"):
        healed(small, dense, ids, tmp_path / "mra")
