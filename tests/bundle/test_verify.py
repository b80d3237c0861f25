"""No damage of a file or a field goes unnoticed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bundle_support import (
    FILES,
    as_hub_cache,
    change,
    flip,
    inside,
    keys,
)
from paths import REPO

from mra_export.bundle.manifest import MANIFEST_FILE, read_bundle
from mra_export.bundle.schema import refusal
from mra_export.bundle.verify import TOLERATED, _compare, _is_tolerated, bundle_of, is_bundle, longest_of, verify_bundle
from mra_export.checkpoint.text_tables import tables_of
from mra_export.errors import InputError
from mra_export.outputs import file_sha256


def test_the_bundle_that_a_file_lies_in(tmp_path: Path) -> None:
    model = tmp_path / "bundle" / "onnx" / "model.onnx"
    assert bundle_of(model) is None
    model.parent.mkdir(parents=True)
    assert (is_bundle(tmp_path / "bundle"), bundle_of(model)) == (False, None)
    (tmp_path / "bundle" / MANIFEST_FILE).touch()
    assert (is_bundle(tmp_path / "bundle"), bundle_of(model)) == (True, tmp_path / "bundle")


def test_tables_of_another_tokenizer(bundle: Path) -> None:
    """They are listed, whole, and were made from another tokenizer.json: only they say so."""
    from text_support import word_piece

    from mra_export.checkpoint.text_ids import TOKENIZER_FILE
    from mra_export.checkpoint.text_tables import TABLES_FILE

    for content in (tables_of(word_piece().to_str().encode()), b"short"):
        (bundle / TABLES_FILE).write_bytes(content)

        def lists(manifest: dict[str, Any], size: int = len(content)) -> None:
            manifest["files"][TABLES_FILE] = {"bytes": size, "sha256": file_sha256(bundle / TABLES_FILE)}

        change(bundle, lists)
        with pytest.raises(InputError, match=rf"{TABLES_FILE} was not made from the {TOKENIZER_FILE} beside it"):
            verify_bundle(bundle)


@pytest.mark.parametrize(("positions", "family", "longest"), [(None, 512, 512), (512, 510, 510), (128, 256, 128)])
def test_the_longest_text_fits_positions_and_family(positions: int | None, family: int, longest: int) -> None:
    config = object()
    sizes = {id(config): family}
    model: Any = SimpleNamespace(
        position_limit=positions, family=SimpleNamespace(max_seq_len=lambda given: sizes[id(given)])
    )
    assert longest_of(model, config) == longest


@pytest.mark.parametrize(
    ("inside", "folder", "file"),
    [
        (".git", True, True),
        ("a/.git", False, False),
        (".gitignore", False, True),
        ("a/.gitignore", False, True),
        ("a/b/.DS_Store", False, True),
        ("._x", False, True),
        ("a/._", False, True),
        (".x", False, False),
        (".Trash-0", True, True),
        (".Trash-0/x", False, False),
        (".Trash", False, False),
        ("a/.Trash-0", False, False),
        ("README.md", True, True),
        ("README.md.bak", False, False),
        (".cache/huggingface", True, True),
        ("", False, False),
    ],
)
def test_what_is_passed_over_by_name(inside: str, folder: bool, file: bool) -> None:
    assert (_is_tolerated(inside, True), _is_tolerated(inside, False)) == (folder, file)


@pytest.mark.parametrize(
    ("stated", "found", "where"),
    [
        ({"a": [1, 2]}, {"a": [1, 3]}, "m.a[1]=2, but the bundle's files say 3"),
        ({"a": [3, 2]}, {"a": [1, 2]}, "m.a[0]=3, but the bundle's files say 1"),
        ({"a": [1]}, {"a": [1, 2]}, "m.a=[1], but the bundle's files say [1, 2]"),
        ({"a": 1}, {"b": 1}, "m={'a': 1}, but the bundle's files say {'b': 1}"),
        ({"a": 1, "b": 2}, {"a": 1, "b": None}, "m.b=2, but the bundle's files say None"),
        ([1], {"a": 1}, "m=[1], but the bundle's files say {'a': 1}"),
        ({"a": 1}, [1], "m={'a': 1}, but the bundle's files say [1]"),
    ],
)
def test_the_innermost_field_that_differs_is_named(stated: Any, found: Any, where: str) -> None:
    _compare(stated, stated, "m", Path("manifest.json"))
    with pytest.raises(InputError) as caught:
        _compare(stated, found, "m", Path("manifest.json"))
    assert str(caught.value).startswith(f"manifest.json: {where}. Copy the bundle again")


def test_a_long_refusal_is_cut_in_its_midst() -> None:
    text = "a" * 200 + "b" * 200
    assert str(refusal(Path("x"), text)).startswith(f"x{text}. Copy")
    assert str(refusal(Path("x"), "a" * 200 + "c" + "b" * 200)).startswith(f"x{'a' * 200} ... {'b' * 200}. Copy")


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


def replace_by_circle(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def replace_by_dangling_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("../blobs/gone")


def replace_by_link_to_a_pipe(file: Path) -> None:
    pipe = file.with_name("pipe")
    os.mkfifo(pipe)
    file.unlink()
    file.symlink_to(pipe)


def replace_by_pointer(file: Path) -> None:
    """As a clone has it where Git LFS fetched nothing."""
    file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n")


DAMAGE = [
    flip, cut, grow, Path.unlink, replace_by_directory, replace_by_pipe, replace_by_circle, replace_by_dangling_link,
    replace_by_link_to_a_pipe, replace_by_pointer,
]  # fmt: skip


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


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (replace_by_circle, "is a symbolic link to tokenizer.json, where there is no file"),
        (replace_by_dangling_link, "is a symbolic link to ../blobs/gone, where there is no file"),
        (replace_by_pointer, "is a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_reason_is_said(damage: Callable[[Path], None], reason: str, bundle: Path) -> None:
    damage(bundle / "tokenizer.json")
    with pytest.raises(InputError) as caught:
        verify_bundle(bundle)
    assert reason in str(caught.value)


def test_the_hubs_cache_is_a_bundle(bundle: Path, tmp_path: Path) -> None:
    snapshot = as_hub_cache(bundle, tmp_path)
    assert verify_bundle(snapshot).manifest == verify_bundle(bundle).manifest
    flip((snapshot / "config.json").resolve())
    with pytest.raises(InputError, match=r"config\.json was changed: its SHA-256"):
        verify_bundle(snapshot)


def put(name: str, content: str = "x") -> Callable[[Path], None]:
    def write(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)

    return write


def put_locked_folder(root: Path) -> None:
    (root / "lost+found").mkdir(mode=0o000)


PASSED_OVER: dict[str, Callable[[Path], None]] = {
    "a clone": put(".git/objects/pack/a.idx"),
    "a worktree": put(".git", "gitdir: elsewhere"),
    "the hub's attributes": put(".gitattributes"),
    "attributes further down": put("onnx/.gitattributes"),
    "what git ignores": put(".gitignore"),
    "what git keeps": put("engines/.gitkeep"),
    "the hub's client": put(".cache/huggingface/download/onnx/model.onnx.metadata"),
    "its release 0.23": put(".huggingface/download/x.lock"),
    "a volume's root": put_locked_folder,
    "a volume's snapshots": put(".snapshot/hourly/onnx/model.onnx"),
    "a desktop's waste": put(".Trash-1000/files/x"),
    "data under version control": put(".dvc/config"),
    "macOS": put("onnx/.DS_Store"),
    "macOS on another volume": put("onnx/._model.onnx"),
    "NFS": put("lib/.nfs0000000001"),
    "Windows": put("Thumbs.db"),
    "Windows, too": put("lib/desktop.ini"),
}
STRANGE: dict[str, Callable[[Path], None]] = {
    "onnx/.git": put("onnx/.git/config"),
    ".cache/other": put(".cache/other/x"),
    ".cache/huggingface.txt": put(".cache/huggingface.txt"),
    ".gitattributes": lambda root: (root / ".gitattributes").mkdir(),
    "onnx/.Trash-1000": put("onnx/.Trash-1000/x"),
    "lib/lost+found": put("lib/lost+found/x"),
    ".hidden": put(".hidden"),
    "gitattributes": put("gitattributes"),
    "onnx/README.md": put("onnx/README.md"),
    "LICENSE.md": put("LICENSE.md"),
    "added_tokens.json": put("added_tokens.json"),
    "lib/libother.so": put("lib/libother.so"),
}


@pytest.mark.parametrize("case", PASSED_OVER)
def test_what_storage_puts_there_is_passed_over(case: str, bundle: Path) -> None:
    PASSED_OVER[case](bundle)
    verify_bundle(bundle)


@pytest.mark.parametrize("name", STRANGE)
def test_anything_else_is_refused(name: str, bundle: Path) -> None:
    STRANGE[name](bundle)
    with pytest.raises(InputError, match=r"is not in manifest\.json") as caught:
        verify_bundle(bundle)
    assert str(bundle / name) in str(caught.value)


def test_a_model_card_that_came_later(bundle: Path) -> None:
    """Where the checkpoint had none; one that is listed stays as it was."""
    with (bundle / "README.md").open("a") as card:
        card.write("more")
    with pytest.raises(InputError, match=r"README\.md has \d+ bytes"):
        verify_bundle(bundle)
    change(bundle, lambda m: m["files"].pop("README.md"))
    verify_bundle(bundle)


def test_cpp_passes_over_the_same() -> None:
    source = (REPO / "plugins" / "serving" / "src" / "bundle.cc").read_text()
    listed = re.search(r"kTolerated\[\] = \{(.*?)\};", source, re.DOTALL)
    assert listed is not None
    assert tuple(re.findall(r'"(.*?)"', listed[1])) == TOLERATED


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
    "model.max_seq_len": 255,
    "model.vocab_size": 121,
    "model.pad_token_id": 0,
    "model.length_step": 64,
    "model.inputs": ["input_ids", "attention_mask"],
    "model.outputs": ["last_hidden_state", "sentence_embedding", "logits"],
    "model.operator.domain": "com.microsoft",
    "model.operator.type": "Attention",
    "model.operator.version": 2,
    "model.operator.nodes": 3,
    "model.operator.attributes": [],
    "embedding.similarity": "cosine",
    "embedding.modules[0].modes[0]": "mean",
    "embedding.modules[0].include_prompt": False,
    "text.prompts.query": "other: ",
    "text.default_prompt": "query",
    "tokenizer.max_length": 100,
    "tokenizer.truncation_side": "left",
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


def test_a_vocabulary_that_the_model_does_not_have(bundle: Path) -> None:
    """The manifest and config.json agree, and the embeddings are fewer."""
    file = bundle / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "vocab_size": 121}))
    entry = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    change(bundle, lambda m: (m["files"].update({"config.json": entry}), m["model"].update(vocab_size=121)))  # type: ignore[func-returns-value]
    with pytest.raises(
        InputError, match=r"config.json has vocab_size=121, but onnx/model.onnx has embeddings of 120 tokens"
    ):
        verify_bundle(bundle)


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
