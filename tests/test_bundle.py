"""The bundle: what is in it, the same bytes twice, at home anywhere, and no damage of a file or a field goes unnoticed."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import save_checkpoint

from mra_export.bundle.manifest import MANIFEST_FILE, Bundle, read_bundle, seal
from mra_export.bundle.verify import verify_bundle
from mra_export.checkpoint.load import load_checkpoint
from mra_export.checkpoint.pooling import Pooling
from mra_export.engine.manifest import Manifest, manifest_path, write_manifest
from mra_export.errors import DependencyError, InputError
from mra_export.export.exporter import export_onnx
from mra_export.export.onnx_model import MODEL_FILE, read_onnx
from mra_export.native.libraries import find_library
from mra_export.outputs import file_sha256
from mra_export.pipeline.create_bundle import create_bundle
from mra_export.pipeline.source import ExportRequest

CARD = "---\nlicense: apache-2.0\nbase_model: someone/dense-base\nlanguage: en\n---\n\n# A model\n"
NAME = "someone/mra-small"
STATED = "front matter of README.md"
FILES = [
    "1_Pooling/config.json",
    "2_Normalize/config.json",
    "LICENSE",
    "NOTICE",
    "README.md",
    "config.json",
    "engines/fast.engine",
    "engines/fast.engine.json",
    "engines/other.engine",
    "engines/other.engine.json",
    "lib/libmra_onnxruntime.so",
    "lib/libmra_tensorrt.so",
    "modules.json",
    "onnx/model.onnx",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
]


def run(*arguments: object, capsys: pytest.CaptureFixture[str] | None = None) -> tuple[int, dict[str, Any]]:
    from mra_export.cli import main

    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments), "--json", "-q"])
    assert isinstance(stop.value.code, int)
    return stop.value.code, json.loads(capsys.readouterr().out) if capsys is not None else {}


def give_side_files(directory: Path) -> Path:
    """A tokenizer, sentence-transformers' files, a licence and a name."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[UNK]", "[PAD]", *(f"word{i}" for i in range(100))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        '{"model_max_length": 1000, "tokenizer_class": "TokenizersBackend"}'
    )
    (directory / "sentence_bert_config.json").write_text('{"max_seq_length": 200}')
    for name in ("1_Pooling", "2_Normalize"):
        (directory / name).mkdir()
    (directory / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (directory / "2_Normalize" / "config.json").write_text("{}")
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    (directory / "modules.json").write_text(json.dumps([{"path": p, "type": f"s.models.{k}"} for p, k in kinds]))
    (directory / "README.md").write_text(CARD)
    (directory / "LICENSE").write_text("Licence text.\n")
    (directory / "NOTICE").write_text("Notice.\n")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "_name_or_path": NAME}))
    return directory


def write_engine(engine: Path, onnx_file: Path, plugin: Path, **changes: Any) -> Path:
    """A file in the place of an engine, with a manifest that is true of it, the ONNX file and the plugin."""
    engine.write_bytes(f"engine {engine.name}".encode() * 40)
    model = read_onnx(onnx_file)
    shape = {"min": [1, 1], "opt": [8, 128], "max": [32, 256]}
    manifest = Manifest(
        format=1, mra_export="0.1.0", backend="tensorrt", backend_version="10.14.1.48", version_compatible=False,
        compute_capability="9.0", hardware_compatible=False, gpu="NVIDIA H200", engine_bytes=engine.stat().st_size,
        engine_sha256=file_sha256(engine), plugin_name="Mra2Attention", plugin_version="1",
        plugin_sha256=file_sha256(plugin), plugin_embedded=False, plugin_architectures="80-real,90",
        plugin_layers=len(model.nodes), precision="fp16", precision_proof="parsed", tensor_types={"HALF": 3},
        weights_stripped=False, task=model.task, inputs=dict.fromkeys(model.inputs, shape),
        outputs=list(model.outputs), onnx_sha256=file_sha256(*model.files), onnx_dtype="fp32",
        attributes=model.distinct_attributes, pooling={"mode": "cls", "normalize": True}, parity=None, versions={"torch": None},
    )  # fmt: skip
    write_manifest(dataclasses.replace(manifest, **changes), manifest_path(engine))
    return engine


