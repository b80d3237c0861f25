"""Budgets of single layers: read from config.json, refused where they are wrong, and honoured by everything that runs a model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoints import save_checkpoint

from mra_export.checkpoint.load import Checkpoint, load_checkpoint
from mra_export.errors import InputError
from mra_export.export.exporter import export_onnx
from mra_export.export.onnx_model import MODEL_FILE, read_onnx
from mra_export.families._mra_budgets import as_stated, check_budgets
from mra_export.families.mra import FAMILY
from mra_export.parity.cases import build_cases
from mra_export.pipeline.bench import _budget
from mra_export.pipeline.check import check, check_alone
from mra_export.pipeline.match import match_engine
from mra_export.runners.torch import SpecificationRunner, TransformersRunner

BUDGETS = {
    "num_blocks": [9, 40],
    "initial_prior_first_n_blocks": [1, 0],
    "initial_prior_diagonal_n_blocks": [0, 3],
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("budgets") / "c", mra_export=BUDGETS)


@pytest.fixture(scope="module")
def checkpoint(directory: Path) -> Checkpoint:
    return load_checkpoint(directory)


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(checkpoint, tmp_path_factory.mktemp("budgets") / "onnx").directory


def config(**settings: Any) -> Any:
    common = {"num_hidden_layers": 2, "max_position_embeddings": 100}
    return SimpleNamespace(**{**common, **settings})


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ([1, 2], r"mra_export=\[1, 2\] must be an object"),
        ({"blocks": [1, 2]}, "mra_export.blocks is not known here; num_blocks, initial_prior_first_n_blocks"),
        ({"num_blocks": 4}, "mra_export.num_blocks=4 must be a list of 2 integers"),
        ({"num_blocks": [4]}, r"num_blocks=\[4\] must be a list of 2 integers"),
        ({"num_blocks": [4, 4, 4]}, "must be a list of 2 integers"),
        ({"num_blocks": [4, 4.0]}, r"num_blocks=4.0 of layer 1 must be an integer"),
        ({"num_blocks": [True, 4]}, "num_blocks=true of layer 0 must be an integer"),
        ({"num_blocks": [4, 0]}, "num_blocks=0 of layer 1 must be between 1 and 16, all blocks of 100 tokens"),
        ({"num_blocks": [17, 4]}, "num_blocks=17 of layer 0 must be between 1 and 16"),
        ({"initial_prior_first_n_blocks": [0, -1]}, "first_n_blocks=-1 of layer 1 must be between 0 and"),
    ],
)
def test_wrong_budgets_are_refused(stated: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_budgets(config(mra_export=stated))


def test_wrong_budgets_are_refused_where_a_checkpoint_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be a list of 2 integers"):
        load_checkpoint(save_checkpoint(tmp_path / "c", mra_export={"num_blocks": [9]}))


def test_budgets_that_are_right_pass_up_to_the_last_block_that_is_not_whole() -> None:
    check_budgets(config(mra_export={"num_blocks": [1, 16]}))
    check_budgets(config(mra_export={}))
    check_budgets(config())


def test_each_layer_has_its_own(checkpoint: Checkpoint) -> None:
    found = checkpoint.family.layer_attributes(checkpoint.config)
    assert as_stated(found) == BUDGETS
    assert {each.scale for each in found} == {FAMILY.attributes(checkpoint.config).scale}


def test_a_field_that_is_left_out_is_that_of_all_layers(tiny_checkpoint: Path) -> None:
    plain = load_checkpoint(tiny_checkpoint)
    common = FAMILY.attributes(plain.config)
    assert FAMILY.layer_attributes(plain.config) == [common, common]
    plain.config.mra_export = {"initial_prior_diagonal_n_blocks": [0, 5]}
    assert as_stated(FAMILY.layer_attributes(plain.config)) == {
        "num_blocks": [common.num_blocks] * 2,
        "initial_prior_first_n_blocks": [0, 0],
        "initial_prior_diagonal_n_blocks": [0, 5],
    }


def test_transformers_computes_with_them(checkpoint: Checkpoint, tiny_checkpoint: Path) -> None:
    """The same weights with one budget for all layers give something else, so the comparison says something."""
    case = next(case for case in build_cases(checkpoint)[0] if case.seq_len > 200)
    expected = SpecificationRunner(checkpoint).run(case.inputs)["last_hidden_state"]
    actual = TransformersRunner(checkpoint).run(case.inputs)["last_hidden_state"]
    other = SpecificationRunner(load_checkpoint(tiny_checkpoint)).run(case.inputs)["last_hidden_state"]
    keep = case.inputs["attention_mask"].astype(bool)
    assert np.abs(actual - expected)[keep].max() < 1e-4
    assert np.abs(other - expected)[keep].max() > 1e-2


def test_an_exported_file_has_them_and_passes_its_checks(checkpoint: Checkpoint, exported: Path) -> None:
    model = read_onnx(exported / MODEL_FILE)
    assert as_stated(model.attributes) == BUDGETS
    assert model.stated_attributes == [each.as_dict() for each in model.attributes]
    assert json.loads((exported / "config.json").read_text())["mra_export"] == BUDGETS
    for comparison in [*check(checkpoint, [model.path]), *check_alone(model)]:
        assert comparison.ok, comparison


def test_a_file_of_other_budgets_is_refused(exported: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(InputError, match=r"num_blocks=9 at layer 0, but the checkpoint asks for 32"):
        check(load_checkpoint(tiny_checkpoint), [exported / MODEL_FILE])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([0, 1], None),
        ([1, 1], "num_blocks=40 at layer 0, but the checkpoint asks for 9"),
        ([0], "num_blocks=9 at layer 1, but the checkpoint asks for 40"),
        ([0, 1, 1], "states the attributes of 3 attention layers, the checkpoint has 2"),
    ],
)
def test_an_engine_is_held_against_them(checkpoint: Checkpoint, layers: list[int], message: str | None) -> None:
    """An entry for each layer, or one for all of them."""
    own = [each.as_dict() for each in FAMILY.layer_attributes(checkpoint.config)]
    manifest = SimpleNamespace(
        plugin_name=FAMILY.plugin, attributes=[own[i] for i in layers], plugin_layers=2, task=None
    )
    runner: Any = SimpleNamespace(manifest=manifest, engine=Path("m.engine"))
    if message is None:
        match_engine(checkpoint, runner)
        return
    with pytest.raises(InputError, match=re.escape(message)):
        match_engine(checkpoint, runner)


def test_bench_shows_their_mean(exported: Path) -> None:
    model = read_onnx(exported / MODEL_FILE)
    assert _budget(model, 256) == ((9 / 8 + 40 / 8) / 2, 8)
    assert _budget(model, 128) == ((9 / 4 + 4) / 2, 4)
    assert _budget(model, 96) == (3.0, 3)
