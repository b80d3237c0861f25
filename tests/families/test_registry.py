"""The families of models: each is one module that the commands find by themselves, and none of them is in the commands."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoints import save_checkpoint

import mra_export.families as package
from mra_export.checkpoint.load import load_checkpoint
from mra_export.checkpoint.tasks import TASKS
from mra_export.errors import InputError
from mra_export.export.exporter import export_onnx
from mra_export.export.onnx_model import read_onnx
from mra_export.families._base import Family, Option, read_options
from mra_export.families._registry import families, family_named, family_of
from mra_export.pipeline.check import check

SOURCES = Path(package.__file__).parents[1]


def test_every_module_is_a_family() -> None:
    found = families()
    assert next(iter(found)) == "mra"
    assert {"mra", "roberta-prelayernorm"} <= set(found)
    modules = {p.stem for p in (SOURCES / "families").glob("[!_]*.py")}
    assert len(modules) == len(found)
    for model_type, family in found.items():
        assert isinstance(family, Family)
        assert family.model_type == model_type
        assert family_named(model_type) is family
        assert set(family.tasks) <= set(TASKS)
        assert family.min_opset <= family.default_opset
    assert len({family.operator for family in found.values()}) == len(found)


TOY = """
from mra_export.families.mra import MraFamily

class ToyFamily(MraFamily):
    model_type = "toy"
    title = "Toy"

FAMILY = ToyFamily()
"""


def test_a_module_is_all_that_a_family_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_family.py").write_text(TOY)
    (tmp_path / "_private.py").write_text("raise RuntimeError")
    families.cache_clear()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
            assert family_of(SimpleNamespace(model_type="toy")).title == "Toy"
            with pytest.raises(InputError, match=r"model_type 'gpt2' is not one .*\(mra, .*toy.*\)"):
                family_named("gpt2")
    finally:
        families.cache_clear()
    with pytest.raises(InputError, match="from-dense"):
        family_named("roberta")
    with pytest.raises(InputError, match="'toy' is not one"):
        family_named("toy")


def at_least_one(value: object) -> None:
    if int(str(value)) < 1:
        raise InputError(f"option rounds={value} must be at least 1.")


def test_options_have_defaults_and_types() -> None:
    toy = SimpleNamespace(
        title="Toy", options={"rounds": Option(3, "how often", at_least_one), "name": Option("x", "of it")}
    )
    assert read_options(toy, {}) == {"rounds": 3, "name": "x"}  # type: ignore[arg-type]
    assert read_options(toy, {"rounds": "5"}) == {"rounds": 5, "name": "x"}  # type: ignore[arg-type]
    for given, message in (
        ({"round": "1"}, r"Toy has no option round. Its options: rounds \(how often\); name \(of it\)"),
        ({"rounds": "many"}, "option rounds='many' must be of type int"),
        ({"rounds": 0}, "option rounds=0 must be at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            read_options(toy, given)  # type: ignore[arg-type]


@pytest.mark.slow
def test_options_are_noted_in_the_file_and_compared(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(families()["mra"]), "options", {"rounds": Option(3, "how often")})
    loaded = load_checkpoint(tiny_checkpoint, options={"rounds": "4"})
    assert loaded.options == {"rounds": 4}
    model = export_onnx(loaded, tmp_path / "o").model
    assert read_onnx(model).options == {"rounds": 4}
    with pytest.raises(
        InputError, match=r"with rounds=4, the checkpoint was loaded with rounds=3\. Add --option rounds=4"
    ):
        check(load_checkpoint(tiny_checkpoint), [model])


def test_a_file_of_another_family_is_refused(tiny_export: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "c"))
    other = dataclasses.replace(checkpoint, family=families()["roberta-prelayernorm"])
    with pytest.raises(InputError, match="is a MRA model, the checkpoint a RoBERTa-PreLayerNorm model"):
        check(other, [tiny_export / "onnx" / "model.onnx"])
    with pytest.raises(InputError, match="MRA has no head for text-generation"):
        load_checkpoint(tmp_path / "c", task="text-generation")
