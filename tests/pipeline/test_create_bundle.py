"""The bundle that is made: what is in it, the same bytes twice, at home anywhere; and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundle_support import (
    FILES,
    NAME,
    STATED,
    Parts,
    change,
    flip,
    give_side_files,
    native,
    tree,
    write_engine,
)
from checkpoints import save_checkpoint

from mra_export.bundle.manifest import Bundle
from mra_export.bundle.verify import verify_bundle
from mra_export.checkpoint.modules import Normalize, Pooling
from mra_export.engine.manifest import manifest_path
from mra_export.errors import DependencyError, InputError
from mra_export.export.onnx_model import MODEL_FILE
from mra_export.pipeline.create_bundle import create_bundle
from mra_export.pipeline.source import ExportRequest


def test_the_manifest_says_what_is_there(whole: Bundle, parts: Parts) -> None:
    bundle = verify_bundle(whole.path)
    assert sorted(bundle.manifest["files"]) == FILES
    assert (bundle.task, bundle.dtype, bundle.family) == ("feature-extraction", "fp32", "mra")
    assert (bundle.hidden_size, bundle.max_seq_len, bundle.vocab_size, bundle.pad_token_id) == (64, 256, 120, 1)
    assert bundle.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert bundle.outputs == ("last_hidden_state", "sentence_embedding")
    assert bundle.modules == (Pooling(("cls",)), Normalize())
    assert (bundle.dimension, bundle.similarity) == (64, "dot")
    assert (bundle.prompts, bundle.default_prompt) == ({"query": "word1 word2 ", "document": ""}, "document")
    assert bundle.tokenizer_file == whole.path / "tokenizer.json"
    assert bundle.tokenizer_max_length == 200
    assert bundle.model_file == whole.path / MODEL_FILE
    assert bundle.library == whole.path / "lib" / "libmra_onnxruntime.so"
    operator = bundle.manifest["model"]["operator"]
    assert (operator["domain"], operator["type"], operator["version"], operator["nodes"]) == (
        "mra",
        "Mra2Attention",
        1,
        2,
    )
    assert operator["attributes"][0]["num_blocks"] == 32
    assert bundle.manifest["parity"] is None
    assert bundle.manifest["license"] == {
        "id": "apache-2.0", "name": None, "link": None, "source": STATED, "file": "LICENSE",
    }  # fmt: skip
    assert bundle.manifest["provenance"] == {"source": NAME, "base_model": ["someone/dense-base"], "random_init": None}
    assert [v.backend for v in bundle.variants] == ["onnxruntime", "rtx", "tensorrt"]
    fast, other = bundle.variants[1:]
    assert (fast.file.name, fast.library) == ("fast.engine", None)  # it carries its plugin
    assert other.library == whole.path / "lib" / "libmra_tensorrt.so"
    assert (other.compute_capability, other.gpu, other.precision) == ("8.9", "NVIDIA L4", "fp16")
    assert other.profiles is not None
    assert other.profiles["input_ids"]["max"] == [32, 256]
    assert other.manifest == manifest_path(other.file)


@pytest.mark.slow
def test_a_checkpoint_without_pooling_gets_the_mean(tmp_path: Path, tiny_checkpoint: Path) -> None:
    made = create_bundle(tiny_checkpoint, tmp_path / "b", check=False)
    assert made.modules == (Pooling(("mean",)),)
    assert (made.manifest["license"], made.manifest["tokenizer"]) == (None, None)
    assert made.manifest["provenance"] == {"source": None, "base_model": [], "random_init": None}
    assert made.tokenizer_max_length == made.max_seq_len
    assert set(made.manifest["versions"]) >= {"torch", "transformers", "onnx"}


@pytest.mark.slow
def test_pooling_as_asked_and_random_weights(parts: Parts, tmp_path: Path) -> None:
    made = create_bundle(parts.checkpoint, tmp_path / "a", check=False, request=ExportRequest(normalize=False))
    assert made.modules == (Pooling(("cls",)),)
    assert "2_Normalize/config.json" not in made.manifest["files"]
    made = create_bundle(
        parts.checkpoint, tmp_path / "b", check=False, request=ExportRequest(pooling="none", random_init=7)
    )
    assert (made.modules, made.dimension) == ((), None)
    assert made.outputs == ("last_hidden_state",)
    assert "modules.json" not in made.manifest["files"]
    assert made.manifest["provenance"]["random_init"] == 7
    verify_bundle(made.path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "modules.json"])
@pytest.mark.parametrize("content", ["\ufeff{}", '{"a": 1,}', "[", "version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_cannot_be_read_is_named_where_it_is(name: str, content: str, parts: Parts, tmp_path: Path) -> None:
    """Not as the copy of it that is gone by then."""
    source = Path(shutil.copytree(parts.onnx, tmp_path / "onnx"))
    (source / name).write_text(content)
    with pytest.raises(InputError, match=name) as caught:
        create_bundle(source, tmp_path / "b", check=False, library=parts.library)
    assert str(source / name) in str(caught.value) or f"The checkpoint's {name}" in str(caught.value)
    assert ".b." not in str(caught.value)
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_another_task(tmp_path: Path) -> None:
    source = save_checkpoint(tmp_path / "c", "MraForSequenceClassification")
    made = create_bundle(source, tmp_path / "b", check=False)
    assert (made.task, made.outputs, made.modules) == ("text-classification", ("logits",), ())


@pytest.mark.parametrize(
    ("settings", "is_there"),
    [
        ({"tokenizer_class": "BertTokenizer"}, True),
        ({"tokenizer_class": "RobertaTokenizer"}, False),  # finds no vocabulary in vocab.txt
        ({}, False),
    ],
)
def test_a_tokenizer_in_older_files(settings: dict[str, str], is_there: bool, parts: Parts, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import BertTokenizer

    source = Path(shutil.copytree(parts.onnx, tmp_path / "onnx"))
    (source / "tokenizer.json").unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(90))]
    (source / "vocab.txt").write_text("\n".join(words) + "\n")
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    made = create_bundle(source, tmp_path / "b", check=False, library=parts.library)
    assert (made.tokenizer_file is not None) is is_there
    if made.tokenizer_file is not None:
        ids = Tokenizer.from_file(str(made.tokenizer_file)).encode("word3 Word17 other").ids
        assert ids == BertTokenizer.from_pretrained(source)("word3 Word17 other")["input_ids"]
        assert words.index("word17") in ids
        verify_bundle(made.path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"tokenizer\.json cannot be read"),
        ('{"version": "1.0"}', r"tokenizer\.json cannot be read"),
        (None, r"tokenizer\.json has the token id 120, but the model's vocab_size is 120"),
    ],
)
def test_a_tokenizer_of_another_model(text: str | None, message: str, parts: Parts, tmp_path: Path) -> None:
    source = Path(shutil.copytree(parts.onnx, tmp_path / "onnx"))
    settings = json.loads((source / "tokenizer.json").read_text())
    settings["model"]["vocab"]["more"] = 120
    (source / "tokenizer.json").write_text(json.dumps(settings) if text is None else text)
    with pytest.raises(InputError, match=message):
        create_bundle(source, tmp_path / "b", check=False)
    assert not (tmp_path / "b").exists()


def test_without_the_native_library(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mra_export.native.libraries.library_dirs", list)
    made = parts.bundle(tmp_path / "b", engines=(), library=None)
    assert made.library is None
    assert not (made.path / "lib").exists()
    verify_bundle(made.path)


def test_a_model_card_that_cannot_be_read(parts: Parts, tmp_path: Path) -> None:
    source = Path(shutil.copytree(parts.onnx, tmp_path / "onnx"))
    (source / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(InputError, match=r"front matter of .*README\.md cannot be read"):
        create_bundle(source, tmp_path / "b", check=False)
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_licence_and_name_go_from_the_dense_model_to_the_bundle(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    from mra_export.checkpoint.from_dense.convert import from_dense

    config = BertConfig(
        vocab_size=120, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "dense")
    give_side_files(tmp_path / "dense")
    from_dense(tmp_path / "dense", tmp_path / "mra")
    made = create_bundle(tmp_path / "mra", tmp_path / "b", check=False)
    assert made.manifest["provenance"] == {"source": NAME, "base_model": ["someone/dense-base"], "random_init": None}
    assert made.manifest["license"]["id"] == "apache-2.0"
    assert (made.path / "LICENSE").read_text() == "Licence text.\n"
    assert (made.path / "NOTICE").is_file()


def test_a_model_card_cannot_steer_a_terminal(parts: Parts, tmp_path: Path) -> None:
    """What it says is kept, escaped; else the bundle could not be read."""
    source = Path(shutil.copytree(parts.onnx, tmp_path / "onnx"))
    (source / "README.md").write_text('---\nlicense_name: "a\\e[2Jb"\nbase_model: "c\\u202ed"\n---\n')
    made = create_bundle(source, tmp_path / "b", check=False, library=parts.library)
    assert made.manifest["license"]["name"] == r"a\x1b[2Jb"
    assert made.manifest["provenance"]["base_model"] == [r"c\u202ed"]


def test_what_a_reader_would_refuse_gets_no_name(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mra_export.bundle.manifest.MAX_MANIFEST_BYTES", 100)
    with pytest.raises(InputError, match="bytes, more than a manifest can have"):
        create_bundle(parts.onnx, tmp_path / "b", check=False, library=parts.library)
    assert not list(tmp_path.iterdir())


@pytest.mark.native
def test_a_library_that_was_cut_off_is_not_bundled(parts: Parts, tmp_path: Path) -> None:
    library = native(parts)
    short = tmp_path / "libmra_onnxruntime.so"
    short.write_bytes(library.read_bytes()[: library.stat().st_size // 2])
    with pytest.raises(InputError, match=r"it was cut off or damaged\. Copy it again"):
        create_bundle(parts.onnx, tmp_path / "b", check=False, library=short)
    assert [path.name for path in tmp_path.iterdir()] == [short.name]


# The same bytes, anywhere.


def test_the_same_input_gives_the_same_bytes(
    parts: Parts, whole: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another umask, folder, language, time stamp and order of engines."""
    source = Path(shutil.copytree(parts.onnx, tmp_path / "elsewhere", copy_function=shutil.copyfile))
    for path in source.rglob("*"):
        os.utime(path, (1, 1))
        if path.is_file():
            path.chmod(0o600)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LC_ALL", "tr_TR.UTF-8")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    before = os.umask(0o077)
    try:
        again = create_bundle(
            "elsewhere",
            Path("again"),
            engines=parts.engines[::-1],
            check=False,
            library=parts.library,
            plugin=parts.plugin,
        )
    finally:
        os.umask(before)
    assert tree(again.path) == tree(whole.path)
    modes = {name: mode for name, (mode, _) in tree(whole.path).items()}
    assert {mode for name, mode in modes.items() if not name.endswith(".so") and (whole.path / name).is_file()} == {
        0o644
    }
    assert {mode for name, mode in modes.items() if name.endswith(".so") or (whole.path / name).is_dir()} == {0o755}


