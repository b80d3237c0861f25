"""What teacher and student compute, how far they are apart, and which pairs are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fidelity_support import LAYERS, letters

from mra_export.checkpoint.from_dense.convert import from_dense
from mra_export.checkpoint.load import Checkpoint, load_checkpoint
from mra_export.errors import InputError
from mra_export.fidelity.distillation import Student, Teacher, distance, load_pair
from mra_export.fidelity.layered import LayeredModel
from mra_export.fidelity.samples import Batch, batches_of, sampled_ids


@pytest.fixture
def batches(dense: Path) -> list[Batch]:
    return batches_of(sampled_ids(dense, letters([250, 245, 90]), 256) or [])


@pytest.fixture(scope="module")
def small(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("small") / "mra"
    from_dense(dense, output, block_per_row=2)
    return output


def test_student_and_teacher_are_the_models(small: Path, dense: Path, batches: list[Batch]) -> None:
    teacher, student = Teacher(dense, "cpu", embedding=True), Student(load_checkpoint(small), "cpu", "all")
    layered = LayeredModel(load_checkpoint(small))
    for batch in batches:
        with torch.no_grad():
            found = student.run(batch)[1].numpy(), teacher.run(batch)[1].numpy()
        for vectors, expected in zip(found, layered.vectors(batch, [student.plan, None]), strict=True):
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_with_all_blocks_nothing_is_apart(full: Checkpoint, dense: Path, batches: list[Batch]) -> None:
    teacher, student = Teacher(dense, "cpu", embedding=True), Student(full, "cpu", "all")
    for batch in batches:
        with torch.no_grad():
            ours = student.run(batch)
        assert len(ours[0]) == LAYERS
        assert float(distance(ours, teacher.run(batch), batch.mask)) == pytest.approx(0, abs=1e-5)


def test_distance() -> None:
    """By hand, of two texts of which one has padding."""
    mask = torch.tensor([[1, 1], [1, 0]])
    theirs = [torch.ones(2, 2, 2), 2 * torch.ones(2, 2, 2)]
    ours = [torch.ones(2, 2, 2), 2 * torch.ones(2, 2, 2)]
    ours[0][0, 0, 0] = 3.0  # 4 of 4 ones
    ours[1][1, 0, 1] = 4.0  # 4 of 2 fours
    ours[1][1, 1] = 99.0  # padding
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = distance((ours, vectors[0]), (theirs, vectors[1]), mask)
    assert float(found) == pytest.approx((4 / 4 + 4 / 8) / 2 + 10 * 1)


@pytest.mark.parametrize(
    ("which", "moved"),
    [
        ("all", {"attention", "intermediate", "output"}),
        ("attention", {"attention"}),
        ("last", {"attention", "intermediate", "output"}),
    ],
)
def test_what_moves(small: Path, dense: Path, batches: list[Batch], which: str, moved: set[str]) -> None:
    checkpoint = load_checkpoint(small)
    teacher, student = Teacher(dense, "cpu", embedding=True), Student(checkpoint, "cpu", which)
    batch = batches[-1]
    distance(student.run(batch), teacher.run(batch), batch.mask).backward()
    parts = [name.split(".") for name in student.moving]
    assert {part[3] for part in parts} == moved
    assert {int(part[2]) for part in parts} == ({1, 2} if which == "last" else {0, 1, 2})
    of_model = dict(checkpoint.model.named_parameters())
    assert all(
        weight is of_model[name] and bool(weight.grad.abs().sum() > 0) for name, weight in student.moving.items()
    )
    assert all(weight.grad is None for name, weight in of_model.items() if name not in student.moving)


def test_blocks_are_selected_in_float32_under_autocast(small: Path, dense: Path, batches: list[Batch]) -> None:
    student, teacher = Student(load_checkpoint(small), "cpu", "all"), Teacher(dense, "cpu", embedding=True)
    batch = batches[-1]
    plain = student.run(batch)[1].detach()
    with torch.autocast("cpu", torch.bfloat16):
        ours = student.run(batch)
    cosine = torch.nn.functional.cosine_similarity(ours[1].detach(), plain)
    assert float(cosine.min()) > 0.99
    distance(ours, teacher.run(batch), batch.mask).backward()
    assert all(bool(torch.isfinite(weight.grad).all()) for weight in student.moving.values())


def edited(source: Path, target: Path, **settings: object) -> Path:
    shutil.copytree(source, target)
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return target


def test_pairs_that_are_refused(small: Path, dense: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is of model_type 'bert', and only MRA checkpoints can be healed"):
        load_pair(dense, dense)
    with pytest.raises(InputError, match="is of model_type 'mra', and a teacher is one of bert"):
        load_pair(small, small)
    with pytest.raises(InputError, match=r"has num_hidden_layers=2, .* has 3: the one was not made from the other"):
        load_pair(small, edited(dense, tmp_path / "fewer", num_hidden_layers=2))
    with pytest.raises(InputError, match="does not exist"):
        load_pair(small, tmp_path / "no/such/model")
    adapted = edited(dense, tmp_path / "adapted")
    (adapted / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="Merge the two first"):
        load_pair(small, adapted)