@dataclasses.dataclass(frozen=True)
class Parts:
    """What bundles are made from here."""

    checkpoint: Path
    onnx: Path
    plugin: Path
    library: Path
    engines: tuple[Path, ...]

    def bundle(self, output: Path, **options: Any) -> Bundle:
        given = {"engines": self.engines, "check": False, "library": self.library, "plugin": self.plugin, **options}
        return create_bundle(self.onnx, output, **given)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    folder = tmp_path_factory.mktemp("parts")
    checkpoint = give_side_files(save_checkpoint(folder / "checkpoint"))
    exported = export_onnx(load_checkpoint(checkpoint), folder / "onnx")
    plugin = folder / "libmra_tensorrt.so"
    plugin.write_bytes(b"the plugin")
    library = find_library("onnxruntime")
    if library is None:  # bytes are bytes for most of these tests; those that run it skip
        library = folder / "libmra_onnxruntime.so"
        library.write_bytes(b"the operator")
    engines = (
        write_engine(folder / "other.engine", exported.model, plugin, gpu="NVIDIA L4", compute_capability="8.9"),
        write_engine(folder / "fast.engine", exported.model, plugin, plugin_embedded=True, backend="rtx"),
    )
    return Parts(checkpoint, exported.directory, plugin, library, engines)


@pytest.fixture(scope="module")
def whole(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return parts.bundle(tmp_path_factory.mktemp("whole") / "bundle")


@pytest.fixture
def bundle(whole: Bundle, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole.path, tmp_path / "bundle"))


def native(parts: Parts) -> Path:
    if parts.library.stat().st_size < 1000:
        pytest.skip("the native library is not built")
    return parts.library


