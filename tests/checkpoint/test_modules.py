"""What follows the encoder: read from sentence-transformers' files, computed by its definition, and written again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_support import write_files
from safetensors.torch import load_file
from sentence_support import listing, save_dense, save_norm

from mra_export.checkpoint.module_files import write_modules
from mra_export.checkpoint.module_torch import as_torch
from mra_export.checkpoint.modules import (
    POOLING_FLAGS,
    POOLING_MODES,
    Dense,
    LayerNorm,
    Module,
    Normalize,
    Pooling,
    Truncate,
    as_pooling,
    as_stated,
    from_pooling,
    module_from,
    override_normalize,
    read_modules,
    width_of,
)
from mra_export.errors import InputError

HIDDEN = [[[1.0, -2.0], [3.0, 4.0], [5.0, 0.0], [9.0, 9.0]]]
"""One text of three tokens and one of padding."""
MASK = [[1, 1, 1, 0]]
POOLED = {
    "cls": [1.0, -2.0],
    "max": [5.0, 4.0],
    "mean": [3.0, 2 / 3],
    "mean_sqrt_len_tokens": [9 / math.sqrt(3), 2 / math.sqrt(3)],
    "weightedmean": [(1 + 6 + 15) / 6, (-2 + 8) / 6],
    "lasttoken": [5.0, 0.0],
}


def run(modules: tuple[Module, ...], directory: Path, hidden: Any = HIDDEN, mask: Any = MASK) -> list[float]:
    return as_torch(modules, directory)(torch.tensor(hidden), torch.tensor(mask))[0].tolist()


def write(directory: Path, kinds: list[str], configs: dict[str, Any]) -> Path:
    """A directory with these modules after the Transformer."""
    folders = [(f"{index}_{kind}", kind) for index, kind in enumerate(kinds, start=1)]
    write_files(directory, {"modules.json": listing([("", "Transformer"), *folders])})
    write_files(directory, {f"{name}/config.json": config for name, config in configs.items()})
    return directory


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_every_pooling_leaves_padding_out(mode: str, tmp_path: Path) -> None:
    assert run((Pooling((mode,)),), tmp_path) == pytest.approx(POOLED[mode])


def test_several_modes_are_concatenated_in_their_order(tmp_path: Path) -> None:
    assert run((Pooling(("lasttoken", "cls")),), tmp_path) == [*POOLED["lasttoken"], *POOLED["cls"]]


def test_the_last_token_is_the_last_one_that_counts(tmp_path: Path) -> None:
    assert run((Pooling(("lasttoken",)),), tmp_path, mask=[[1, 0, 1, 0]]) == POOLED["lasttoken"]


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        ({"pooling_mode_cls_token": True}, ("cls",)),
        ({"pooling_mode_mean_sqrt_len_tokens": True, "pooling_mode_mean_tokens": False}, ("mean_sqrt_len_tokens",)),
        ({"pooling_mode_lasttoken": True, "pooling_mode_cls_token": True}, ("cls", "lasttoken")),
        (dict.fromkeys(reversed(POOLING_FLAGS), True), POOLING_MODES),
        ({"pooling_mode": "max"}, ("max",)),
        ({"pooling_mode": ["mean", "cls"]}, ("mean", "cls")),
        ({"pooling_mode": "max", "pooling_mode_mean_tokens": True}, ("max",)),
        ({"pooling_mode_mean_tokens": False}, ("mean",)),
        ({"word_embedding_dimension": 2}, ("mean",)),
    ],
)
def test_pooling_is_read_in_both_forms(config: dict[str, Any], modes: tuple[str, ...], tmp_path: Path) -> None:
    assert read_modules(write(tmp_path, ["Pooling"], {"1_Pooling": config})) == ((Pooling(modes),), [])


@pytest.mark.parametrize(
    "kind", ["sentence_transformers.models.{}", "sentence_transformers.sentence_transformer.modules.x.{}"]
)
def test_the_whole_chain_is_read(kind: str, tmp_path: Path) -> None:
    kinds = ["Pooling", "Dropout", "Dense", "LayerNorm", "Normalize"]
    write(
        tmp_path,
        kinds,
        {"1_Pooling": {"pooling_mode_max_tokens": True, "include_prompt": False}, "2_Dropout": {"dropout": 0.5}},
    )
    entries = json.loads((tmp_path / "modules.json").read_text())
    for entry in entries:
        entry["type"] = kind.format(entry["type"].rpartition(".")[2])
    write_files(tmp_path, {"modules.json": entries})
    save_dense(
        tmp_path / "3_Dense",
        2,
        5,
        bias=False,
        use_residual=True,
        activation_function="torch.nn.modules.linear.Identity",
    )
    save_norm(tmp_path / "4_LayerNorm", 5)
    modules, notes = read_modules(tmp_path)
    assert modules == (
        Pooling(("max",), include_prompt=False),
        Dense("3_Dense", 2, 5, bias=False, activation="Identity", residual=True),
        LayerNorm("4_LayerNorm", 5),
        Normalize(),
    )
    assert notes == []
    assert width_of(modules, 2) == 5
    weights = load_file(tmp_path / "3_Dense" / "model.safetensors")
    norm = load_file(tmp_path / "4_LayerNorm" / "model.safetensors")
    vector = torch.tensor(POOLED["max"])
    vector = weights["linear.weight"] @ vector + weights["residual.weight"] @ vector
    vector = (vector - vector.mean()) / (vector.var(unbiased=False) + 1e-5).sqrt() * norm["norm.weight"] + norm[
        "norm.bias"
    ]
    assert run(modules, tmp_path) == pytest.approx((vector / vector.norm()).tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("torch.nn.modules.activation.Tanh", torch.tanh),
        ("torch.nn.modules.activation.ReLU", torch.relu),
        ("torch.nn.modules.activation.GELU", torch.nn.functional.gelu),
        ("torch.nn.modules.activation.Sigmoid", torch.sigmoid),
        ("torch.nn.modules.activation.SiLU", torch.nn.functional.silu),
        ("torch.nn.Identity", lambda x: x),
    ],
)
def test_a_dense_layer_has_its_activation(activation: str, function: Any, tmp_path: Path) -> None:
    write(tmp_path, ["Pooling", "Dense"], {"1_Pooling": {}})
    save_dense(tmp_path / "2_Dense", 2, 3, activation_function=activation, suffix="bin")
    weights = torch.load(tmp_path / "2_Dense" / "pytorch_model.bin")
    expected = function(weights["linear.weight"] @ torch.tensor(POOLED["mean"]) + weights["linear.bias"])
    assert run(read_modules(tmp_path)[0], tmp_path) == pytest.approx(expected.tolist(), abs=1e-6)


def test_truncation_keeps_the_first_numbers_as_they_are(tmp_path: Path) -> None:
    assert run((Pooling(("max",)), Normalize(), Truncate(1)), tmp_path) == pytest.approx([5 / math.sqrt(41)])


@pytest.mark.parametrize(
    ("kinds", "configs", "message"),
    [
        (["Normalize", "Pooling"], {"2_Pooling": {}}, "Normalize comes before Pooling"),
        (["Dense", "Pooling"], {"1_Dense": {"in_features": 2, "out_features": 2}}, "Dense comes before Pooling"),
        (["Pooling", "Pooling"], {"1_Pooling": {}, "2_Pooling": {}}, "Pooling is there twice"),
        (["Pooling", "Transformer"], {"1_Pooling": {}}, "the Transformer at place 2"),
        (
            ["Pooling"],
            {"1_Pooling": {"pooling_mode": "first"}},
            "asks for pooling_mode='first'; the export offers cls, max",
        ),
        (["Pooling"], {"1_Pooling": {"pooling_mode": ["cls", "first"]}}, r"pooling_mode=\['cls', 'first'\]"),
        (["Pooling"], {"1_Pooling": {"pooling_mode": []}}, r"pooling_mode=\[\]"),
        (["Pooling"], {"1_Pooling": {"include_prompt": "no"}}, "include_prompt='no' must be true or false"),
        (["Pooling"], {"1_Pooling": []}, "must hold a JSON object"),
        (["Pooling"], {}, "1_Pooling/config.json cannot be read"),
        (
            ["WordWeights", "Pooling"],
            {"2_Pooling": {}},
            "the module sentence_transformers.models.WordWeights, which the export",
        ),
        *[
            (
                ["Pooling", kind],
                {"1_Pooling": {}},
                f"the module sentence_transformers.models.{kind}, which the export does not",
            )
            for kind in ("CNN", "LSTM", "Router", "Asym", "StaticEmbedding", "WeightedLayerPooling", "BoW")
        ],
        (["Pooling", "Dense"], {"1_Pooling": {}, "2_Dense": {"in_features": 2}}, "out_features=None must be sizes"),
        (
            ["Pooling", "Dense"],
            {"1_Pooling": {}, "2_Dense": {"in_features": 2, "out_features": 2, "activation_function": "my.Tanh"}},
            "activation_function='my.Tanh'; the export offers torch.nn's Identity",
        ),
        (
            ["Pooling", "Dense"],
            {
                "1_Pooling": {},
                "2_Dense": {"in_features": 2, "out_features": 2, "module_input_name": "token_embeddings"},
            },
            "module_input_name='token_embeddings' is not offered",
        ),
        (
            ["Pooling", "Normalize"],
            {"1_Pooling": {}, "2_Normalize": {"module_output_name": "unit"}},
            "module_output_name='unit' is not offered",
        ),
        (
            ["Pooling", "LayerNorm"],
            {"1_Pooling": {}, "2_LayerNorm": {"dimension": "2"}},
            "dimension='2' must be a size",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    kinds: list[str], configs: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        read_modules(write(tmp_path, kinds, configs))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "must hold a list of objects"),
        ([1], "must hold a list of objects"),
        ([{"path": "", "type": "custom_st.Transformer"}], "the module custom_st.Transformer, which the export"),
        ([{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}], "begins with Pooling"),
        ([{"path": "../x", "type": "sentence_transformers.models.Transformer"}], "outside the checkpoint"),
    ],
)
def test_a_listing_that_is_none_is_refused(entries: Any, message: str, tmp_path: Path) -> None:
    write_files(tmp_path, {"modules.json": entries})
    with pytest.raises(InputError, match=message):
        read_modules(tmp_path)


def test_keys_that_nobody_knows_are_named(tmp_path: Path) -> None:
    kinds = ["Pooling", "Normalize"]
    write(tmp_path, kinds, {"1_Pooling": {"pooling_mode": "cls", "temperature": 2}, "2_Normalize": {"p": 1}})
    modules, notes = read_modules(tmp_path)
    assert modules == (Pooling(("cls",)), Normalize())
    assert [note.partition(" has ")[2] for note in notes] == [
        "temperature, which is not known here and changes nothing.",
        "p, which is not known here and changes nothing.",
    ]


def test_a_layer_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"2_Dense/config.json takes vectors of 64 numbers, but 128 come in"):
        width_of((Pooling(("cls", "mean")), Dense("2_Dense", 64, 8)), 64)
    save_dense(tmp_path / "2_Dense", 2, 3)
    with pytest.raises(InputError, match=r"2_Dense do not fit its config.json"):
        as_torch((Pooling(("cls",)), Dense("2_Dense", 3, 3)), tmp_path)
    with pytest.raises(InputError, match=r"has no model.safetensors and no pytorch_model.bin"):
        as_torch((Pooling(("cls",)), LayerNorm("3_LayerNorm", 2)), tmp_path)
    (tmp_path / "2_Dense" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(InputError, match=r"2_Dense/model.safetensors cannot be read as weights"):
        as_torch((Pooling(("cls",)), Dense("2_Dense", 2, 3)), tmp_path)


def test_another_pooling_keeps_what_follows(tmp_path: Path) -> None:
    write(tmp_path, ["Pooling", "Normalize"], {"1_Pooling": {"pooling_mode": "unheard of", "include_prompt": False}})
    assert read_modules(tmp_path, pooling="max")[0] == (Pooling(("max",), include_prompt=False), Normalize())
    assert read_modules(tmp_path / "none", pooling="max")[0] == (Pooling(("max",)),)
    with pytest.raises(InputError, match="pooling='first' must be one of none, cls, max"):
        read_modules(tmp_path, pooling="first")


@pytest.mark.parametrize(
    ("kinds", "normalize", "expected"),
    [
        ("P", True, "PN"),
        ("PN", True, "PN"),
        ("PND", True, "PNDN"),
        ("PN", False, "P"),
        ("PNN", False, "P"),
        ("PND", False, "PND"),
        ("", False, ""),
        ("PN", None, "PN"),
    ],
)
def test_the_length_of_the_vector_can_be_asked_for(kinds: str, normalize: bool | None, expected: str) -> None:
    made: dict[str, Module] = {"P": Pooling(("cls",)), "N": Normalize(), "D": Dense("2_Dense", 2, 2)}
    assert override_normalize(tuple(made[k] for k in kinds), normalize) == tuple(made[k] for k in expected)


def test_nothing_can_be_scaled_without_a_vector() -> None:
    with pytest.raises(
        InputError, match="--normalize scales a sentence embedding: it needs --pooling, one of cls, max"
    ):
        override_normalize((), True)


CHAINS: list[tuple[Module, ...]] = [
    (Pooling(("mean",)),),
    (Pooling(("cls",)), Normalize()),
    (Pooling(("max", "mean")), Dense("2_Dense", 4, 3), LayerNorm("3_LayerNorm", 3), Normalize()),
    (Pooling(("lasttoken", "cls"), include_prompt=False),),
    (Pooling(("mean",)), Normalize(), Dense("1_Pooling", 2, 3, activation="Identity", residual=True), Truncate(2)),
    (
        Pooling(("weightedmean",)),
        Dense("dense/a", 2, 4),
        Dense("dense/b", 4, 2, bias=False, activation="GELU"),
        Normalize(),
    ),
]


@pytest.mark.parametrize("modules", CHAINS)
def test_what_is_written_is_read_again(modules: tuple[Module, ...], tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for module in modules:
        if isinstance(module, Dense):
            save_dense(
                source / module.folder, module.in_features, module.out_features, suffix="bin",
                bias=module.bias, use_residual=module.residual,
            )  # fmt: skip
        elif isinstance(module, LayerNorm):
            save_norm(source / module.folder, module.dimension)
    target.mkdir()
    write_modules(modules, source, target, 2)
    assert read_modules(target) == (tuple(m for m in modules if not isinstance(m, Truncate)), [])
    assert run(modules, target) == run(modules, source)
    assert not list(target.rglob("*.bin"))


@pytest.mark.parametrize("modules", CHAINS)
def test_the_manifests_forms_are_read_again(modules: tuple[Module, ...]) -> None:
    assert tuple(module_from(json.loads(json.dumps(as_stated(module)))) for module in modules) == modules
    assert from_pooling(json.loads(json.dumps(as_pooling(modules)))) == modules


def test_an_engine_states_plain_poolings_as_it_always_did() -> None:
    assert as_pooling(CHAINS[0]) == {"mode": "mean", "normalize": False}
    assert as_pooling(CHAINS[1]) == {"mode": "cls", "normalize": True}
    assert as_pooling((Pooling(("max",)),)) == {
        "modules": [{"kind": "Pooling", "modes": ["max"], "include_prompt": True}]
    }


@pytest.mark.parametrize("modules", CHAINS)
def test_sentence_transformers_computes_the_same(modules: tuple[Module, ...], tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="the package sentence-transformers is not installed")
    from sentence_transformers.util import import_from_string

    for module in modules:
        if isinstance(module, Dense):
            sizes = (module.in_features, module.out_features)
            save_dense(tmp_path / "s" / module.folder, *sizes, bias=module.bias, use_residual=module.residual)
        elif isinstance(module, LayerNorm):
            save_norm(tmp_path / "s" / module.folder, module.dimension)
    (tmp_path / "t").mkdir()
    write_modules(modules, tmp_path / "s", tmp_path / "t", 2)
    features = {"token_embeddings": torch.tensor(HIDDEN), "attention_mask": torch.tensor(MASK)}
    for entry in json.loads((tmp_path / "t" / "modules.json").read_text())[1:]:
        theirs = import_from_string(entry["type"]).load(str(tmp_path / "t"), subfolder=entry["path"])
        features = theirs.eval()(features)
    cut = next((m.dimension for m in modules if isinstance(m, Truncate)), None)
    want = features["sentence_embedding"].detach().numpy()[0][:cut]
    np.testing.assert_allclose(run(modules, tmp_path / "t"), want, rtol=0, atol=1e-7)
