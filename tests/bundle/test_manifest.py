"""The manifest is read as it was written, or refused: its seal, its format, names that lead out of the bundle."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from bundle_support import inside, keys

from mra_export.bundle.manifest import (
    MANIFEST_FILE,
    Bundle,
    Variant,
    _check_fit,
    _check_modules,
    _check_names,
    read_bundle,
    seal,
)
from mra_export.bundle.schema import FORMAT
from mra_export.checkpoint.modules import Dense, LayerNorm, Normalize, Pooling
from mra_export.errors import InputError

STATED: dict[str, Any] = {
    "model": {
        "family": "mra",
        "task": "feature-extraction",
        "dtype": "fp16",
        "hidden_size": 12,
        "max_seq_len": 34,
        "vocab_size": 56,
        "pad_token_id": 7,
        "length_step": 32,
        "inputs": ["input_ids", "attention_mask"],
        "outputs": ["last_hidden_state", "sentence_embedding"],
    },
    "embedding": {
        "dimension": 8,
        "similarity": "dot",
        "modules": [
            {"kind": "Pooling", "modes": ["cls"], "include_prompt": True},
            {
                "kind": "Dense", "folder": "2_Dense", "in_features": 12, "out_features": 8, "bias": True, "activation": "Tanh",
                "residual": False,
            },
            {"kind": "LayerNorm", "folder": "3_Norm", "dimension": 8},
            {"kind": "Normalize"},
        ],
    },
    "text": {"prompts": {"query": "q: "}, "default_prompt": "query"},
    "tokenizer": {"file": "tokenizer.json", "max_length": 30, "truncation_side": "left"},
}  # fmt: skip


def stated(**changes: Any) -> Bundle:
    variants = (
        Variant("onnxruntime", Path("b/m.onnx"), "fp16", Path("b/lib.so")),
        Variant("rtx", Path("e"), "fp32", None),
    )
    return Bundle(Path("b"), {**STATED, **changes}, variants)


def test_what_a_bundle_says_of_itself() -> None:
    bundle = stated()
    assert (bundle.model_file, bundle.library) == (Path("b/m.onnx"), Path("b/lib.so"))
    assert {name: getattr(bundle, name) for name in STATED["model"]} == {
        **STATED["model"],
        "inputs": ("input_ids", "attention_mask"),
        "outputs": ("last_hidden_state", "sentence_embedding"),
    }
    assert (bundle.dimension, bundle.similarity) == (8, "dot")
    dense = Dense("2_Dense", 12, 8, activation="Tanh")
    assert bundle.modules == (Pooling(("cls",)), dense, LayerNorm("3_Norm", 8), Normalize())
    assert bundle.module_weights == (Path("b/2_Dense/model.safetensors"), Path("b/3_Norm/model.safetensors"))
    assert (bundle.prompts, bundle.default_prompt, bundle.include_prompt) == ({"query": "q: "}, "query", True)
    assert bundle.tokenizer_file == Path("b/tokenizer.json")
    assert (bundle.tokenizer_max_length, bundle.truncation_side) == (30, "left")


def test_what_a_bundle_without_embeddings_and_tokenizer_says_of_itself() -> None:
    bundle = stated(embedding=None, tokenizer=None)
    assert (bundle.modules, bundle.module_weights, bundle.dimension, bundle.similarity) == ((), (), None, None)
    assert (bundle.tokenizer_file, bundle.tokenizer_max_length, bundle.truncation_side) == (None, 34, "right")


def test_a_prompt_counts_unless_the_pooling_says_otherwise() -> None:
    pooling = {"kind": "Pooling", "modes": ["mean"], "include_prompt": False}
    assert (
        stated(embedding={**STATED["embedding"], "modules": [pooling, {"kind": "Normalize"}]}).include_prompt is False
    )


def test_what_is_put_before_a_text() -> None:
    bundle = stated()
    assert (bundle.prompt(), bundle.prompt("query"), bundle.prompt(text="p: "), bundle.prompt(text="")) == (
        "q: ",
        "q: ",
        "p: ",
        "",
    )
    with pytest.raises(InputError, match="Both the prompt 'query' by name and a prompt's text are given"):
        bundle.prompt("query", "p: ")
    with pytest.raises(InputError, match="There is no prompt 'other'"):
        bundle.prompt("other")


def test_a_seal_is_over_the_manifest_with_zeros_in_its_place() -> None:
    content = seal({"b": "ü", "a": 1, "manifest_sha256": "whatever stood there"})
    zeros = '{\n  "a": 1,\n  "b": "ü",\n  "manifest_sha256": "' + "0" * 64 + '"\n}\n'
    digest = hashlib.sha256(zeros.encode()).hexdigest()
    assert content.decode() == zeros.replace("0" * 64, digest)
    with pytest.raises(ValueError, match="JSON"):
        seal({"a": float("nan")})


def fitting(field: str = "", value: Any = None) -> tuple[dict[str, Any], list[Variant]]:
    """Fields that agree, but for one."""
    files = ("m.onnx", "tokenizer.json", "2_Dense/model.safetensors", "3_Norm/model.safetensors", "LICENSE")
    raw = {**STATED, "variants": [{"precision": "fp16"}, {"precision": "fp32"}], "license": {"file": None}}
    raw = copy.deepcopy({**raw, "files": {name: {} for name in files}})
    if field:
        *path, last = keys(field)
        inside(raw, path)[last] = value
    variants = [Variant("x", Path("x"), each["precision"], None) for each in raw["variants"]]
    return raw, variants


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("variants", [], "variants is empty, but names at least the ONNX file"),
        ("variants[0].precision", "bf16", "variants[0].precision=bf16 is not model.dtype=fp16"),
        (
            "model.inputs",
            ["attention_mask", "x"],
            "model.inputs=['attention_mask', 'x'] lacks input_ids or attention_mask",
        ),
        ("model.inputs", ["input_ids"], "model.inputs=['input_ids'] lacks input_ids or attention_mask"),
        ("model.outputs", ["logits"], "does not go with model.outputs=['logits']"),
        (
            "embedding",
            None,
            "embedding=null does not go with model.outputs=['last_hidden_state', 'sentence_embedding']",
        ),
        ("text.default_prompt", "other", 'text.default_prompt="other" is none of text.prompts'),
        ("model.pad_token_id", 56, "model.pad_token_id=56 is not below model.vocab_size=56"),
        ("model.pad_token_id", 57, "model.pad_token_id=57 is not below model.vocab_size=56"),
        ("tokenizer.max_length", 35, "tokenizer.max_length=35 is above model.max_seq_len=34"),
        ("tokenizer.file", "other", "tokenizer.file='other' is not in files"),
        ("license.file", "NOTICE", "license.file='NOTICE' is not in files"),
    ],
)
def test_fields_that_contradict_each_other(field: str, value: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        _check_fit(*fitting(field, value), Path("manifest.json"))
    assert f"{message}. Copy the bundle again" in str(caught.value)
    assert str(caught.value).startswith("manifest.json: ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("", None),
        ("model.inputs", ["x", "attention_mask", "input_ids"]),
        ("text.default_prompt", None),
        ("model.pad_token_id", 55),
        ("tokenizer.max_length", 34),
        ("tokenizer", None),
        ("license", None),
        ("license.file", "LICENSE"),
        ("variants[1].precision", "bf16"),
    ],
)
def test_fields_that_agree(field: str, value: Any) -> None:
    raw, variants = fitting(field, value)
    _check_fit(raw, variants, Path("manifest.json"))
    _check_modules(raw, Path("manifest.json"))
    _check_names(raw, Path("manifest.json"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("[0].kind", "Normalize", "[0].kind=Normalize must be Pooling at this place"),
        ("[3]", {"kind": "Pooling", "modes": ["cls"]}, "[3].kind=Pooling must be another at this place"),
        ("[0].modes", [], "[0].modes is empty"),
        ("[1].folder", "4_Dense", "[1].folder='4_Dense/model.safetensors' is not in files"),
        ("[1].in_features", 11, "[1].in_features=11, but vectors of 12 numbers come in"),
        ("[2].dimension", 9, "[2].dimension=9, but vectors of 8 numbers come in"),
        ("[1].out_features", 7, "[2].dimension=8, but vectors of 7 numbers come in"),
        ("[3]", {"kind": "Truncate", "dimension": 5}, "embedding.dimension=8, but the modules give 5"),
        ("", [], "embedding.modules is empty, but begins with a Pooling"),
    ],
)
def test_modules_that_do_not_follow_one_another(field: str, value: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        _check_modules(fitting(f"embedding.modules{field}", value)[0], Path("manifest.json"))
    assert message in str(caught.value)


@pytest.mark.parametrize("size", [(1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_a_manifest_that_is_too_large_is_not_read(size: int, tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_bytes(b"[]" + b" " * (size - 2))
    reason = f"has {size} bytes, more than a manifest can have" if size > 1 << 20 else "format=null must be an integer"
    with pytest.raises(InputError, match=reason):
        read_bundle(tmp_path)


def test_what_is_no_bundle_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "nowhere"):
        with pytest.raises(InputError, match=rf"{name} is not a directory\. Give a bundle"):
            read_bundle(tmp_path / name)
    with pytest.raises(InputError, match=r"manifest\.json does not exist, so .* is no bundle"):
        read_bundle(tmp_path)
    (tmp_path / MANIFEST_FILE).write_text("{}")

    def refused(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refused)  # root may read everything
    with pytest.raises(InputError, match=r"manifest\.json cannot be read: Permission denied\. Copy"):
        read_bundle(tmp_path)


@pytest.mark.parametrize("format", [FORMAT - 1, FORMAT + 1])
def test_who_wrote_another_format_is_said(format: int, tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text(f'{{"format": {format}, "mra_export": "9.9"}}')
    with pytest.raises(
        InputError, match=rf'has format={format}, this mra-export reads {FORMAT}\. .* that wrote it \("9\.9"\)'
    ):
        read_bundle(tmp_path)


def test_the_seal_can_be_checked_without_a_json_library(whole: Bundle) -> None:
    content = (whole.path / MANIFEST_FILE).read_bytes()
    start = content.index(b'"manifest_sha256": "') + len(b'"manifest_sha256": "')
    zeroed = content[:start] + b"0" * 64 + content[start + 64 :]
    assert hashlib.sha256(zeroed).hexdigest().encode() == content[start : start + 64]


def test_a_manifest_cut_off_or_changed_anywhere(whole: Bundle, tmp_path: Path) -> None:
    content = (whole.path / MANIFEST_FILE).read_bytes()
    for position in range(0, len(content), 61):
        changed = bytearray(content)
        changed[position] ^= 1
        for text in (content[:position], bytes(changed)):
            (tmp_path / MANIFEST_FILE).write_bytes(text)
            with pytest.raises(InputError, match=r"manifest\.json"):
                read_bundle(tmp_path)


NAMES = [
    "../x",
    "/etc/hostname",
    "a/../../x",
    "./config.json",
    "a//b",
    "a/",
    "",
    "a\\b",
    "a\nb",
    "a\x00b",
    "\ud800",
    MANIFEST_FILE,
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_that_lead_out_of_the_bundle(name: str, whole: Bundle, tmp_path: Path) -> None:
    manifest = copy.deepcopy(whole.manifest)
    manifest["files"][name] = manifest["files"]["config.json"]
    text = json.dumps({**manifest, "manifest_sha256": "0" * 64}, indent=2, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (tmp_path / MANIFEST_FILE).write_text(
        text.replace('"manifest_sha256": "' + "0" * 64, f'"manifest_sha256": "{digest}')
    )
    with pytest.raises(InputError, match=r"is not the name of a file inside the bundle"):
        read_bundle(tmp_path)


NOT_MANIFESTS = {
    "empty": "",
    "not JSON": "{",
    "not UTF-8": b'{"format": 1, "a": "\xff"}',
    "a list": "[]",
    "no format": "{}",
    "format is text": '{"format": "1"}',
    "format is a fraction": '{"format": 1.0}',
    "format is true": '{"format": true}',
    "format of the future": '{"format": 99, "mra_export": "9.9"}',
    "format of the past": '{"format": 1}',
    "two formats": '{"format": 1, "format": 1}',
    "NaN": '{"format": 1, "a": NaN}',
    "infinite": '{"format": 1, "a": -Infinity}',
    "beyond a double": '{"format": 1, "a": 1e999}',
    "deep": '{"a":' + "[" * 100_000,
    "huge number": '{"format": ' + "9" * 5000 + "}",
    "two objects": '{"format": 1}{}',
}


@pytest.mark.parametrize("kind", NOT_MANIFESTS)
def test_what_is_no_manifest(kind: str, tmp_path: Path) -> None:
    text = NOT_MANIFESTS[kind]
    (tmp_path / MANIFEST_FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"manifest\.json.*(format|readable)") as caught:
        read_bundle(tmp_path)
    reason = {"two formats": "'format' stands twice in one object", "beyond a double": "1e999 is no finite number"}.get(
        kind, ""
    )
    assert reason in str(caught.value)
