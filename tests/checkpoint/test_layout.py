"""Where sentence-transformers keeps its Transformer, the result is the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_support import as_hub_cache, run, tree
from dense_support import VOCABULARY, save, tiny, write_files

from mra_export.checkpoint.files import locate, side_files
from mra_export.checkpoint.from_dense.convert import from_dense
from mra_export.checkpoint.layout import Entry, module_kind, read_listing, sentence_root
from mra_export.checkpoint.modules import Pooling
from mra_export.checkpoint.text import read_contract
from mra_export.errors import InputError

OF_ROOT = ("modules.json", "1_Pooling", "config_sentence_transformers.json", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def dense_model() -> Any:
    return tiny("bert", "Model")


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory, dense_model: Any) -> Path:
    """A sentence-transformers directory as its newer releases write it: CLS, 40 tokens, a licence."""
    directory = save(dense_model, tmp_path_factory.mktemp("flat") / "model")
    kinds = {"": "models.Transformer", "1_Pooling": "models.Pooling"}
    files = {
        "vocab.txt": VOCABULARY + "".join(f"\nword{i}" for i in range(60)),  # as many as the model's, about
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "model_max_length": 64},
        "modules.json": [{"path": path, "type": f"sentence_transformers.{kind}"} for path, kind in kinds.items()],
        "1_Pooling/config.json": {"word_embedding_dimension": 64, "pooling_mode_cls_token": True},
        "sentence_bert_config.json": {"max_seq_length": 40},
        "config_sentence_transformers.json": {"similarity_fn_name": "cosine"},
        "README.md": "---\nlicense: mit\n---\n\n# A model\n",
        "LICENSE": "licence",
    }
    write_files(directory, files)
    (directory / "modules.json").write_text(json.dumps(files["modules.json"], indent=2) + "\n")
    return directory


def in_folder(flat: Path, target: Path, folder: str) -> Path:
    """The same with the Transformer in a folder of its own."""
    shutil.copytree(flat, target)
    inner = target / folder
    inner.mkdir(parents=True)
    for path in list(target.iterdir()):
        if path.name not in OF_ROOT and path.name != folder.split("/")[0]:
            path.rename(inner / path.name)
    modules = json.loads((target / "modules.json").read_text())
    modules[0]["path"] = folder
    (target / "modules.json").write_text(json.dumps(modules))
    return target


FOLDERS = ["0_Transformer", "encoder", "parts/0_Transformer"]


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("given", ["the whole", "the folder", "its config.json", "modules.json", "the hub's cache"])
def test_the_folder_is_found_and_the_rest_of_it(flat: Path, tmp_path: Path, folder: str, given: str) -> None:
    root = in_folder(flat, tmp_path / "model", folder)
    if given == "the hub's cache":
        root = as_hub_cache(root, tmp_path / "cache")
    path = {
        "the folder": root / folder,
        "its config.json": root / folder / "config.json",
        "modules.json": root / "modules.json",
    }.get(given, root)
    directory = locate(path)
    assert (directory, sentence_root(directory)) == (root / folder, root)
    assert read_contract(directory).modules == (Pooling(("cls",)),)
    assert read_contract(directory) == read_contract(flat)
    assert read_contract(directory).max_length == 40
    assert set(side_files(directory)) == set(side_files(flat))


@pytest.mark.parametrize("folder", FOLDERS)
def test_from_dense_writes_the_plain_layout(flat: Path, tmp_path: Path, folder: str) -> None:
    from_dense(flat, tmp_path / "expected")
    root = in_folder(flat, tmp_path / "model", folder)
    for name, source in (("whole", root), ("inner", root / folder)):
        from_dense(source, tmp_path / name)
        assert tree(tmp_path / name) == tree(tmp_path / "expected")


def test_relative_paths(flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = in_folder(flat, tmp_path / "model", "0_Transformer")
    monkeypatch.chdir(root / "0_Transformer")
    assert sentence_root(locate(".")).resolve() == root.resolve()
    monkeypatch.chdir(root)
    assert locate(".") == Path("0_Transformer")
    assert sentence_root(locate("0_Transformer")) == Path()


@pytest.mark.native
def test_texts_get_the_vectors_of_the_first_token(
    flat: Path, dense_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 40 tokens at most: once with the folder of the Transformer given, which says neither."""
    import transformers

    root = in_folder(flat, tmp_path / "model", "0_Transformer")
    texts = ["a cat", "dog b c d", "cat dog " * 40]
    tokenizer = transformers.BertTokenizer.from_pretrained(flat)
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=40, return_tensors="pt")
    with torch.no_grad():
        expected = dense_model(**inputs).last_hidden_state[:, 0].numpy()
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    from_dense(root / "0_Transformer", tmp_path / "mra", block_per_row=8)
    code, _ = run("bundle", tmp_path / "mra", "-o", tmp_path / "bundle", "--no-check", capsys=capsys)
    assert code == 0
    code, _ = run("embed", tmp_path / "bundle", tmp_path / "texts.txt", "-o", tmp_path / "v.npy", capsys=capsys)
    assert code == 0
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=2e-5)


