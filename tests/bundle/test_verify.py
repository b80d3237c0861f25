"""No damage of a file or a field goes unnoticed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_support import (
    FILES,
    change,
    flip,
    inside,
    keys,
)

from mra_export.bundle.manifest import MANIFEST_FILE, read_bundle
from mra_export.bundle.verify import verify_bundle
from mra_export.errors import InputError
from mra_export.outputs import file_sha256


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def grow(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\n")


def replace_by_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def replace_by_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def replace_by_link(file: Path) -> None:
    """To the same bytes, outside the bundle."""
    bundle = next(folder for folder in file.parents if (folder / MANIFEST_FILE).exists())
    file.rename(bundle.parent / "outside")
    file.symlink_to(bundle.parent / "outside")


def replace_by_circle(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


DAMAGE = [flip, cut, grow, Path.unlink, replace_by_directory, replace_by_pipe, replace_by_link, replace_by_circle]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(name: str, damage: Callable[[Path], None], bundle: Path) -> None:
    damage(bundle / name)
    with pytest.raises(InputError) as caught:
        verify_bundle(bundle)
    assert str(caught.value).startswith(str(bundle / name) + " "), caught.value


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink, replace_by_directory], ids=lambda f: f.__name__)
def test_a_damaged_manifest_is_named(damage: Callable[[Path], None], bundle: Path) -> None:
    damage(bundle / MANIFEST_FILE)
    with pytest.raises(InputError, match=r"manifest\.json"):
        verify_bundle(bundle)


def add_file(root: Path) -> str:
    (root / "onnx" / "model.onnx.bak").write_text("")
    return "onnx/model.onnx.bak"


def add_folder(root: Path) -> str:
    (root / "empty").mkdir()
    return "empty"


def add_link(root: Path) -> str:
    (root / "link.json").symlink_to("config.json")
    return "link.json"


def link_folder(root: Path) -> str:
    (root / "onnx").rename(root.parent / "onnx")
    (root / "onnx").symlink_to(root.parent / "onnx")
    return "onnx"


def link_folder_inside(root: Path) -> str:
    (root / "engines").rename(root / "lib" / "engines")
    (root / "engines").symlink_to("lib/engines")
    return "engines"


@pytest.mark.parametrize(
    "add", [add_file, add_folder, add_link, link_folder, link_folder_inside], ids=lambda f: f.__name__
)
def test_what_does_not_belong_there_is_named(add: Callable[[Path], str], bundle: Path) -> None:
    name = add(bundle)
    with pytest.raises(InputError) as caught:
        verify_bundle(bundle)
    assert str(bundle / name) in str(caught.value)


def test_a_link_inside_the_bundle_is_no_harm(bundle: Path, tmp_path: Path) -> None:
    """A store that keeps equal files once, or a bundle behind a link of its own."""
    (bundle / "NOTICE").unlink()
    (bundle / "NOTICE").symlink_to("LICENSE")
    change(bundle, lambda m: m["files"].update(NOTICE=m["files"]["LICENSE"]))
    (tmp_path / "current").symlink_to(bundle)
    verify_bundle(tmp_path / "current")


UNTRUE: dict[str, Any] = {
    "model.family": "other",
    "model.architecture": "MraForMaskedLM",
    "model.task": "fill-mask",
    "model.hidden_size": 65,
    "model.max_seq_len": 255,
    "model.vocab_size": 121,
    "model.pad_token_id": 0,
    "model.inputs": ["input_ids", "attention_mask"],
    "model.outputs": ["last_hidden_state", "sentence_embedding", "logits"],
    "model.operator.domain": "com.microsoft",
    "model.operator.type": "Attention",
    "model.operator.version": 2,
    "model.operator.nodes": 3,
    "model.operator.attributes": [],
    "pooling.mode": "mean",
    "pooling.normalize": False,
    "tokenizer.max_length": 100,
    "variants[0].library": None,
    "variants[1].precision": "bf16",
    "variants[1].backend": "tensorrt",
    "variants[1].backend_version": "10.15.0",
    "variants[1].version_compatible": True,
    "variants[1].compute_capability": "8.0",
    "variants[1].hardware_compatible": True,
    "variants[1].gpu": "NVIDIA L4",
    "variants[2].library": None,
    "variants[2].profiles": {},
}
"""Field -> a value that it could have, but that the files of the bundle contradict."""


@pytest.mark.parametrize("field", UNTRUE)
def test_a_field_that_the_files_contradict_is_named(field: str, bundle: Path) -> None:
    *path, last = keys(field)
    change(bundle, lambda m: inside(m, path).__setitem__(last, UNTRUE[field]))
    read_bundle(bundle)
    with pytest.raises(InputError, match=r"manifest\.json: .*but the bundle's files say") as caught:
        verify_bundle(bundle)
    assert field in str(caught.value) or field.replace(".max_length", "") in str(caught.value)


@pytest.mark.parametrize("field", ["engine_sha256", "plugin_sha256", "plugin_name"])
def test_an_engine_whose_manifest_is_another_one(field: str, bundle: Path) -> None:
    file = bundle / "engines" / "other.engine.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: "0" * 64}))
    entry = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    change(bundle, lambda m: m["files"].update({"engines/other.engine.json": entry}))
    with pytest.raises(InputError, match=r"other\.engine"):
        verify_bundle(bundle)


def test_a_file_that_cannot_be_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*paths: Path) -> str:
        if paths[0].name == "tokenizer.json":
            raise PermissionError(13, "Permission denied")
        return file_sha256(*paths)

    monkeypatch.setattr(
        "mra_export.bundle.verify.file_sha256", fail
    )  # root may read everything, so chmod shows nothing
    with pytest.raises(InputError, match=r"tokenizer\.json cannot be read: Permission denied"):
        verify_bundle(bundle)
