"""The C++ serving library: Python's vectors, refusals by value, many threads, sanitizers, and memory that does not grow."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_support import as_hub_cache
from measures import relative_error
from serving_support import (
    SOURCE,
    Driver,
    Refused,
    installed,
    mixed_texts,
    python_vectors,
    relist,
    spell,
    write_manifest,
)

from mra_export.bundle.manifest import read_bundle
from mra_export.bundle.schema import FORMAT
from mra_export.bundle.verify import verify_bundle
from mra_export.embedding.batching import plan_batches
from mra_export.errors import InputError
from mra_export.pipeline.source import ExportRequest

SOAK_SECONDS = float(os.environ.get("MRA_SOAK_SECONDS", "12"))


# The same vectors as Python.


@pytest.mark.parametrize("name", ["tiny_bundle", "minilm_bundle"])
def test_the_same_vectors_as_python(name: str, shared_driver: Driver, request: pytest.FixtureRequest) -> None:
    bundle: Path = request.getfixturevalue(name)
    model = json.loads((bundle / "manifest.json").read_text())["model"]
    texts = mixed_texts(model["vocab_size"], model["max_seq_len"], 24)
    backend, file, device, *_ = shared_driver.ask("open", "m", bundle)
    assert (backend, file, device) == ("onnxruntime", "onnx/model.onnx", "cpu")
    vectors = shared_driver.embed("m", texts)
    expected = python_vectors(bundle, texts)
    assert relative_error(vectors, expected) <= 1e-5
    for one, other in zip(vectors, expected, strict=True):
        assert float(one @ other) / float(np.linalg.norm(one) * np.linalg.norm(other)) >= 1 - 1e-5


def test_a_vector_does_not_depend_on_its_neighbours(any_driver: Driver, tiny_bundle: Path) -> None:
    texts = mixed_texts(120, 256)
    any_driver.ask("open", "m", tiny_bundle, "max_batch_tokens=512")
    together = any_driver.embed("m", texts)
    for index, text in enumerate(texts):
        assert relative_error(any_driver.embed("m", [text])[0], together[index]) <= 1e-6
    assert relative_error(any_driver.embed("m", texts[::-1])[::-1], together) <= 1e-6
    assert any_driver.embed("m", []).shape == (0, 64)


def test_padding_stays_below_a_block_a_text(any_driver: Driver, tiny_bundle: Path) -> None:
    texts = mixed_texts(120, 256, 60)
    for options, limit in (((), 32 * len(texts)), (("pad_to_longest=1",), None)):
        any_driver.ask("open", "m", tiny_bundle, "max_batch_tokens=1024", *options)
        any_driver.embed("m", texts)
        counted, tokens, padded, runs = map(int, any_driver.ask("counters", "m"))
        assert (counted, tokens) == (len(texts), sum(map(len, texts)))
        if limit is not None:
            assert padded - tokens < limit
            exact = padded
            assert runs <= sum(-(-len(text) // 32) for text in texts)
        else:
            assert padded == 256 * len(texts) > exact


def test_a_run_is_as_wide_as_its_longest_text(any_driver: Driver, tiny_bundle: Path) -> None:
    """As in Python: the same tokens are run, padding included; and the vectors are those of texts padded to whole blocks."""
    texts = [text for text in mixed_texts(120, 256, 60) if len(text) > 8] + [[7] * 8]
    any_driver.ask("open", "m", tiny_bundle, "max_batch_tokens=1024")
    vectors = any_driver.embed("m", texts)
    planned = plan_batches([len(text) for text in texts], max_tokens=1024, step=32, max_length=256)
    assert int(any_driver.ask("counters", "m")[2]) == sum(len(batch.rows) * batch.width for batch in planned)
    assert relative_error(vectors, python_vectors(tiny_bundle, texts)) <= 1e-6
    before = int(any_driver.ask("counters", "m")[2])
    any_driver.embed("m", [[7] * 8])
    assert int(any_driver.ask("counters", "m")[2]) - before == 8


def test_the_length_of_a_block_is_the_manifests(any_driver: Driver, tiny_bundle: Path, tmp_path: Path) -> None:
    """Texts of 8 and 9 tokens share a run of 9 where a block has 32, and have runs of their own where it has 8."""
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    note_in_model(bundle, "length_step", "8")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["model"]["length_step"] = 8
    write_manifest(bundle, manifest)
    relist(bundle)
    for path, padded in ((tiny_bundle, 2 * 9), (bundle, 8 + 9)):
        any_driver.ask("open", "m", path)
        any_driver.embed("m", [[7] * 8, [7] * 9])
        assert int(any_driver.ask("counters", "m")[2]) == padded


def note_in_model(bundle: Path, name: str, value: str | None) -> None:
    """Changes what the exporter noted in the ONNX file of a bundle; None takes it away."""
    import onnx

    model = onnx.load(str(bundle / "onnx" / "model.onnx"))
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key != name}
    onnx.helper.set_model_props(model, kept if value is None else {**kept, name: value})
    onnx.save(model, str(bundle / "onnx" / "model.onnx"))


def test_without_pooling_the_mean_is_made_if_asked(any_driver: Driver, tiny_checkpoint: Path, tmp_path: Path) -> None:
    from mra_export.pipeline.create_bundle import create_bundle

    bundle = tmp_path / "unpooled"
    create_bundle(tiny_checkpoint, bundle, request=ExportRequest(pooling="none"), check=False)
    with pytest.raises(Refused, match=r"without pooling\. Set mean_of_tokens"):
        any_driver.ask("open", "m", bundle)
    assert any_driver.ask("open", "m", bundle, "mean_of_tokens=1")[4] == "mean of tokens"
    texts = mixed_texts(120, 256, 12)
    assert relative_error(any_driver.embed("m", texts), python_vectors(bundle, texts)) <= 1e-5


def test_without_the_native_library_the_function_body_runs(
    any_driver: Driver, tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    shutil.rmtree(bundle / "lib")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["variants"][0]["library"] = None
    write_manifest(bundle, manifest)
    relist(bundle)
    texts = mixed_texts(120, 256, 12)
    any_driver.ask("open", "with", tiny_bundle)
    any_driver.ask("open", "without", bundle)
    assert relative_error(any_driver.embed("without", texts), any_driver.embed("with", texts)) <= 1e-5


def test_many_threads_at_once(any_driver: Driver, tiny_bundle: Path) -> None:
    texts = spell(mixed_texts(120, 256, 20))
    any_driver.ask("open", "m", tiny_bundle, "threads=1", "parallel_runs=3")
    assert float(any_driver.ask("threads", "m", 8, 12, texts)[0]) <= 1e-6


# What is wrong is refused by name, and the process lives on.


HOSTILE: dict[str, tuple[list[list[int]], str]] = {
    "empty": ([[5], []], "Text 1 has no tokens"),
    "too long": ([[5] * 257], "Text 0 has 257 tokens, more than the 256"),
    "negative": ([[5], [5, -1]], "Text 1 has the token id -1 at place 1; ids are 0 to 119"),
    "past the vocabulary": ([[5, 6, 120]], "Text 0 has the token id 120 at place 2"),
    "smallest": ([[-(2**63)]], "Text 0 has the token id -9223372036854775808"),
    "largest": ([[1], [2], [2**63 - 1]], "Text 2 has the token id 9223372036854775807"),
}


def test_hostile_texts_are_refused_and_good_ones_still_answered(any_driver: Driver, tiny_bundle: Path) -> None:
    any_driver.ask("open", "m", tiny_bundle)
    before = any_driver.embed("m", [[5, 6, 7]])
    for texts, message in HOSTILE.values():
        with pytest.raises(Refused) as refused:
            any_driver.embed("m", texts)
        assert refused.value.code == 2
        assert message in str(refused.value)
    assert np.array_equal(any_driver.embed("m", [[5, 6, 7]]), before)


def test_misuse_of_the_interface_is_answered(any_driver: Driver, tiny_bundle: Path) -> None:
    any_driver.ask("open", "m", tiny_bundle)
    said = any_driver.ask("misuse", "m")[0].split(" | ")
    assert all("must not be null" in text for text in said[:3])
    assert "has 18446744073709551615 tokens" in said[3]
    assert "has no tokens" in said[4]
    assert "more than this process can address" in said[5] or "out of memory" in said[5]
    assert said[6:] == ["This Embedder was moved away; nothing is open.", "0"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("gpu=-1", "gpu=-1 must be from 0"),
        ("threads=99999", "threads=99999 must be from 0 to 1024"),
        ("parallel_runs=-3", "parallel_runs=-3 must be"),
        ("max_batch_tokens=0", "max_batch_tokens=0 must be from 1"),
        ("max_batch_tokens=255", "max_batch_tokens=255 must be at least the longest text's 256 tokens"),
        ("variant=trt", "variant='trt' is not in .* It has onnx/model.onnx \\(onnxruntime\\)"),
    ],
)
def test_bad_options_are_refused(option: str, message: str, shared_driver: Driver, tiny_bundle: Path) -> None:
    with pytest.raises(Refused, match=message) as refused:
        shared_driver.ask("open", "m", tiny_bundle, option)
    assert refused.value.code == 2


def test_what_the_machine_lacks_is_said(shared_driver: Driver, tiny_bundle: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    with pytest.raises(Refused, match=r"has no CUDA provider\. Take the one of the package onnxruntime-gpu") as refused:
        shared_driver.ask("open", "m", tiny_bundle, "device=gpu")
    assert refused.value.code == 4


# Damaged bundles.


def damages(bundle: Path) -> Iterator[tuple[str, Path, str]]:
    """Applies one damage after the other to a bundle, each undone after its turn: what was done, the file, what is said."""
    for file in sorted(path for path in bundle.rglob("*") if path.is_file()):
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[len(flipped) // 2] ^= 1
        for name, content in (
            ("flipped", bytes(flipped)),
            ("cut off", whole[:-1]),
            ("longer", whole + b"\n"),
            ("empty", b""),
        ):
            file.write_bytes(content)
            yield f"{file.name} {name}", file, file.name
        file.unlink()
        yield f"{file.name} missing", file, file.name
        file.mkdir()
        yield f"{file.name} a folder", file, file.name
        file.rmdir()
        file.symlink_to(SOURCE / "CMakeLists.txt")
        yield f"{file.name} a link", file, file.name
        file.unlink()
        file.write_bytes(whole)
    for extra in (bundle / "extra", bundle / "onnx" / "model.onnx_data"):
        extra.write_bytes(b"1")
        yield f"{extra.name} added", extra, extra.name
        extra.unlink()
    (bundle / "folder").mkdir()
    yield "a folder added", bundle / "folder", "folder"
    (bundle / "folder").rmdir()
    moved = bundle.with_name("moved")
    shutil.move(bundle / "onnx", moved)
    (bundle / "onnx").symlink_to(moved)
    yield "onnx a link out of the bundle", bundle / "onnx", "onnx"
    (bundle / "onnx").unlink()
    shutil.move(moved, bundle / "onnx")


def test_the_hubs_cache_and_what_storage_puts_beside(any_driver: Driver, tiny_bundle: Path, tmp_path: Path) -> None:
    """Links of files lead anywhere, as the content is what counts; a few names are passed over, and no others."""
    snapshot = as_hub_cache(tiny_bundle, tmp_path / "cache")
    for name in (".gitattributes", "onnx/.DS_Store", "onnx/._model.onnx", "lib/.nfs0001", "README.md"):
        (snapshot / name).write_text("x")
    for name in (".git/objects", ".cache/huggingface/download"):
        (snapshot / name).mkdir(parents=True)
        (snapshot / name / "x").write_text("x")
    (snapshot / "lost+found").mkdir(mode=0o000)
    any_driver.ask("open", "m", snapshot)
    texts = mixed_texts(120, 256, 4)
    assert relative_error(any_driver.embed("m", texts), python_vectors(tiny_bundle, texts)) <= 1e-5
    for name in (".cache/other", "onnx/README.md", "onnx/.git", ".hidden"):
        (snapshot / name).write_text("x")
        with pytest.raises(Refused, match=re.escape(f"{name} is not listed in manifest.json")) as refused:
            any_driver.ask("open", "m", snapshot)
        assert refused.value.code == 2
        (snapshot / name).unlink()
    config = snapshot / "config.json"
    blob = config.resolve()
    for target in ("config.json", "../gone", "/"):  # in a circle, nowhere, to a directory
        config.unlink()
        config.symlink_to(target)
        with pytest.raises(Refused, match=r"config\.json is missing or no file") as refused:
            any_driver.ask("open", "m", snapshot)
        assert refused.value.code == 2
    config.unlink()
    config.symlink_to(blob)
    flipped = bytearray(blob.read_bytes())
    flipped[5] ^= 1
    blob.write_bytes(bytes(flipped))
    with pytest.raises(Refused, match=r"config\.json was changed: its SHA-256"):
        any_driver.ask("open", "m", snapshot)


def test_each_damaged_file_is_refused(any_driver: Driver, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    any_driver.ask("verify", bundle, 1)
    count = 0
    for what, _, name in damages(bundle):
        with pytest.raises(Refused) as refused:
            any_driver.ask("open", "m", bundle)
        assert refused.value.code == 2, what
        assert name in str(refused.value), what
        count += 1
    assert count >= 7 * 5
    any_driver.ask("open", "m", bundle)


def full_manifest(bundle: Path) -> dict[str, Any]:
    """A manifest with every field that the format has: an engine, a tokenizer, a licence and parity figures among them."""
    manifest: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    openvino = {
        "backend": "openvino",
        "file": "openvino/openvino_model.xml",
        "precision": "int8-weights",
        "library": "lib/libmra_openvino.so",
        "backend_version": "2026.4.1",
    }
    for name in (
        "engines/a.engine",
        "engines/a.engine.json",
        "lib/libmra_tensorrt.so",
        "tokenizer.json",
        "LICENSE",
        openvino["file"],
        openvino["library"],
    ):
        manifest["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    profile = {"min": [1, 1], "opt": [4, 64], "max": [8, 256]}
    engine = {
        "backend": "rtx",
        "file": "engines/a.engine",
        "manifest": "engines/a.engine.json",
        "precision": "fp16",
        "library": "lib/libmra_tensorrt.so",
        "backend_version": "1.7.1.116",
        "version_compatible": False,
        "compute_capability": "9.0",
        "hardware_compatible": False,
        "gpu": "ahead of time",
        "profiles": {"input_ids": profile, "attention_mask": copy.deepcopy(profile)},
    }
    comparison = {
        "reference": "PyTorch",
        "candidate": "model.onnx",
        "metrics": {"relative": 1.5e-6, "cosine": None},
        "tolerance": {"relative": 1e-4},
        "ok": True,
        "notes": ["a note"],
        "layers": [{}],
        "cases": [{}],
    }
    manifest["variants"] += [engine, openvino]
    manifest["parity"] = [comparison]
    manifest["tokenizer"] = {"file": "tokenizer.json", "max_length": 200, "truncation_side": "left"}
    manifest["text"] = {"prompts": {"query": "query: ", "passage": ""}, "default_prompt": "passage"}
    dense = {"in_features": 64, "out_features": 40, "bias": False, "activation": "GELU", "residual": True}
    manifest["embedding"] = {
        "dimension": 30,
        "similarity": "dot",
        "modules": [
            {"kind": "Pooling", "modes": ["mean"], "include_prompt": False},
            {"kind": "Dense", "folder": "2_Dense", **dense},
            {"kind": "LayerNorm", "folder": "3_LayerNorm", "dimension": 40},
            {"kind": "Normalize"},
            {"kind": "Truncate", "dimension": 30},
        ],
    }
    for folder in ("2_Dense", "3_LayerNorm"):
        manifest["files"][f"{folder}/model.safetensors"] = {"bytes": 1, "sha256": "0" * 64}
    manifest["license"] = {"id": "apache-2.0", "name": None, "link": None, "source": "README.md", "file": "LICENSE"}
    manifest["provenance"] = {"source": "org/model", "base_model": ["org/base"], "random_init": 3}
    return manifest


def is_free(way: list[Any]) -> bool:
    """Whether an object of the manifest has any names."""
    return way[-1:] in (["files"], ["versions"], ["profiles"], ["metrics"], ["tolerance"], ["prompts"]) or way[
        -2:-1
    ] in (
        ["attributes"],
        ["layers"],
        ["cases"],
    )


def spots(value: Any, where: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Every field of a manifest: how a message names it, and the way to it."""

    def inner(value: Any, where: str, way: list[Any]) -> Iterator[tuple[str, list[Any]]]:
        if way:
            yield where, way
        if isinstance(value, dict):
            is_map = is_free(way)
            for name, item in value.items():
                spelled = f"{where}['{name}']" if is_map else f"{where}.{name}".lstrip(".")
                yield from inner(item, spelled, [*way, name])
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from inner(item, f"{where}[{index}]", [*way, index])

    yield from inner(value, where, [])