@pytest.mark.slow
def test_an_mra_checkpoint_in_a_folder_is_exported_and_checked(
    flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from_dense(flat, tmp_path / "mra", max_position=32)
    root = in_folder(tmp_path / "mra", tmp_path / "model", "0_Transformer")
    code, result = run("onnx", root, "-o", tmp_path / "onnx", capsys=capsys)
    assert code == 0, result
    assert result["model_outputs"] == ["last_hidden_state", "sentence_embedding"]
    assert {"config.json", "vocab.txt", "modules.json", "1_Pooling/config.json", "LICENSE", "README.md"} <= set(
        tree(tmp_path / "onnx")
    )
    assert [entry["path"] for entry in json.loads((tmp_path / "onnx" / "modules.json").read_text())] == [
        "",
        "1_Pooling",
    ]
    code, result = run("check", root, tmp_path / "onnx", capsys=capsys)
    assert (code, result["ok"]) == (0, True), result
    shutil.copytree(tmp_path / "onnx" / "onnx", root / "onnx")  # where stock clients keep it
    code, result = run("check", root, capsys=capsys)
    assert (code, result["ok"]) == (0, True), result


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sentence_transformers.models.Transformer", "Transformer"),
        ("sentence_transformers.models.Transformer.Transformer", "Transformer"),
        ("sentence_transformers.base.modules.transformer.Transformer", "Transformer"),
        ("sentence_transformers.sentence_transformer.modules.pooling.Pooling", "Pooling"),
        ("sentence_transformers.sentence_transformer.modules.Pooling", "Pooling"),
        ("sentence_transformers.base.modules.normalize.Normalize", "Normalize"),
        ("custom_st.Transformer", "'custom_st.Transformer'"),
        ("sentence_transformers_x.models.Transformer", "'sentence_transformers_x.models.Transformer'"),
        ("my.sentence_transformers.models.Transformer", "'my.sentence_transformers.models.Transformer'"),
        ("sentence_transformers.Transformer", "'sentence_transformers.Transformer'"),
        ("Transformer", "'Transformer'"),
    ],
)
def test_only_the_full_name_says_whose_module_it_is(name: str, kind: str) -> None:
    assert module_kind(name) == kind


@pytest.mark.parametrize(
    "name", ["custom_st.Transformer", "modeling.Pooling", "x.sentence_transformers.models.Pooling"]
)
def test_modules_of_others_are_refused(
    name: str, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(flat, tmp_path / "model"))
    modules = json.loads((root / "modules.json").read_text())
    modules["Pooling" in name]["type"] = name
    (root / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(
        InputError, match=f"modules.json names the module '{name}', which is not one of sentence-transformers'"
    ):
        from_dense(root, tmp_path / "mra")
    with pytest.raises(InputError, match=name):
        read_contract(root)


WRONG: dict[str, tuple[Any, str]] = {
    "an object": ({"0": {}}, "it must hold a list"),
    "entries of text": (["Transformer"], "entry 0 is no object"),
    "no path": ([{"type": "x"}], "the path of entry 0 is no text"),
    "a path of a number": ([{"path": "", "type": "x"}, {"path": 1, "type": "x"}], "the path of entry 1 is no text"),
    "a type of a list": ([{"path": "", "type": ["x"]}], "the type of entry 0 is no text"),
    "a byte order mark": ("\ufeff[]", "it begins with a byte order mark"),
    "cut off": ('[{"path": ""', "Expecting"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_listing_that_cannot_be_read(case: str, tmp_path: Path) -> None:
    content, reason = WRONG[case]
    write_files(tmp_path, {"modules.json": content})
    with pytest.raises(InputError) as caught:
        read_listing(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'modules.json'} is not a valid list of modules: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize("folder", ["../x", "/etc", "a/../../x"])
def test_folders_outside_are_refused(folder: str, tmp_path: Path) -> None:
    write_files(tmp_path, {"modules.json": [{"path": folder, "type": "x"}]})
    with pytest.raises(InputError, match="is outside the checkpoint"):
        locate(tmp_path)


def test_a_folder_that_is_not_there(flat: Path, tmp_path: Path) -> None:
    root = in_folder(flat, tmp_path / "model", "0_Transformer")
    (root / "0_Transformer" / "config.json").unlink()
    with pytest.raises(InputError, match=r"0_Transformer has no config\.json, but .*modules\.json names it"):
        locate(root)


def test_a_listing_without_an_encoder(tmp_path: Path) -> None:
    write_files(tmp_path, {"modules.json": [{"path": "", "type": "sentence_transformers.models.StaticEmbedding"}]})
    with pytest.raises(InputError, match="begins with the module StaticEmbedding, which is no Transformer"):
        locate(tmp_path)


def test_a_listing_of_something_else_above(flat: Path, tmp_path: Path) -> None:
    """Not every modules.json is about the folder beneath it."""
    directory = Path(shutil.copytree(flat, tmp_path / "site" / "model"))
    for content in ({"react": 1}, [{"path": "", "type": "x"}], [{"path": "other", "type": "x"}], "{"):
        write_files(tmp_path / "site", {"modules.json": content})
        (directory / "modules.json").unlink(missing_ok=True)
        assert sentence_root(locate(directory)) == directory
    inner = Path(shutil.copytree(directory, tmp_path / "site" / "0_Transformer"))
    with pytest.raises(InputError, match=r"modules\.json is not a valid list of modules"):
        locate(inner)


def test_entries_are_read_in_order(tmp_path: Path) -> None:
    kinds = [("./", "Transformer"), ("1_Pooling/", "Pooling"), ("", "Normalize")]
    write_files(
        tmp_path, {"modules.json": [{"path": p, "type": f"sentence_transformers.models.{k}"} for p, k in kinds]}
    )
    assert read_listing(tmp_path) == (Entry("Transformer", ""), Entry("Pooling", "1_Pooling"), Entry("Normalize", ""))