@pytest.mark.native
@pytest.mark.slow
def test_parity_figures_are_the_same_twice(parts: Parts, tmp_path: Path) -> None:
    for name in ("a", "b"):
        made = create_bundle(
            parts.checkpoint, tmp_path / name, library=native(parts), engines=parts.engines, plugin=parts.plugin
        )
        assert made.manifest["parity"]
        assert all(c["ok"] for c in made.manifest["parity"])
        assert made.manifest["versions"]["onnxruntime"]
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


@pytest.mark.native
def test_it_works_where_it_lands(parts: Parts, tmp_path: Path) -> None:
    """Made in one place, copied to another, the first and all it came from removed, read-only."""
    import onnxruntime

    native(parts)
    origin = tmp_path / "origin"
    shutil.copytree(parts.onnx, origin / "onnx")
    shutil.copy(parts.library, origin / "libmra_onnxruntime.so")
    create_bundle(origin / "onnx", origin / "bundle", check=False, library=origin / "libmra_onnxruntime.so")
    for file in (origin / "bundle").rglob("*"):
        assert not file.is_symlink()
        if file.is_file():
            assert str(tmp_path).encode() not in file.read_bytes(), file
    landed = Path(shutil.copytree(origin / "bundle", tmp_path / "srv" / "models" / "b"))
    shutil.rmtree(origin)
    for path in [*landed.rglob("*"), landed]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        bundle = verify_bundle(landed)
        options = onnxruntime.SessionOptions()
        options.register_custom_ops_library(str(bundle.library))
        session = onnxruntime.InferenceSession(str(bundle.model_file), options, providers=["CPUExecutionProvider"])
        feeds = {name: np.ones((2, 40), np.int64) for name in bundle.inputs}
        (embedding,) = session.run(["sentence_embedding"], feeds)
        assert embedding.shape == (2, bundle.hidden_size)
        np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1.0, rtol=1e-5)
    finally:
        for path in [landed, *landed.rglob("*")]:
            path.chmod(0o755)