def at(manifest: Any, way: list[Any]) -> Any:
    for step in way:
        manifest = manifest[step]
    return manifest


def mutations(manifest: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Manifests with one field wrong: of another type, absent, or not in the format; and the name that a message must hold."""
    for where, way in spots(manifest):
        if way == ["manifest_sha256"]:
            continue
        value = at(manifest, way)
        for wrong in ([7] if isinstance(value, str) else ["\n"]) + (
            [] if isinstance(value, (dict, list)) else [{"a": []}]
        ):
            changed = copy.deepcopy(manifest)
            at(changed, way[:-1])[way[-1]] = wrong
            yield where, changed
        if isinstance(way[-1], str) and not is_free(way[:-1]):
            changed = copy.deepcopy(manifest)
            del at(changed, way[:-1])[way[-1]]
            yield where, changed
        if isinstance(value, dict) and not is_free(way):
            changed = copy.deepcopy(manifest)
            at(changed, way)["unknown_field"] = 1
            yield "unknown_field", changed


def values(manifest: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Manifests with a field whose type is right and whose value is not."""
    cases: list[tuple[str, list[Any], Any]] = [
        ("format", ["format"], FORMAT + 1),
        ("model.hidden_size", ["model", "hidden_size"], 0),
        ("model.vocab_size", ["model", "vocab_size"], -1),
        ("model.length_step", ["model", "length_step"], 0),
        ("model.dtype", ["model", "dtype"], "fp64"),
        ("model.inputs", ["model", "inputs"], ["input_ids"]),
        ("embedding", ["embedding"], None),
        ("embedding.dimension", ["embedding", "dimension"], 31),
        ("embedding.similarity", ["embedding", "similarity"], "cos"),
        ("embedding.modules is empty", ["embedding", "modules"], []),
        ("embedding.modules[0].modes[0]", ["embedding", "modules", 0, "modes"], ["most"]),
        ("embedding.modules[0].modes is empty", ["embedding", "modules", 0, "modes"], []),
        ("embedding.modules[1].in_features=64", ["embedding", "modules", 0, "modes"], ["cls", "max"]),
        ("embedding.modules[0].kind", ["embedding", "modules", 0, "kind"], "Dense"),
        ("embedding.modules[1].kind", ["embedding", "modules", 1, "kind"], "Pooling"),
        ("embedding.modules[3].kind", ["embedding", "modules", 3, "kind"], "Dropout"),
        ("embedding.modules[1].folder", ["embedding", "modules", 1, "folder"], "../2_Dense"),
        ("embedding.modules[2].folder", ["embedding", "modules", 2, "folder"], "3_Other"),
        ("embedding.modules[2].dimension", ["embedding", "modules", 1, "out_features"], 41),
        ("text.default_prompt", ["text", "default_prompt"], "document"),
        ("tokenizer.truncation_side", ["tokenizer", "truncation_side"], "middle"),
        ("tokenizer.file", ["tokenizer", "file"], "vocab.txt"),
        ("tokenizer.max_length", ["tokenizer", "max_length"], 257),
        ("license.file", ["license", "file"], "../LICENSE"),
        ("variants", ["variants"], []),
        ("variants[0].backend", ["variants", 0, "backend"], "rtx"),
        ("variants[0].file", ["variants", 0, "file"], "onnx/other.onnx"),
        ("variants[0].library", ["variants", 0, "library"], "/etc/passwd"),
        ("variants[0].precision", ["variants", 0, "precision"], "fp16"),
        ("variants[1].backend", ["variants", 1, "backend"], "onnxruntime"),
        ("variants[1].compute_capability", ["variants", 1, "compute_capability"], "9"),
        ("variants[1].manifest", ["variants", 1, "manifest"], "a.json"),
        ("variants[2].precision", ["variants", 2, "precision"], "fp16"),
        ("variants[2].library", ["variants", 2, "library"], "lib/other.so"),
        ("variants has openvino twice", ["variants", 1], manifest["variants"][2]),
        ("files['LICENSE'].sha256", ["files", "LICENSE", "sha256"], "0" * 63 + "G"),
        ("files['LICENSE'].bytes", ["files", "LICENSE", "bytes"], -1),
        ("versions['torch']", ["versions", "torch"], "x" * 5000 + "\n"),
    ]
    for where, way, value in cases:
        changed = copy.deepcopy(manifest)
        at(changed, way[:-1])[way[-1]] = value
        yield where, changed
    for name in ("", "/etc/passwd", "../up", "a/../../b", "a//b", "./a", "a\\b", "a\nb", "manifest.json"):
        changed = copy.deepcopy(manifest)
        changed["files"][name] = {"bytes": 1, "sha256": "0" * 64}
        yield "is not the name of a file inside the bundle", changed


def test_each_wrong_field_is_refused_here_as_in_python(any_driver: Driver, tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = full_manifest(tiny_bundle)
    good = write_manifest(tmp_path / "good", manifest)
    read_bundle(good)
    any_driver.ask("verify", good, 0)
    cases = [*mutations(manifest), *values(manifest)]
    assert len(cases) > 150
    for where, changed in cases:
        bundle = write_manifest(tmp_path / "bundle", changed)
        with pytest.raises(InputError) as in_python:
            read_bundle(bundle)
        with pytest.raises(Refused) as refused:
            any_driver.ask("verify", bundle, 0)
        assert refused.value.code == 2
        assert where in str(refused.value), (where, str(refused.value))
        assert where in str(in_python.value), (where, str(in_python.value))


def test_what_a_bundle_says_of_texts_is_told(any_driver: Driver, tiny_bundle: Path, tmp_path: Path) -> None:
    """Prompts, limit and side are the caller's to obey; the width of a vector is not the model's where modules change it."""
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    told = any_driver.ask("texts", bundle)
    assert told == ["mean", "64", "64", "0", "1", "", "none", str(manifest["model"]["max_seq_len"]), ""]
    (bundle / "tokenizer.json").write_text("{}")
    manifest["files"]["tokenizer.json"] = {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
    manifest["tokenizer"] = {"file": "tokenizer.json", "max_length": 200, "truncation_side": "left"}
    manifest["text"] = {"prompts": {"query": "q: ", "passage": "größer\n"}, "default_prompt": "query"}
    pooling = {"kind": "Pooling", "modes": ["mean"], "include_prompt": False}
    manifest["embedding"] = {"dimension": 64, "similarity": "dot", "modules": [pooling, {"kind": "Normalize"}]}
    write_manifest(bundle, manifest)
    told = any_driver.ask("texts", bundle)
    assert told == ["mean", "64", "64", "1", "0", "dot", "query", "200", "left", "passage=größer\\n", "query=q: "]


def test_a_manifest_that_was_touched_is_refused(any_driver: Driver, tiny_bundle: Path, tmp_path: Path) -> None:
    """Without a new seal: each value, even where the new one would do."""
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    text = (tiny_bundle / "manifest.json").read_text()
    bundle = write_manifest(tmp_path / "bundle", manifest)
    changes = [
        ('"hidden_size": 64', '"hidden_size": 65'),
        ('"pad_token_id": 1', '"pad_token_id": 2'),
        ('"include_prompt": ', '"include_prompt":  '),
        (manifest["manifest_sha256"], "0" * 64),
        ('"mean"', '"cls"'),
        ("\n}\n", "\n}\n\n"),
        (f'"format": {FORMAT}', f'"format": {FORMAT}, "manifest_sha256": "' + manifest["manifest_sha256"] + '"'),
    ]
    for old, new in changes:
        assert old in text
        (bundle / "manifest.json").write_text(text.replace(old, new))
        with pytest.raises(Refused, match="manifest_sha256"):
            any_driver.ask("verify", bundle, 0)
    raw = (b"\xff", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82")
    not_utf8 = [text.encode().replace(b'"mean"', b'"' + code + b'"') for code in raw]
    for content in (
        b"",
        b"{",
        b"[]",
        b"nothing",
        b'{"format": 1',
        b"\xff\xfe",
        b"{" * 100_000,
        text.encode()[:-3],
        *not_utf8,
    ):
        (bundle / "manifest.json").write_bytes(content)
        with pytest.raises(Refused, match="not a readable manifest"):
            any_driver.ask("verify", bundle, 0)
    (bundle / "manifest.json").write_text(re.sub(r'"scale": [0-9.]+', '"scale": 1e999', text))
    with pytest.raises(Refused, match=r"'scale'.*1e999 must be a number"):
        any_driver.ask("verify", bundle, 0)
    for directory in (tmp_path / "nowhere", tmp_path, tiny_bundle / "manifest.json"):
        with pytest.raises(Refused, match=r"is no(t a directory| bundle)"):
            any_driver.ask("open", "m", directory)


def test_a_model_that_is_not_the_manifests_is_refused(any_driver: Driver, tiny_bundle: Path, tmp_path: Path) -> None:
    """With a new seal and new hashes, as an attacker writes them: nothing is believed that the file contradicts."""
    pooling = {"kind": "Pooling", "modes": ["mean"], "include_prompt": True}
    modules = [pooling, {"kind": "Truncate", "dimension": 32}]
    narrow = {"dimension": 32, "similarity": None, "modules": modules}
    cases: list[tuple[list[Any], Any, str]] = [
        (["embedding"], narrow, "sentence_embedding has 64 numbers a vector, manifest.json says 32"),
        (
            ["model", "inputs"],
            ["input_ids", "attention_mask"],
            "has the input token_type_ids, which manifest.json does not",
        ),
        (["variants", 0, "library"], "config.json", "config.json cannot be loaded"),
        (["variants", 0, "file"], "config.json", "cannot load .*config.json"),
    ]
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    whole = json.loads((bundle / "manifest.json").read_text())
    for way, value, message in cases:
        changed = copy.deepcopy(whole)
        at(changed, way[:-1])[way[-1]] = value
        write_manifest(bundle, changed)
        with pytest.raises(Refused, match=message):
            any_driver.ask("open", "m", bundle)


FACTS: list[tuple[str, int, str]] = [
    ("vocab_size", 121, "manifest.json says vocab_size=121, and .*model.onnx is a model of 120"),
    ("vocab_size", 119, "manifest.json says vocab_size=119, and .*model.onnx is a model of 120"),
    ("max_seq_len", 257, "manifest.json says max_seq_len=257, and .*model.onnx is a model of 256"),
    ("pad_token_id", 2, "manifest.json says pad_token_id=2, and .*model.onnx is a model of 1"),
    ("pad_token_id", 120, "model.pad_token_id=120 is not below model.vocab_size=120"),
    ("length_step", 64, "manifest.json says length_step=64, and .*model.onnx is a model of 32"),
    ("hidden_size", 1 << 40, "has vectors of 1099511627776 numbers, more than the 1048576 that are served"),
]


@pytest.mark.parametrize(("name", "value", "message"), FACTS, ids=str)
def test_what_the_manifest_says_of_ids_and_lengths_is_held_against_the_model(
    name: str, value: int, message: str, any_driver: Driver, tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["model"][name] = value
    if name == "hidden_size":
        manifest["embedding"]["dimension"] = value
    write_manifest(bundle, manifest)
    with pytest.raises(Refused, match=message) as refused:
        any_driver.ask("open", "m", bundle)
    assert refused.value.code == 2


def test_a_note_that_is_no_number_is_refused(any_driver: Driver, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    for value in ("many", "", "12 ", "9" * 30, "\x1b[2J"):
        note_in_model(bundle, "vocab_size", value)
        relist(bundle)
        with pytest.raises(Refused, match=r"model.onnx notes vocab_size=.*, which is no number") as refused:
            any_driver.ask("open", "m", bundle)
        assert str(refused.value).isprintable()


def test_a_damaged_model_ends_nothing(any_driver: Driver, tiny_bundle: Path, tmp_path: Path) -> None:
    """Without the hashes: what stands at each field of the file is overwritten with lengths and numbers that lead anywhere."""
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    file = bundle / "onnx" / "model.onnx"
    whole = file.read_bytes()
    places = [0, 1, 2, 3, 5, 8, 13, len(whole) - 1, len(whole) - 2, len(whole) - 5, len(whole) - 30, len(whole) - 60]
    for place in [*places, *(whole.index(word) - 1 for word in (b"vocab_size", b"max_seq_len", b"pad_token_id"))]:
        for damage in (b"\xff" * 10, b"\x72\xff\xff\xff\xff\x0f", b"\x00"):
            file.write_bytes(whole[:place] + damage + whole[place + len(damage) :])
            with contextlib.suppress(Refused):
                any_driver.ask("open", "m", bundle, "verify_files=0")
    file.write_bytes(whole)
    any_driver.ask("open", "m", bundle)


@pytest.mark.parametrize(("name", "value"), [("vocab_size", 121), ("max_seq_len", 300)])
def test_a_model_that_notes_nothing_is_tried(
    name: str, value: int, any_driver: Driver, tiny_bundle: Path, tmp_path: Path
) -> None:
    """An older export, or one whose notes were taken away: the model itself refuses the largest id, or the longest text."""
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    note_in_model(bundle, name, None)
    relist(bundle)
    any_driver.ask("open", "m", bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["model"][name] = value
    write_manifest(bundle, manifest)
    with pytest.raises(Refused, match=r"ONNX Runtime cannot run .*model.onnx on what manifest.json allows") as refused:
        any_driver.ask("open", "m", bundle)
    assert refused.value.code == 2


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.6, 0.99, "all but a byte"], ids=str)
@pytest.mark.parametrize("listed", [False, True], ids=["hashes left out", "listed again"])
def test_a_library_that_was_cut_off_is_refused(
    keep: float | str, listed: bool, any_driver: Driver, tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    library = bundle / "lib" / "libmra_onnxruntime.so"
    size = library.stat().st_size
    os.truncate(library, size - 1 if isinstance(keep, str) else int(size * keep))
    if listed:
        relist(bundle)
    with pytest.raises(Refused, match=r"libmra_onnxruntime\.so (has|cannot be loaded)") as refused:
        any_driver.ask("open", "m", bundle, f"verify_files={int(listed)}")
    assert "was cut off or damaged" in str(refused.value) or keep == 0.0
    if listed and keep != 0.0:
        with pytest.raises(InputError, match="was cut off or damaged"):
            verify_bundle(bundle)


@pytest.mark.parametrize("name", ["lib/libmra_onnxruntime.so", "onnx/model.onnx"])
def test_a_pipe_is_not_waited_on(name: str, any_driver: Driver, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    for verify in (0, 1):
        with pytest.raises(Refused, match=rf"{name} is .*no file"):
            any_driver.ask("open", "m", bundle, f"verify_files={verify}")


def test_a_manifest_of_more_than_a_mebibyte_is_not_read(any_driver: Driver, tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    file = tmp_path / "bundle" / "manifest.json"
    manifest["versions"]["filler"] = "x"
    write_manifest(file.parent, manifest)
    missing = (1 << 20) - file.stat().st_size
    manifest["versions"]["filler"] = "x" * (1 + missing)
    write_manifest(file.parent, manifest)
    assert file.stat().st_size == 1 << 20
    read_bundle(file.parent)
    any_driver.ask("verify", file.parent, 0)
    manifest["versions"]["filler"] += "x"
    write_manifest(file.parent, manifest)
    with pytest.raises(Refused, match="has 1048577 bytes, more than a manifest can have"):
        any_driver.ask("verify", file.parent, 0)
    with pytest.raises(InputError, match="has 1048577 bytes, more than a manifest can have"):
        read_bundle(file.parent)


HOSTILE_TEXTS = ["\x1b[2J\x1b]0;title\x07", "a\x7f", "\x9b31m", "\u202egpj.exe", "\u2028line", "\ufeff", "\U000e0041"]


@pytest.mark.parametrize("text", HOSTILE_TEXTS, ids=ascii)
def test_no_message_steers_a_terminal(text: str, any_driver: Driver, tiny_bundle: Path, tmp_path: Path) -> None:
    """Wherever a manifest holds such text: it is refused, in words that show it and do not obey it; names of files alike."""
    escaped = text.encode("unicode_escape").decode()
    whole = json.loads((tiny_bundle / "manifest.json").read_text())
    cases: list[Callable[[dict[str, Any]], object]] = [
        lambda m: m.update(mra_export=f"v{text}v"),
        lambda m: m["model"].update(architecture=f"v{text}v"),
        lambda m: m["model"].update(dtype=f"v{text}v"),
        lambda m: m["model"]["inputs"].append(f"v{text}v"),
        lambda m: m["versions"].update({f"v{text}v": "1"}),
        lambda m: m["files"].update({f"v{text}v": {"bytes": 1, "sha256": "0" * 64}}),
        lambda m: m["variants"][0].update(file=f"v{text}v"),
        lambda m: m.update({f"v{text}v": 1}),
    ]
    for change in cases:
        manifest = copy.deepcopy(whole)
        change(manifest)
        bundle = write_manifest(tmp_path / "bundle", manifest)
        with pytest.raises(InputError) as in_python:
            read_bundle(bundle)
        with pytest.raises(Refused) as refused:
            any_driver.ask("verify", bundle, 0)
        for said in (str(in_python.value), str(refused.value)):
            assert said.isprintable(), ascii(said)
            assert escaped in said.replace("\\u00", "\\x"), said  # JSON spells it so
    for path in (tmp_path / f"no{text}where", tmp_path / f"no{text}where" / "more"):
        with pytest.raises(Refused) as refused:
            any_driver.ask("open", "m", path)
        assert str(refused.value).isprintable()
        assert escaped in str(refused.value)


def test_bytes_that_are_no_text_are_escaped(any_driver: Driver, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"no\\xffwhere is not a directory"):
        any_driver.ask("open", "m", os.fsdecode(os.fsencode(tmp_path) + b"/no\xffwhere"))


def test_onnxruntime_reports_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    """It keeps an identifier of the machine in the home directory where its telemetry is on; a user's own setting counts."""
    for value, is_off in ((None, True), ("1", True), ("0", False)):
        home = tmp_path / f"home-{value}"
        home.mkdir()
        kept = {
            name: text for name, text in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
        }
        env = {**kept, "HOME": str(home), **({} if value is None else {"ORT_DISABLE_TELEMETRY": value})}
        command = [str(installed("shared") / "bin" / "mra-embed"), str(tiny_bundle)]
        subprocess.run(command, input="5 6\n", env=env, check=True, capture_output=True, text=True)
        found = [path.name for path in home.rglob("*")]
        if is_off:
            assert not found
        elif not found:
            pytest.skip("this ONNX Runtime reports nothing, so the test above shows nothing")


# For hours.


@pytest.mark.skipif(SOAK_SECONDS <= 0, reason="MRA_SOAK_SECONDS is 0")
def test_memory_does_not_grow(shared_driver: Driver, tiny_bundle: Path) -> None:
    """Mixed requests, bad ones among them, in 4 threads, for MRA_SOAK_SECONDS, by default 12.

    Resident memory after the first third is the base. 8 MiB above it is the allocator's; a leak of one request's vectors
    would pass that within seconds.
    """
    shared_driver.ask("open", "m", tiny_bundle, "threads=1", "parallel_runs=2", "max_batch_tokens=1024")
    warm, most, last, good, refused, wrong = map(int, shared_driver.ask("soak", "m", 4, SOAK_SECONDS))
    assert good > 20
    assert refused > 5
    assert wrong == 0
    assert max(most, last) - warm <= 8 * 1024, (
        f"resident KiB: {warm} warm, {most} at most, {last} at the end, {good} requests"
    )


def test_mixed_requests_under_the_sanitizers(sanitized_driver: Driver, tiny_bundle: Path) -> None:
    sanitized_driver.ask("open", "m", tiny_bundle, "threads=1", "parallel_runs=2", "max_batch_tokens=512")
    *_, good, refused, wrong = map(int, sanitized_driver.ask("soak", "m", 4, 3))
    assert good > 0
    assert refused > 0
    assert wrong == 0


# The library as it is installed.


def test_the_shared_library_shows_only_its_interface() -> None:
    library = installed("shared") / "lib" / "libmra_serving.so"
    symbols = subprocess.run(
        ["nm", "-DC", "--defined-only", library], capture_output=True, text=True, check=True
    ).stdout
    own = [
        line.split(" ", 2)[2]
        for line in symbols.splitlines()
        if " W " not in line and " V " not in line and " u " not in line
    ]
    assert own
    assert all(name.startswith(("mra::serving::", "mra_")) for name in own), own
    assert {name for name in own if name.startswith("mra_")} == set(
        re.findall(r"MRA_C_API [^;]*?\b(mra_\w+)\(", (SOURCE / "include" / "mra_serving.h").read_text())
    )
    dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert "Library soname: [libmra_serving.so.0.1]" in dynamic


def test_the_header_needs_only_the_standard_library(tmp_path: Path) -> None:
    header, batcher = SOURCE / "include" / "mra" / "serving.h", SOURCE / "include" / "mra" / "batcher.h"
    for file in (header, batcher):
        included = [line for line in file.read_text().splitlines() if line.startswith("#include") and ".h" in line]
        assert included == ['#include "mra/serving.h"'] * (file == batcher)
    command = [
        "g++",
        "-std=c++17",
        "-fsyntax-only",
        "-Wall",
        "-Wextra",
        "-Wpedantic",
        "-Wconversion",
        "-Werror",
        "-x",
        "c++",
    ]
    source = tmp_path / "includes.cc"
    source.write_text(f'#include "{batcher}"\n#include "{SOURCE / "include" / "mra_serving.h"}"\n')
    subprocess.run([*command, f"-I{SOURCE / 'include'}", str(source)], check=True)