def tree(root: Path) -> dict[str, tuple[int, str]]:
    """Name -> mode and SHA-256 of everything below a directory."""
    return {
        path.relative_to(root).as_posix(): (
            path.stat().st_mode & 0o7777,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in [root, *root.rglob("*")]
    }


def change(root: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edits the manifest and seals it again, as an attacker or another program would."""
    manifest = json.loads((root / MANIFEST_FILE).read_text())
    edit(manifest)
    (root / MANIFEST_FILE).write_bytes(seal(manifest))


# --- what is in it


def test_the_manifest_says_what_is_there(whole: Bundle, parts: Parts) -> None:
    bundle = verify_bundle(whole.path)
    assert sorted(bundle.manifest["files"]) == FILES
    assert (bundle.task, bundle.dtype, bundle.family) == ("feature-extraction", "fp32", "mra")
    assert (bundle.hidden_size, bundle.max_seq_len, bundle.vocab_size, bundle.pad_token_id) == (64, 256, 120, 1)
    assert bundle.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert bundle.outputs == ("last_hidden_state", "sentence_embedding")
    assert bundle.pooling == Pooling("cls", normalize=True)
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


def test_the_seal_can_be_checked_without_a_json_library(whole: Bundle) -> None:
    content = (whole.path / MANIFEST_FILE).read_bytes()
    start = content.index(b'"manifest_sha256": "') + len(b'"manifest_sha256": "')
    zeroed = content[:start] + b"0" * 64 + content[start + 64 :]
    assert hashlib.sha256(zeroed).hexdigest().encode() == content[start : start + 64]


def test_a_checkpoint_without_pooling_gets_the_mean(tmp_path: Path, tiny_checkpoint: Path) -> None:
    made = create_bundle(tiny_checkpoint, tmp_path / "b", check=False)
    assert made.pooling == Pooling("mean")
    assert (made.manifest["license"], made.manifest["tokenizer"]) == (None, None)
    assert made.manifest["provenance"] == {"source": None, "base_model": [], "random_init": None}
    assert made.tokenizer_max_length == made.max_seq_len
    assert set(made.manifest["versions"]) >= {"torch", "transformers", "onnx"}


def test_pooling_as_asked_and_random_weights(parts: Parts, tmp_path: Path) -> None:
    made = create_bundle(parts.checkpoint, tmp_path / "a", check=False, request=ExportRequest(normalize=False))
    assert made.pooling == Pooling("cls", normalize=False)
    assert "2_Normalize/config.json" not in made.manifest["files"]
    made = create_bundle(
        parts.checkpoint, tmp_path / "b", check=False, request=ExportRequest(pooling="none", random_init=7)
    )
    assert made.pooling is None
    assert made.outputs == ("last_hidden_state",)
    assert "modules.json" not in made.manifest["files"]
    assert made.manifest["provenance"]["random_init"] == 7
    verify_bundle(made.path)


def test_another_task(tmp_path: Path) -> None:
    source = save_checkpoint(tmp_path / "c", "MraForSequenceClassification")
    made = create_bundle(source, tmp_path / "b", check=False)
    assert (made.task, made.outputs, made.pooling) == ("text-classification", ("logits",), None)


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


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"README.md": "# No front matter\nlicense: mit\n"}, None),
        ({"README.md": "---\nlanguage: en\n---\n"}, None),
        ({"README.md": "---\nlicense: mit\n---\n"}, ("mit", None, None, STATED, None)),
        ({"README.md": "---\nlicense:\n- mit\n- cc-by-4.0\n---\n"}, ("mit, cc-by-4.0", None, None, STATED, None)),
        (
            {"README.md": "---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n", "LICENSE": "x"},
            ("other", "own", "LICENSE", STATED, "LICENSE"),
        ),
        ({"LICENSE.txt": "x"}, (None, None, None, None, "LICENSE.txt")),
        ({"COPYING": "x", "LICENSE.md": "y"}, (None, None, None, None, "LICENSE.md")),
    ],
)  # fmt: skip
def test_the_licence_is_what_is_stated(
    files: dict[str, str], expected: tuple[str | None, ...] | None, tmp_path: Path
) -> None:
    from mra_export.checkpoint.provenance import licence_of

    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = licence_of(tmp_path)
    assert (found if found is None else tuple(found[k] for k in ("id", "name", "link", "source", "file"))) == expected


def test_a_model_card_that_cannot_be_read(parts: Parts, tmp_path: Path) -> None:
    source = Path(shutil.copytree(parts.onnx, tmp_path / "onnx"))
    (source / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(InputError, match=r"front matter of .*README\.md cannot be read"):
        create_bundle(source, tmp_path / "b", check=False)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("someone/model", "someone/model"),
        ("model", "model"),
        ("/home/me/model", None),
        ("./model", None),
        ("a/b/c", None),
        ("", None),
        (3, None),
    ],
)
def test_a_path_is_no_provenance(name: Any, expected: str | None, tmp_path: Path) -> None:
    from mra_export.checkpoint.provenance import name_or_path

    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": name}))
    assert name_or_path(tmp_path) == expected


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


# --- the same bytes, anywhere


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


def test_parity_figures_are_the_same_twice(parts: Parts, tmp_path: Path) -> None:
    for name in ("a", "b"):
        made = create_bundle(
            parts.checkpoint, tmp_path / name, library=native(parts), engines=parts.engines, plugin=parts.plugin
        )
        assert made.manifest["parity"]
        assert all(c["ok"] for c in made.manifest["parity"])
        assert made.manifest["versions"]["onnxruntime"]
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


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


# --- damage


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


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


def test_a_manifest_cut_off_or_changed_anywhere(whole: Bundle, tmp_path: Path) -> None:
    content = (whole.path / MANIFEST_FILE).read_bytes()
    for position in range(0, len(content), 61):
        changed = bytearray(content)
        changed[position] ^= 1
        for text in (content[:position], bytes(changed)):
            (tmp_path / MANIFEST_FILE).write_bytes(text)
            with pytest.raises(InputError, match=r"manifest\.json"):
                read_bundle(tmp_path)


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
    "format of the future": '{"format": 2, "mra_export": "9.9"}',
    "format of the past": '{"format": 0}',
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
    with pytest.raises(InputError, match=r"manifest\.json.*(format|readable)"):
        read_bundle(tmp_path)


@pytest.fixture(scope="module")
def full(whole: Bundle) -> dict[str, Any]:
    """The manifest with every optional field filled, and one file only."""
    manifest = copy.deepcopy(whole.manifest)
    comparison = {
        "reference": "r",
        "candidate": "c",
        "metrics": {"m": 1e-6, "n": None},
        "tolerance": {"m": 1},
        "ok": True,
    }
    manifest["parity"] = [{**comparison, "notes": ["n"], "layers": [{}], "cases": [{}]}]
    manifest["license"].update(name="n", link="l")
    manifest["provenance"]["random_init"] = 3
    manifest["versions"] = {"torch": "2"}
    return manifest


OBJECT: list[Any] = [None, [], "x", 1]
LIST: list[Any] = [None, {}, "x", 1]
TEXT: list[Any] = [None, 3, [], {}, True]
WORD: list[Any] = [*TEXT, "", " x", "x\n", "a\nb"]
SIZE: list[Any] = [None, "1", 0, -1, 1.0, True, 1 << 70, []]
FLAG: list[Any] = [None, 0, "true"]
DTYPE: list[Any] = [*WORD, "fp64", "FP32"]
NUMBER: list[Any] = [None, "1", True, []]
HASH: list[Any] = [*WORD, "0" * 63, "0" * 65, "A" * 64]
SHAPE = [*LIST, [0], ["1"], [1.0]]
NULL_TOO: Callable[[list[Any]], list[Any]] = lambda values: values[1:]  # noqa: E731  # every list above begins with None
UNLISTED = [*WORD, "../config.json", "nowhere"]

WRONG: dict[str, list[Any]] = {
    "format": [None, "1", 1.0, True, 2, 0, [], {}],
    "mra_export": WORD,
    "model": OBJECT,
    "model.family": WORD,
    "model.architecture": NULL_TOO(WORD),
    "model.task": WORD,
    "model.dtype": [*DTYPE, "fp16"],  # not that of the first variant
    "model.hidden_size": SIZE,
    "model.max_seq_len": [*SIZE, 10],  # below tokenizer.max_length
    "model.vocab_size": SIZE,
    "model.pad_token_id": [value for value in SIZE if value != 0 or value is None],
    "model.inputs": [*LIST, ["input_ids"], [3]],
    "model.outputs": [*LIST, ["last_hidden_state"], [3]],
    "model.operator": OBJECT,
    "model.operator.domain": WORD,
    "model.operator.type": WORD,
    "model.operator.version": SIZE,
    "model.operator.nodes": [value for value in SIZE if value != 0 or value is None],
    "model.operator.attributes": [*LIST, [1], [{"scale": "1"}], [{"scale": None}]],
    "pooling": [*OBJECT],
    "pooling.mode": [*WORD, "none", "max"],
    "pooling.normalize": FLAG,
    "tokenizer": NULL_TOO(OBJECT),
    "tokenizer.file": UNLISTED,
    "tokenizer.max_length": [*SIZE, 257],
    "variants": [*LIST, [], [None], [{}]],
    "variants[0]": OBJECT,
    "variants[0].backend": [*WORD, "tensorrt", "openvino"],
    "variants[0].file": UNLISTED,
    "variants[0].precision": [*DTYPE, "bf16"],
    "variants[0].library": NULL_TOO(UNLISTED),
    "variants[1]": OBJECT,
    "variants[1].backend": [*WORD, "onnxruntime", "openvino"],
    "variants[1].file": UNLISTED,
    "variants[1].precision": DTYPE,
    "variants[1].library": NULL_TOO(UNLISTED),
    "variants[1].manifest": UNLISTED,
    "variants[1].backend_version": WORD,
    "variants[1].version_compatible": FLAG,
    "variants[1].compute_capability": [*WORD, "9", "nine", "9.0a"],
    "variants[1].hardware_compatible": FLAG,
    "variants[1].gpu": TEXT,
    "variants[1].profiles": [*OBJECT, {"input_ids": {}}],
    "variants[1].profiles.input_ids": OBJECT,
    "variants[1].profiles.input_ids.min": SHAPE,
    "variants[1].profiles.input_ids.opt": SHAPE,
    "variants[1].profiles.input_ids.max": SHAPE,
    "files": [*OBJECT, {}],
    "files.NOTICE": OBJECT,
    "files.NOTICE.bytes": [None, "1", -1, 1.0, True],
    "files.NOTICE.sha256": HASH,
    "parity": NULL_TOO(LIST),
    "parity[0]": OBJECT,
    "parity[0].reference": WORD,
    "parity[0].candidate": WORD,
    "parity[0].metrics": [*OBJECT, {"m": "1"}],
    "parity[0].metrics.m": NULL_TOO(NUMBER),
    "parity[0].tolerance": OBJECT,
    "parity[0].tolerance.m": NUMBER,
    "parity[0].ok": NULL_TOO(FLAG),
    "parity[0].notes": [*LIST, [3]],
    "parity[0].layers": [*LIST, [3]],
    "parity[0].cases": [*LIST, [3]],
    "versions": OBJECT,
    "versions.torch": WORD,
    "license": NULL_TOO(OBJECT),
    "license.id": NULL_TOO(WORD),
    "license.name": NULL_TOO(WORD),
    "license.link": NULL_TOO(WORD),
    "license.source": NULL_TOO(WORD),
    "license.file": NULL_TOO(UNLISTED),
    "provenance": OBJECT,
    "provenance.source": NULL_TOO(WORD),
    "provenance.base_model": [*LIST, [3]],
    "provenance.random_init": ["1", -1, 1.0, True],
}
"""Field -> values that it cannot have."""
FREE_NAMES = ("files", "versions", "metrics", "tolerance", "profiles")
"""Objects that may have any names."""


def keys(field: str) -> list[str | int]:
    """The keys that lead to a field: "variants[1].file" -> "variants", 1, "file"."""
    found: list[str | int] = []
    for part in field.split("."):
        name, _, index = part.partition("[")
        found += [name, int(index[:-1])] if index else [name]
    return found


def inside(value: Any, path: list[str | int]) -> Any:
    for key in path:
        value = value[key]
    return value


def sealed(folder: Path, manifest: dict[str, Any]) -> Path:
    (folder / MANIFEST_FILE).write_bytes(seal(manifest))
    return folder


def refused(folder: Path, manifest: dict[str, Any], word: str) -> None:
    """Sealed again, so that it is the field that is refused and not the hash."""
    with pytest.raises(InputError) as caught:
        read_bundle(sealed(folder, manifest))
    assert "manifest.json" in str(caught.value)
    assert word in str(caught.value), caught.value


def test_the_table_of_wrong_values_has_every_field(full: dict[str, Any], tmp_path: Path) -> None:
    read_bundle(sealed(tmp_path, full))

    def names(value: Any, at: str = "") -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield f"{at}.{key}".lstrip(".")
                yield from names(inner, f"{at}.{key}".lstrip("."))
        elif isinstance(value, list) and at in ("variants", "parity"):
            for index, inner in enumerate(value):
                yield f"{at}[{index}]"
                yield from names(inner, f"{at}[{index}]")

    left_out = ("files.", "variants[2]", "variants[1].profiles.attention_mask", "variants[1].profiles.token_type_ids")
    found = {name for name in names(full) if not name.startswith(left_out) and "metrics.n" not in name}
    assert found - set(WRONG) == {"manifest_sha256"}


def test_every_field_is_documented() -> None:
    page = (Path(__file__).parents[1] / "docs" / "bundle.md").read_text()
    table = "".join(line for line in page.splitlines() if line.startswith("|"))
    inner = ("parity[0]", "files.NOTICE", "versions.", "variants[1].profiles.")  # `check --json` says what is in parity
    for field in WRONG:
        name = keys(field)[-1]
        assert field.startswith(inner) or isinstance(name, int) or re.search(rf"[`.]{name}[`.\[]", table), field


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_field_is_named(field: str, full: dict[str, Any], tmp_path: Path) -> None:
    *path, last = keys(field)
    name = str(last) if isinstance(last, str) else field
    for value in WRONG[field]:
        manifest = copy.deepcopy(full)
        inside(manifest, path)[last] = value
        refused(tmp_path, manifest, name)
    if isinstance(last, str) and (not path or path[-1] not in FREE_NAMES):
        manifest = copy.deepcopy(full)
        del inside(manifest, path)[last]
        refused(tmp_path, manifest, "format" if field == "format" else f"{last}. Copy the bundle again")
        manifest = copy.deepcopy(full)
        inside(manifest, path)[f"{last}_"] = 1
        refused(tmp_path, manifest, f"{last}_ is not a field of format 1")


@pytest.mark.parametrize("value", HASH)
def test_a_wrong_seal_is_named(value: Any, full: dict[str, Any], tmp_path: Path) -> None:
    text = json.dumps({**full, "manifest_sha256": value}, indent=2, sort_keys=True)
    (tmp_path / MANIFEST_FILE).write_text(text)
    with pytest.raises(InputError, match="manifest_sha256"):
        read_bundle(tmp_path)


JUNK: list[Any] = [
    None,
    True,
    0,
    -1,
    1 << 80,
    1e300,
    "",
    "..",
    "\u2028",
    "x" * 100_000,
    [],
    {},
    [[]],
    {"": {}},
    ["a", "a"],
    {"a": None},
]


def test_random_damage_is_refused_in_words(full: dict[str, Any], bundle: Path) -> None:
    """Sealed again each time: whatever the reader meets, it answers with a message or with a bundle that is true."""
    generator = random.Random(0)
    refusals = 0
    for _ in range(400):
        manifest = copy.deepcopy(full)
        for _ in range(generator.randrange(1, 4)):
            here: Any = manifest
            while True:
                key = generator.choice(list(here)) if isinstance(here, dict) else generator.randrange(len(here))
                if not isinstance(here[key], dict | list) or not here[key] or generator.random() < 0.1:
                    break
                here = here[key]
            here[key] = generator.choice([*JUNK, copy.deepcopy(manifest)])
        (bundle / MANIFEST_FILE).write_bytes(seal(manifest))
        said = ""
        try:
            verify_bundle(bundle)
        except InputError as error:
            said = str(error)
        assert len(said) < 1000
        refusals += bool(said)
    assert refusals > 300


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


# --- what is refused, and what is left behind


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


# --- the commands


def test_the_commands(parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = native(parts)
    output = tmp_path / "b"
    code, made = run(
        "bundle", parts.onnx, "-o", output, "--engine", parts.engines[0], "--engine", parts.engines[1],
        "--plugin-lib", parts.plugin, "--plugin-lib", library, capsys=capsys,
    )  # fmt: skip
    assert (code, made["ok"], made["command"], made["outputs"]) == (0, True, "bundle", [str(output)]), made.get("error")
    assert sorted(made["files"]) == FILES
    assert [variant["backend"] for variant in made["variants"]] == ["onnxruntime", "rtx", "tensorrt"]
    assert all(c["ok"] for c in made["comparisons"])
    assert [c["reference"].startswith("specification") for c in made["comparisons"]] == [True, False, True]

    code, checked = run("check", output, "--max-seq-len", 64, "--report", tmp_path / "r.html", capsys=capsys)
    assert (code, checked["ok"], checked["manifest_sha256"]) == (0, True, made["manifest_sha256"])
    assert "specification, operator by operator" in (tmp_path / "r.html").read_text()
    assert [c["ok"] for c in checked["comparisons"]] == [True, True, True, None, None]  # engines need a GPU
    assert len(checked["parity"]) == 3
    code, checked = run("check", parts.checkpoint, output, "--max-seq-len", 64, capsys=capsys)
    assert (code, checked["ok"]) == (0, True)
    assert len([c for c in checked["comparisons"] if c["ok"]]) == 4

    (output / "NOTICE").unlink()
    for arguments in (["check", output], ["check", parts.checkpoint, output]):
        code, failed = run(*arguments, capsys=capsys)
        assert (code, failed["ok"]) == (2, False)
        assert f"{output / 'NOTICE'} is missing" in failed["error"]
    (output / MANIFEST_FILE).unlink()
    code, failed = run("check", output, capsys=capsys)
    assert code == 2
    assert f"{output / MANIFEST_FILE} is missing" in failed["error"]


def test_the_words_for_people(parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mra_export.cli import main

    for arguments in (
        ["bundle", parts.onnx, "-o", tmp_path / "b", "--no-check"],
        ["check", tmp_path / "b", "--max-seq-len", 40],
    ):
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        assert stop.value.code == 0
    said = capsys.readouterr().out
    assert f"  next: mra-export check {tmp_path / 'b'}\n" in said
    assert "RECORDED nothing: the bundle was written without a check." in said
    assert f"VERIFIED {tmp_path / 'b'}: feature-extraction, ONNX Runtime fp32" in said


@pytest.mark.parametrize("option", [("--task", "fill-mask"), ("--plugin-lib", "x.so"), ("--kernel-sources", "x")])
def test_options_that_a_bundle_alone_has_no_use_for(
    option: tuple[str, str], whole: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    code, failed = run("check", whole.path, *option, capsys=capsys)
    assert code == 2
    assert failed["error"].startswith(f"{option[0]} cannot be used with {whole.path} alone")


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


def test_the_check_uses_the_bundles_own_library(
    parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "libmra_onnxruntime.so").write_bytes(b"no library")
    made = parts.bundle(tmp_path / "b", engines=(), library=tmp_path / "libmra_onnxruntime.so")
    for arguments in (["check", made.path], ["check", parts.checkpoint, made.path]):
        code, failed = run(*arguments, "--max-seq-len", 40, capsys=capsys)
        assert code == 2
        assert f"{made.library} is not the operator library" in failed["error"]


@pytest.mark.parametrize("damage", [0.0, 0.1])
def test_engines_are_run_where_there_is_a_gpu(
    damage: float, parts: Parts, whole: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime in the place of what only a GPU runs; one of the two engines is for another GPU."""
    from mra_export.engine.runner import EngineRunner
    from mra_export.runners.onnxruntime import OnnxRuntimeRunner

    native(parts)

    class Activated:
        def infer(self, feed: dict[str, Any]) -> dict[str, Any]:
            values = OnnxRuntimeRunner(read_onnx(whole.model_file)).run(feed)
            return {name: value * (1 + damage) for name, value in values.items()}

        def deactivate(self) -> None:
            pass

    def enter(runner: EngineRunner) -> EngineRunner:
        if runner.manifest.gpu == "NVIDIA L4":
            raise DependencyError("It needs a GPU of compute capability 8.9 exactly; this one has 9.0.")
        runner._runner = Activated()
        return runner

    monkeypatch.setattr("mra_export.pipeline.check_engines.missing_for_engine", lambda: None)
    monkeypatch.setattr(EngineRunner, "__enter__", enter)
    for arguments in (["check", whole.path], ["check", parts.checkpoint, whole.path]):
        code, made = run(*arguments, "--max-seq-len", 64, capsys=capsys)
        engines = {c["candidate"].split()[0]: c for c in made["comparisons"] if ".engine" in c["candidate"]}
        assert code == (3 if damage else 0)
        assert engines["fast.engine"]["ok"] is (damage == 0)
        assert engines["other.engine"]["ok"] is None
        assert "8.9 exactly; this one has 9.0" in engines["other.engine"]["notes"][0]


def break_operator(source: Path) -> None:
    """The function body's result times 1.01."""
    model = onnx.load(source / MODEL_FILE)
    body = model.functions[0]
    body.node[-1].output[0] = "almost"
    factor = onnx.numpy_helper.from_array(np.array(1.01, np.float32), "factor")
    body.node.append(onnx.helper.make_node("Constant", [], ["factor"], value=factor))
    body.node.append(onnx.helper.make_node("Mul", ["almost", "factor"], [body.output[0]]))
    onnx.save(model, source / MODEL_FILE)


def test_an_operator_that_is_not_the_specifications(
    parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(parts.onnx, tmp_path / "onnx"))
    break_operator(source)
    code, failed = run("bundle", source, "-o", tmp_path / "b", "--plugin-lib", native(parts), capsys=capsys)
    assert (code, failed["ok"]) == (3, False)
    assert "the difference is in layer.0" in failed["error"]
    assert [c["ok"] for c in failed["comparisons"]] == [False, False, True]  # the native operator is right
    assert not (tmp_path / "b").exists()
    assert run("bundle", source, "-o", tmp_path / "b", "--no-check", capsys=capsys)[0] == 0
    code, failed = run("check", tmp_path / "b", "--max-seq-len", 40, capsys=capsys)
    assert (code, failed["ok"]) == (3, False)


def test_weights_of_another_checkpoint(parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = save_checkpoint(tmp_path / "other", seed=1)
    made = parts.bundle(tmp_path / "b", engines=())
    assert run("check", other, made.path, "--max-seq-len", 40, capsys=capsys)[0] == 3
    assert run("check", made.path, "--max-seq-len", 40, capsys=capsys)[0] == 0  # that needs the checkpoint to be seen