def test_external_data(parts: Parts, tmp_path: Path) -> None:
    source = Path(shutil.copytree(parts.onnx, tmp_path / "onnx"))
    model = onnx.load(source / MODEL_FILE)
    (source / MODEL_FILE).unlink()
    onnx.save(model, source / MODEL_FILE, save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    made = create_bundle(source, tmp_path / "b", check=False)
    assert {"onnx/model.onnx", "onnx/model.onnx_data"} <= set(made.manifest["files"])
    verify_bundle(made.path)


# What is refused, and what is left behind.


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"onnx_sha256": "0" * 64}, InputError, r"was built from another ONNX file than that of .* Export once"),
        ({"attributes": [{"num_heads": 2}]}, InputError, "operator's attributes in its manifest are not those of"),
        ({"plugin_layers": 1}, InputError, "operator's attributes"),
        ({"weights_stripped": True}, InputError, "built with --strip-weights"),
        ({"outputs": ["last_hidden_state"]}, InputError, "lacks the output sentence_embedding"),
        ({"plugin_sha256": "0" * 64}, DependencyError, r"libmra_tensorrt\.so is not the plugin that .* was built with"),
        ({"engine_sha256": "0" * 64}, InputError, "the SHA-256 differs"),
    ],
)
def test_engines_that_do_not_fit(
    changes: dict[str, Any], error: type[Exception], message: str, parts: Parts, tmp_path: Path
) -> None:
    engine = write_engine(tmp_path / "e.engine", parts.onnx / MODEL_FILE, parts.plugin, **changes)
    with pytest.raises(error, match=message):
        parts.bundle(tmp_path / "b", engines=(engine,))
    assert not (tmp_path / "b").exists()


