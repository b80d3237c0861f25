"""OpenVINO's file in a bundle: what the manifest says of it, and files that are not the model's or do not run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_support import Parts, change, flip, inside, keys, native, run, tree, with_openvino

from mra_export.bundle.manifest import Variant, read_bundle
from mra_export.bundle.openvino_file import find_ir, match_ir
from mra_export.bundle.verify import verify_bundle
from mra_export.errors import DependencyError, InputError
from mra_export.export.int8 import linears_of, quantize
from mra_export.export.onnx_model import MODEL_FILE, read_onnx
from mra_export.openvino.core import release
from mra_export.openvino.ir import IR_FILE
from mra_export.outputs import file_sha256
from mra_export.pipeline.create_bundle import create_bundle


@pytest.fixture
def copied(openvino_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(openvino_bundle, tmp_path / "bundle"))


def edited(folder: Path, old: str, new: str) -> Path:
    """The file for OpenVINO of a folder, with its text changed."""
    file = folder / IR_FILE
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return file


def test_the_variant_says_what_runs_it(openvino_bundle: Path) -> None:
    bundle = verify_bundle(openvino_bundle)
    library = openvino_bundle / "lib" / "libmra_openvino.so"
    file = openvino_bundle / IR_FILE
    assert bundle.openvino == bundle.variants[1]
    assert bundle.openvino == Variant("openvino", file, "fp32", library, backend_version=release())
    assert bundle.engines == ()
    assert bundle.model_file == openvino_bundle / MODEL_FILE


def test_the_same_bytes_twice_from_the_directory_the_file_and_the_bundle(
    openvino_bundle: Path, embed_bundle: Path, extension: Path, tmp_path: Path
) -> None:
    """And the library names no folder of the machine that compiled it."""
    for name, given in (
        ("one", openvino_bundle.parent),
        ("two", openvino_bundle / IR_FILE),
        ("three", openvino_bundle),
    ):
        options = {"openvino": given, "extension": extension, "check": False}
        made = create_bundle(embed_bundle, tmp_path / name, **options).path  # type: ignore[arg-type]
        assert tree(made) == tree(openvino_bundle)
    content = (openvino_bundle / "lib" / "libmra_openvino.so").read_bytes()
    assert b"/openvino/include/" not in content
    assert b"RUNPATH" not in content


def test_a_portable_file_has_no_library(embed_bundle: Path, extension: Path, tmp_path: Path) -> None:
    bundle = verify_bundle(with_openvino(embed_bundle, tmp_path, "bf16", extension, portable=True))
    assert bundle.openvino is not None
    assert (bundle.openvino.library, bundle.openvino.precision) == (None, "bf16")
    assert bundle.openvino.backend_version == release()
    assert not (bundle.path / "lib" / "libmra_openvino.so").exists()


def test_an_int8_file_is_a_bundles_first_variant_too(embed_bundle: Path, extension: Path, tmp_path: Path) -> None:
    """Of an int8 ONNX file and one for OpenVINO made of it; the latter also beside the float32 file, which it was not made of."""
    source = Path(shutil.copytree(embed_bundle, tmp_path / "int8"))
    (source / "manifest.json").unlink()
    model = read_onnx(source / MODEL_FILE)
    ranges = {linear.source: np.full(linear.in_features, 4, np.float32) for linear in linears_of(model)}
    quantize(model, ranges, tmp_path / "model.onnx")
    shutil.copyfile(tmp_path / "model.onnx", source / MODEL_FILE)
    bundle = verify_bundle(with_openvino(source, tmp_path / "of-int8", "int8", extension))
    assert [(variant.backend, variant.precision) for variant in bundle.variants] == [
        ("onnxruntime", "int8"),
        ("openvino", "int8"),
    ]
    assert bundle.dtype == "fp32"
    mixed = create_bundle(embed_bundle, tmp_path / "mixed", openvino=bundle.path, extension=extension, check=False)
    assert [variant.precision for variant in mixed.variants] == ["fp32", "int8"]
    match_ir(find_ir(bundle.path), read_onnx(mixed.model_file))


NOT_THE_MODELS = {
    "onnx_sha256": (
        'onnx_sha256 value="',
        'onnx_sha256 value="',
        "was made from another ONNX file .* the SHA-256 differs",
    ),
    "vocab_size": ('vocab_size value="120"', 'vocab_size value="121"', "has vocab_size=121, and .*model.onnx has 120"),
    "outputs": ("last_hidden_state,sentence_embedding", "last_hidden_state", "has outputs="),
    "attributes": (
        "&quot;approx_mode&quot;: 0",
        "&quot;approx_mode&quot;: 1",
        "attention's attributes are not those of",
    ),
    "not ours": ("<mra_export>", "<other>", "was not written by this tool|is not a readable file of OpenVINO"),
}


@pytest.mark.parametrize("what", NOT_THE_MODELS)
def test_a_file_of_another_model_is_refused(
    what: str, openvino_bundle: Path, embed_bundle: Path, tmp_path: Path
) -> None:
    old, new, said = NOT_THE_MODELS[what]
    shutil.copytree(openvino_bundle / "openvino", tmp_path / "openvino")
    if what == "onnx_sha256":
        old += find_ir(tmp_path).onnx_sha256
        new += "0" * 64
    edited(tmp_path, old, new)
    with pytest.raises(InputError, match=said):
        create_bundle(embed_bundle, tmp_path / "bundle", openvino=tmp_path, check=False)
    assert not (tmp_path / "bundle").exists()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no directory": (
        shutil.rmtree,
        r"openvino_model\.xml does not exist\. Give the directory that `mra-export openvino` wrote",
    ),
    "weights changed": (
        lambda folder: flip(folder / IR_FILE.with_suffix(".bin").name),
        r"\.bin was changed: its SHA-256",
    ),
    "weights gone": (
        lambda folder: (folder / IR_FILE.with_suffix(".bin").name).unlink(),
        r"needs openvino_model\.bin beside",
    ),
    "cut off": (
        lambda folder: (folder / IR_FILE.name).write_bytes((folder / IR_FILE.name).read_bytes()[:5000]),
        "is not a readable file of OpenVINO",
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_file_is_refused(what: str, openvino_bundle: Path, embed_bundle: Path, tmp_path: Path) -> None:
    damage, said = DAMAGES[what]
    damage(Path(shutil.copytree(openvino_bundle / "openvino", tmp_path / "openvino")))
    with pytest.raises(InputError, match=said):
        create_bundle(embed_bundle, tmp_path / "bundle", openvino=tmp_path, check=False)
    assert not (tmp_path / "bundle").exists()


def test_a_library_that_is_missing_or_another(
    openvino_bundle: Path, embed_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"openvino": openvino_bundle, "check": False}
    other = embed_bundle / "lib" / "libmra_onnxruntime.so"
    with pytest.raises(
        InputError, match=r"libmra_onnxruntime\.so has none for OpenVINO\. Run `mra-export build openvino`"
    ):
        create_bundle(embed_bundle, tmp_path / "bundle", extension=other, **options)  # type: ignore[arg-type]
    for name in ("package_library_dir", "user_library_dir"):
        monkeypatch.setattr(f"mra_export.native.libraries.{name}", lambda: tmp_path)
    with pytest.raises(DependencyError, match=r"libmra_openvino\.so was not found in .* `mra-export build openvino`"):
        create_bundle(embed_bundle, tmp_path / "bundle", **options)  # type: ignore[arg-type]


UNTRUE = {
    "variants[1].precision": "int8",
    "variants[1].library": None,
    "variants[1].backend_version": "2025.4.0",
    "variants[1].file": "openvino/openvino_model.bin",
}


@pytest.mark.parametrize("field", UNTRUE)
def test_a_field_that_the_file_contradicts_is_named(field: str, copied: Path) -> None:
    *path, last = keys(field)
    change(copied, lambda m: inside(m, path).__setitem__(last, UNTRUE[field]))
    read_bundle(copied)
    with pytest.raises(InputError, match=r"manifest\.json: .*but the bundle's files say") as caught:
        verify_bundle(copied)
    assert field in str(caught.value)


def test_a_file_whose_weights_were_exchanged_with_their_hash_is_refused(copied: Path) -> None:
    """The manifest lists the weights that are there, and the file says that it was written with others."""
    weights = copied / IR_FILE.with_suffix(".bin")
    flip(weights)
    entry = {"bytes": weights.stat().st_size, "sha256": file_sha256(weights)}
    change(copied, lambda m: m["files"].update({f"openvino/{weights.name}": entry}))
    with pytest.raises(InputError, match=r"openvino_model\.bin was changed"):
        verify_bundle(copied)


def test_the_command_takes_it_and_check_compares_it(
    parts: Parts,
    extension: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And where OpenVINO is of another release, it says so and judges the rest."""
    native(parts)
    written = with_openvino(parts.onnx, tmp_path, "fp32", extension)
    made = tmp_path / "made"
    arguments = ("--openvino", written, "--plugin-lib", extension, "--no-check")
    code, answer = run("bundle", parts.onnx, "-o", made, *arguments, capsys=capsys)
    assert code == 0
    assert [variant["backend"] for variant in answer["variants"]] == ["onnxruntime", "openvino"]

    def comparisons() -> list[dict[str, Any]]:
        code, answer = run("check", made, "--max-seq-len", 40, capsys=capsys)
        assert code == 0
        return [each for each in answer["comparisons"] if each["candidate"].startswith("openvino_model.xml fp32")]

    assert [each["ok"] for each in comparisons()] == [True, True]
    monkeypatch.setattr("mra_export.openvino.core.release", lambda: "2025.4.0")
    [said] = comparisons()
    assert said["ok"] is None
    assert "2025.4.0" in json.dumps(said["notes"])
