"""A JSON file that cannot be read is named, as the user knows it, and what is wrong with it is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from dense_support import VOCABULARY, write_files

from mra_export.checkpoint.files import LENGTH_FILES, locate, side_files
from mra_export.checkpoint.from_dense.convert import from_dense
from mra_export.checkpoint.json_files import is_pointer, read_json, write_json
from mra_export.errors import InputError

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
UNREADABLE: dict[str, tuple[bytes, str]] = {
    "a byte order mark": (b"\xef\xbb\xbf{}", "it begins with a byte order mark, which transformers does not read"),
    "UTF-16": ("{}".encode("utf-16"), "it is UTF-16. Write it as UTF-8: `iconv -f UTF-16 -t UTF-8"),
    "latin-1": ('{"a": "é"}'.encode("latin-1"), r"it is not UTF-8 \(byte 7\)"),
    "a comma too many": (b'{"a": 1,}', "is not valid JSON: "),
    "cut off": (b'{"a": ', "is not valid JSON: Expecting value"),
    "empty": (b"", "is not valid JSON: Expecting value"),
    "too deep": (b'{"a": ' + b"[" * 200_000, "it is nested too deeply|is not valid JSON"),
    "a pointer of Git LFS": (POINTER.encode(), "it is a pointer of Git LFS, not the file. Fetch .*`git lfs pull`"),
    "a list": (b"[]", "must hold a JSON object"),
    "a text": (b'"x"', "must hold a JSON object"),
    "null": (b"null", "must hold a JSON object"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_is_wrong_is_said(case: str, tmp_path: Path) -> None:
    content, reason = UNREADABLE[case]
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path} ")


def test_a_file_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}")

    def fail(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", fail)  # root may read everything, so chmod shows nothing
    with pytest.raises(InputError, match=r"x\.json is not valid JSON: Permission denied"):
        read_json(path)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, True], "a": "é"}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert (tmp_path / "x.json").read_text(encoding="utf-8").index('"a": "é"') < 10
    assert read_json(tmp_path / "none.json") == {}


FILES = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "generation_config.json",
    "adapter_config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    *LENGTH_FILES,
]


@pytest.mark.parametrize("case", ["a byte order mark", "a comma too many"])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("folder", ["", "0_Transformer"])
def test_the_sources_own_path_is_named(
    name: str, case: str, folder: str, bert: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not that of a copy that is gone by then."""
    root = tmp_path / "root"
    bert.rename(root / folder) if not folder else (root.mkdir(), bert.rename(root / folder))
    kinds = {folder: "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
    listing = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    write_files(root, {"modules.json": listing, "1_Pooling/config.json": {}, "2_Dense/config.json": {}})
    write_files(root / folder, {"vocab.txt": VOCABULARY})
    of_root = name in ("config_sentence_transformers.json", "modules.json") or "/" in name
    path = (root if of_root else root / folder) / name
    path.write_bytes(UNREADABLE[case][0])
    with pytest.raises(InputError) as caught:
        from_dense(root, tmp_path / "mra")
    assert str(caught.value).startswith(f"{path} "), caught.value
    assert ".mra." not in str(caught.value)
    assert not (tmp_path / "mra").exists()


@pytest.mark.parametrize(
    "name", ["vocab.txt", "sentencepiece.bpe.model", "tokenizer.json", "README.md", "1_Pooling/config.json"]
)
def test_pointers_of_git_lfs_are_not_carried_along(name: str, bert: Path) -> None:
    write_files(bert, {name: POINTER})
    with pytest.raises(InputError, match=f"{name} is a pointer of Git LFS, not the file itself"):
        side_files(bert)
    with pytest.raises(InputError, match=f"{name} is "):
        locate(bert)


def test_only_pointers_are_pointers(tmp_path: Path) -> None:
    for name, content, expected in (
        ("pointer", POINTER, True),
        ("empty", "", False),
        ("other", "version 2", False),
        ("long", POINTER + "x" * 1000, False),
    ):
        (tmp_path / name).write_text(content)
        assert is_pointer(tmp_path / name) == expected, name
    assert not is_pointer(tmp_path / "none")