def test_engines_that_are_not_there_or_have_one_name(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        parts.bundle(tmp_path / "b", engines=(tmp_path / "no.engine",))
    (tmp_path / "x").mkdir()
    twin = write_engine(tmp_path / "x" / "fast.engine", parts.onnx / MODEL_FILE, parts.plugin)
    with pytest.raises(InputError, match=r"have the same name\. Rename one"):
        parts.bundle(tmp_path / "b", engines=(parts.engines[1], twin))
    named = write_engine(tmp_path / "x" / "model.plan", parts.onnx / MODEL_FILE, parts.plugin)
    with pytest.raises(InputError, match=r"must be called NAME\.engine"):
        parts.bundle(tmp_path / "b", engines=(named,))


def test_an_engine_whose_plugin_is_nowhere(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mra_export.native.libraries.library_dirs", lambda: [tmp_path])
    with pytest.raises(DependencyError, match=r"libmra_tensorrt\.so was not found"):
        parts.bundle(tmp_path / "b", plugin=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"request": ExportRequest(task="fill-mask")}, "--task is for a checkpoint"),
        ({"request": ExportRequest(pooling="mean", normalize=True)}, "--pooling, --normalize is for a checkpoint"),
        ({"request": ExportRequest(dtype="fp16")}, "is fp32, not fp16"),
        ({"library": Path("nowhere.so")}, r"nowhere\.so does not exist"),
    ],
)
def test_options_that_an_export_cannot_have(
    options: dict[str, Any], message: str, parts: Parts, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        parts.bundle(tmp_path / "b", **options)


def test_sources_that_are_not_whole(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json, which a server needs"):
        create_bundle(shutil.copy(parts.onnx / MODEL_FILE, tmp_path / "lonely.onnx"), tmp_path / "b", check=False)
    source = Path(shutil.copytree(parts.onnx, tmp_path / "onnx"))
    (source / "modules.json").unlink()
    with pytest.raises(InputError, match=r"no modules\.json that says how it is pooled"):
        create_bundle(source, tmp_path / "b", check=False)
    with pytest.raises(InputError, match="does not exist"):
        create_bundle(tmp_path / "none.onnx", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_an_error_leaves_nothing_and_force_replaces(parts: Parts, whole: Bundle, tmp_path: Path) -> None:
    def fail(bundle: Bundle, target: Path) -> None:
        target.mkdir()
        raise InputError(f"no repository for {bundle.task}")

    with pytest.raises(InputError, match="no repository for feature-extraction"):
        parts.bundle(tmp_path / "b", triton=fail)
    assert list(tmp_path.iterdir()) == []
    parts.bundle(tmp_path / "b", engines=())
    with pytest.raises(InputError, match="add --force"):
        parts.bundle(tmp_path / "b")
    assert tree(parts.bundle(tmp_path / "b", force=True).path) == tree(whole.path)


def test_a_model_repository_is_listed_too(parts: Parts, tmp_path: Path) -> None:
    def write(bundle: Bundle, target: Path) -> None:
        (target / "mra").mkdir(parents=True)
        (target / "mra" / "config.pbtxt").write_text(f"max_batch_size: {bundle.pad_token_id}\n")

    made = parts.bundle(tmp_path / "b", triton=write)
    assert "triton/mra/config.pbtxt" in made.manifest["files"]
    verify_bundle(made.path)


def test_a_bundle_of_a_bundle_keeps_its_figures(parts: Parts, full: dict[str, Any], tmp_path: Path) -> None:
    first = parts.bundle(tmp_path / "first", engines=())
    change(first.path, lambda m: m.update(parity=full["parity"]))
    made = create_bundle(first.path, tmp_path / "b", engines=parts.engines, plugin=parts.plugin)
    assert made.manifest["parity"] == full["parity"]
    assert len(made.variants) == 3
    assert made.library is not None
    assert made.library.read_bytes() == parts.library.read_bytes()
    (tmp_path / "libmra_onnxruntime.so").write_bytes(b"another operator")  # of which the figures say nothing
    made = create_bundle(first.path, tmp_path / "d", library=tmp_path / "libmra_onnxruntime.so", check=False)
    assert made.manifest["parity"] is None
    flip(first.path / "LICENSE")
    with pytest.raises(InputError, match="LICENSE was changed"):
        create_bundle(first.path, tmp_path / "c")
