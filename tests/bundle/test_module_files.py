"""The modules' files: their way into a bundle as float32, out of it as float64, and vectors that are cut."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mra_export.bundle.chain import vector_of
from mra_export.bundle.module_files import copy_modules, cut_to, read_steps
from mra_export.checkpoint.modules import Dense, LayerNorm, Module, Normalize, Pooling, Truncate, as_stated
from mra_export.errors import InputError

POOLING = Pooling(("mean",))
DENSE = Dense("2_Dense", 4, 3, activation="Identity")
NORM = LayerNorm("3_LayerNorm", 3)
MODULES: tuple[Module, ...] = (POOLING, DENSE, NORM, Normalize())


def weights(dtype: torch.dtype = torch.float32) -> dict[str, dict[str, torch.Tensor]]:
    """Numbers that bfloat16 holds."""
    dense = {"linear.weight": torch.arange(12.0).reshape(3, 4) / 8, "linear.bias": torch.arange(3.0)}
    norm = {"norm.weight": torch.arange(3.0) + 0.5, "norm.bias": torch.arange(3.0) - 1}
    return {
        folder: {name: value.to(dtype) for name, value in each.items()}
        for folder, each in ((DENSE.folder, dense), (NORM.folder, norm))
    }


def source(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    entries = [
        {"path": ""},
        {"path": "1_Pooling"},
        {"path": DENSE.folder},
        {"path": NORM.folder},
        {"path": "4_Normalize"},
    ]
    for name in ("1_Pooling", DENSE.folder, NORM.folder):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(f'{{"of": "{name}"}}')
    (folder / "config.json").write_text('{"of": "the encoder"}')
    (folder / "modules.json").write_text(json.dumps(entries), encoding="utf-8-sig")
    for name, tensors in weights(dtype).items():
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
    return folder


def copied(source: Path, target: Path) -> list[str]:
    target.mkdir()
    copy_modules(MODULES, source, target)
    return sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())


def test_settings_and_weights_are_copied_as_they_are(tmp_path: Path) -> None:
    given, target = source(tmp_path / "source"), tmp_path / "target"
    names = copied(given, target)
    assert names == [
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "3_LayerNorm/config.json",
        "3_LayerNorm/model.safetensors",
        "config.json",
    ]
    assert all((target / name).read_bytes() == (given / name).read_bytes() for name in names)


def test_what_is_there_already_stays(tmp_path: Path) -> None:
    given, target = source(tmp_path / "source"), tmp_path / "target"
    target.mkdir()
    (target / "config.json").write_text("{}")
    copy_modules(MODULES, given, target)
    assert (target / "config.json").read_text() == "{}"
    assert (target / "2_Dense" / "config.json").read_text() == '{"of": "2_Dense"}'


@pytest.mark.parametrize("kind", ["bfloat16", "one of another type", "pickled"])
def test_weights_of_another_kind_become_float32(kind: str, tmp_path: Path) -> None:
    given = source(tmp_path / "source", torch.bfloat16 if kind == "bfloat16" else torch.float32)
    file = given / DENSE.folder / "model.safetensors"
    if kind == "one of another type":
        save_file({**weights()[DENSE.folder], "linear.bias": torch.arange(3.0).half()}, file)
    elif kind == "pickled":
        file.unlink()
        torch.save(weights()[DENSE.folder], file.with_name("pytorch_model.bin"))
    copied(given, tmp_path / "target")
    for folder, expected in weights().items():
        found = load_file(tmp_path / "target" / folder / "model.safetensors")
        assert found.keys() == expected.keys()
        for name, value in found.items():
            assert value.dtype == torch.float32
            assert torch.equal(value, expected[name])
    assert not list((tmp_path / "target").rglob("*.bin"))


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    given = source(tmp_path / "source")
    (given / NORM.folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="3_LayerNorm"):
        copied(given, tmp_path / "target")


def test_a_model_without_modules_needs_no_files(tmp_path: Path) -> None:
    copy_modules((), tmp_path / "nowhere", tmp_path / "target")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wanted", [1, 2, 3])
def test_a_vector_that_is_cut_has_length_1_again_if_it_had(wanted: int) -> None:
    assert cut_to(MODULES, 3, wanted) == (*MODULES, Truncate(wanted), Normalize())
    assert cut_to(MODULES[:3], 3, wanted) == (*MODULES[:3], Truncate(wanted))
    assert cut_to(MODULES, 3, None) is MODULES
    assert cut_to((), None, None) == ()


@pytest.mark.parametrize(("dimension", "wanted"), [(3, 0), (3, 4), (3, -1), (None, 1)])
def test_dimensions_that_there_are_not(dimension: int | None, wanted: int) -> None:
    modules = MODULES if dimension else ()
    with pytest.raises(
        InputError, match=f"dimensions={wanted} must be from 1 to {dimension}, the numbers of the bundle"
    ):
        cut_to(modules, dimension, wanted)


def test_modules_are_read_with_their_weights(tmp_path: Path) -> None:
    bundle: Any = SimpleNamespace(path=source(tmp_path / "source"), modules=MODULES, dimension=3)
    steps = read_steps(bundle)
    assert [module for module, _ in steps] == [as_stated(module) for module in MODULES]
    assert [sorted(each) for _, each in steps] == [
        [],
        ["linear.bias", "linear.weight"],
        ["norm.bias", "norm.weight"],
        [],
    ]
    assert {value.dtype for _, each in steps for value in each.values()} == {np.dtype(np.float64)}
    cut = read_steps(bundle, 2)
    assert [module["kind"] for module, _ in cut] == [
        "Pooling",
        "Dense",
        "LayerNorm",
        "Normalize",
        "Truncate",
        "Normalize",
    ]
    states = np.arange(8, dtype=np.float32).reshape(2, 4)
    linear = weights()[DENSE.folder]["linear.weight"].numpy() @ states.mean(axis=0) + np.arange(3)
    expected = (linear - linear.mean()) / np.sqrt(linear.var() + 1e-5) * (np.arange(3) + 0.5) + np.arange(3) - 1
    np.testing.assert_allclose(vector_of(states, steps), expected / np.linalg.norm(expected), rtol=1e-6)
    np.testing.assert_allclose(vector_of(states, cut), expected[:2] / np.linalg.norm(expected[:2]), rtol=1e-6)
