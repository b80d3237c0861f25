"""An adapter beside the weights is merged or refused, and never passed over."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_support import run
from checkpoints import save_checkpoint
from dense_support import edit_weights, save, tiny, write_files
from safetensors.torch import load_file, save_file

from mra_export.checkpoint.files import locate
from mra_export.checkpoint.from_dense.convert import from_dense
from mra_export.checkpoint.load import load_checkpoint
from mra_export.errors import DependencyError, InputError

with_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None,
    reason="the package peft is not installed: `pip install 'mra-export[adapter]'`",
)
RANK, ALPHA, WIDTH = 4, 10, 64
TARGETS = [f"encoder.layer.{layer}.attention.self.{name}" for layer in (0, 1) for name in ("query", "value")]


def lora(prefix: str = "") -> dict[str, torch.Tensor]:
    """Weights of a LoRA on query and value, as peft names them."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for target in TARGETS:
        for name, shape in (("A", (RANK, WIDTH)), ("B", (WIDTH, RANK))):
            values = 0.3 * torch.randn(shape, generator=generator)
            state[f"base_model.model.{prefix}{target}.lora_{name}.weight"] = values
    return state


def add_adapter(
    directory: Path, prefix: str = "", *, state: dict[str, torch.Tensor] | None = None, **settings: Any
) -> Path:
    config = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["query", "value"],
        "base_model_name_or_path": "someone/base", "task_type": "FEATURE_EXTRACTION", "lora_dropout": 0.1, **settings,
    }  # fmt: skip
    write_files(directory, {"adapter_config.json": config})
    save_file(
        lora(prefix) if state is None else state, directory / "adapter_model.safetensors", metadata={"format": "pt"}
    )
    return directory


def merge_by_hand(directory: Path, target_prefix: str = "", scale: float = ALPHA / RANK) -> None:
    """W + scale B A, by definition."""
    state = lora()

    def edit(weights: dict[str, torch.Tensor]) -> None:
        for target in TARGETS:
            a, b = (state[f"base_model.model.{target}.lora_{name}.weight"].double() for name in "AB")
            name = f"{target_prefix}{target}.weight"
            weights[name] = (weights[name].double() + scale * b @ a).float()

    edit_weights(directory, edit)


@pytest.fixture
def mra(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "mra", max_position_embeddings=32)


@pytest.fixture
def without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)


COMMANDS: dict[str, list[str]] = {
    "onnx": ["onnx", "{}", "-o", "{}.out", "--no-check"],
    "bundle": ["bundle", "{}", "-o", "{}.out", "--no-check"],
    "bench": ["bench", "{}"],
}


@pytest.mark.usefixtures("without_peft")
@pytest.mark.parametrize("command", COMMANDS)
def test_refused_without_peft(command: str, mra: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_adapter(mra)
    before = sorted(mra.parent.iterdir())
    code, result = run(*(word.format(mra) for word in COMMANDS[command]), capsys=capsys)
    assert code == 4
    assert f"{mra} has an adapter (LORA, adapter_config.json) beside its weights, and peft" in result["error"]
    assert "or merge the adapter first: move adapter_config.json" in result["error"]
    assert "merge_and_unload()" in result["error"]
    assert sorted(mra.parent.iterdir()) == before


@pytest.mark.usefixtures("without_peft")
@pytest.mark.slow
def test_check_and_from_dense_refuse_too(
    mra: Path, tiny_export: Path, bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result = run("check", add_adapter(mra), tiny_export, capsys=capsys)
    assert (code, "peft" in result["error"]) == (4, True)
    code, result = run("from-dense", add_adapter(bert, "bert."), "-o", bert.parent / "out", capsys=capsys)
    assert (code, "peft" in result["error"]) == (4, True)
    assert not (bert.parent / "out").exists()


@pytest.mark.usefixtures("without_peft")
def test_peft_is_not_asked_for_where_it_is_of_no_use(mra: Path) -> None:
    with pytest.raises(
        InputError, match=r"names no peft_type: it is not of peft\. Merge the adapter with what wrote it"
    ):
        load_checkpoint(add_adapter(mra, peft_type=None))


@pytest.mark.usefixtures("without_peft")
def test_random_weights_have_no_adapter(mra: Path) -> None:
    assert load_checkpoint(add_adapter(mra), random_init=1).notes == ()


@with_peft
@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, ALPHA / RANK),
        ({"use_rslora": True}, ALPHA / RANK**0.5),
        ({"lora_alpha": 4}, 1.0),
        ({"base_model_name_or_path": "/nowhere"}, ALPHA / RANK),
    ],
)
def test_merged_as_defined(settings: dict[str, Any], scale: float, mra: Path, tmp_path: Path) -> None:
    expected = save_checkpoint(tmp_path / "expected", max_position_embeddings=32)
    plain = load_checkpoint(expected).model.state_dict()
    merge_by_hand(expected, scale=scale)
    checkpoint = load_checkpoint(add_adapter(mra, **settings))
    assert checkpoint.notes == ("The adapter (LORA) beside the weights was merged into them.",)
    found, wanted = checkpoint.model.state_dict(), load_checkpoint(expected).model.state_dict()
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
        is_target = name.removesuffix(".weight") in TARGETS
        assert torch.equal(tensor, plain[name]) != is_target
    assert not checkpoint.model.training
    assert not any(parameter.requires_grad for parameter in checkpoint.model.parameters())


@with_peft
@pytest.mark.parametrize(("suffix", "prefix"), [("Model", ""), ("ForMaskedLM", "bert.")])
def test_from_dense_merges(suffix: str, prefix: str, tmp_path: Path) -> None:
    plain, merged = (save(tiny("bert", suffix), tmp_path / name) for name in ("plain", "merged"))
    merge_by_hand(merged, prefix)
    result = from_dense(add_adapter(plain, prefix), tmp_path / "a")
    expected = from_dense(merged, tmp_path / "b")
    assert [note for note in result.notes if note not in expected.notes] == [
        "The adapter (LORA) beside the weights was merged into them."
    ]
    assert result.files == expected.files
    assert "adapter_config.json" not in result.files
    found, wanted = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


@with_peft
def test_a_head_that_the_adapter_brings_whole(tmp_path: Path) -> None:
    """Where the checkpoint has the encoder alone."""
    whole = save_checkpoint(tmp_path / "whole", "MraForSequenceClassification", max_position_embeddings=32)
    head = {
        name: tensor for name, tensor in load_file(whole / "model.safetensors").items() if name.startswith("classifier")
    }
    assert len(head) == 4
    base = save_checkpoint(tmp_path / "base", max_position_embeddings=32)
    state = {**lora("mra."), **{f"base_model.model.{name}": tensor + 1 for name, tensor in head.items()}}
    add_adapter(base, state=state, task_type="SEQ_CLS", modules_to_save=["classifier"])
    found = load_checkpoint(base, task="text-classification").model.state_dict()
    for name, tensor in head.items():
        assert torch.equal(found[name], tensor + 1)
    with pytest.raises(InputError, match=r"so it is not for MraModel|cannot be merged"):
        load_checkpoint(base)


@with_peft
def test_an_exported_file_has_the_merged_weights(mra: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnx

    expected = save_checkpoint(tmp_path / "expected", max_position_embeddings=32)
    merge_by_hand(expected)
    for source in (add_adapter(mra), expected):
        code, result = run("onnx", source, "-o", f"{source}-onnx", "--no-check", capsys=capsys)
        assert code == 0, result
    tables = []
    for source in (mra, expected):
        graph = onnx.load(f"{source}-onnx/onnx/model.onnx").graph
        tables.append({each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer})
    assert set(tables[0]) == set(tables[1])
    for name, table in tables[1].items():
        np.testing.assert_allclose(tables[0][name], table, atol=1e-6)


def spoil(change: str, mra: Path) -> Path:
    state = lora()
    if change == "for a head":
        return add_adapter(mra, "mra.")
    if change == "half of it":
        return add_adapter(mra, state=dict(list(state.items())[:-2]))
    if change == "wrong width":
        return add_adapter(mra, state={name: tensor[:, :-1].contiguous() for name, tensor in state.items()})
    if change == "other modules":
        return add_adapter(mra, target_modules=["q_proj"])
    if change == "prompts":
        return add_adapter(mra, peft_type="PREFIX_TUNING", num_virtual_tokens=4)
    if change == "no weights":
        (add_adapter(mra) / "adapter_model.safetensors").unlink()
    if change == "a pointer":
        (add_adapter(mra) / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    if change == "of another library":
        add_adapter(mra, peft_type=None)
    if change == "no JSON":
        (add_adapter(mra) / "adapter_config.json").write_text("{")
    return mra


@with_peft
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("for a head", r"has .*mra\.encoder.*, so it is not for MraModel\. Choose the --task"),
        (
            "half of it",
            r"lacks base_model.model.encoder.layer.1.attention.self.value.lora_A.weight, so it is not for MraModel",
        ),
        ("wrong width", r"The adapter \(LORA\) in .* cannot be merged: .*size mismatch"),
        ("other modules", r"cannot be merged: .*q_proj"),
        ("prompts", r"The adapter \(PREFIX_TUNING\) in .* cannot be merged: "),
        ("no weights", r"has no adapter_model.safetensors or adapter_model.bin beside it"),
        ("a pointer", r"adapter_model.safetensors is a pointer of Git LFS"),
        ("of another library", r"names no peft_type: it is not of peft"),
        ("no JSON", r"adapter_config.json is not valid JSON"),
    ],
)
def test_what_cannot_be_merged(change: str, reason: str, mra: Path) -> None:
    with pytest.raises(InputError, match=reason):
        load_checkpoint(spoil(change, mra))


@pytest.mark.parametrize("settings", [{}, {"peft_type": None}, {"base_model_name_or_path": None}])
def test_an_adapter_alone_is_said_to_be_one(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether peft is installed or not: its base is another checkpoint, perhaps of the hub."""
    directory = add_adapter(tmp_path, **settings)
    kind = "of no stated kind" if settings.get("peft_type", 1) is None else "LORA"
    base = "a model that it does not name" if settings.get("base_model_name_or_path", 1) is None else "someone/base"
    for command in ("onnx", "from-dense", "bundle"):
        code, result = run(command, directory, "-o", tmp_path / "out", capsys=capsys)
        assert code == 2
        assert f"{directory} is an adapter ({kind}) for {base}, not a checkpoint" in result["error"]
        assert "Merge it into that model first" in result["error"]
    for arguments in (["check", directory], ["bench", directory]):
        code, result = run(*arguments, capsys=capsys)
        assert (code, "is an adapter" in result["error"]) == (2, True)


def test_an_adapter_alone_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "0_Transformer").mkdir()
    add_adapter(tmp_path / "0_Transformer")
    write_files(
        tmp_path, {"modules.json": [{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]}
    )
    with pytest.raises(InputError, match="0_Transformer is an adapter"):
        locate(tmp_path)


def test_the_error_is_one_of_the_environment(mra: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(DependencyError, match=r"pip install 'mra-export\[adapter\]'"):
        load_checkpoint(add_adapter(mra))
