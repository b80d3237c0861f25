"""A tokenizer that cannot be loaded is an error, not a reason for random ids."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bundle_support import give_side_files, run
from checkpoints import save_checkpoint
from dense_support import VOCABULARY, write_files

from mra_export.checkpoint.tokenizer import load_tokenizer
from mra_export.errors import DependencyError, InputError

SENTENCEPIECE = ("sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model")
with_sentencepiece = pytest.mark.skipif(
    importlib.util.find_spec("sentencepiece") is None,
    reason="the package sentencepiece is not installed: `pip install 'mra-export[sentencepiece]'`",
)


def cut(directory: Path) -> None:
    path = directory / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-100])


def write(name: str, content: object) -> Callable[[Path], None]:
    return lambda directory: write_files(directory, {name: content})


DAMAGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut off": (cut, r"tokenizer\.json cannot be read as a tokenizer: "),
    "a list": (write("tokenizer.json", []), r"tokenizer\.json cannot be read as a tokenizer: "),
    "no tokenizer": (write("tokenizer.json", {"version": "1.0"}), r"tokenizer\.json cannot be read as a tokenizer: "),
    "a comma too many": (write("tokenizer_config.json", '{"a": 1,}'), r"tokenizer_config\.json is not valid JSON"),
    "special tokens": (write("special_tokens_map.json", "["), r"special_tokens_map\.json is not valid JSON"),
    "a pointer": (
        write("tokenizer.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        r"tokenizer\.json is a pointer of Git LFS",
    ),
}


@pytest.fixture
def mra(tmp_path: Path) -> Path:
    return give_side_files(save_checkpoint(tmp_path / "mra", max_position_embeddings=32, num_hidden_layers=1))


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_named(case: str, mra: Path) -> None:
    damage, reason = DAMAGED[case]
    assert load_tokenizer(mra)("word1 word2")["input_ids"] == [3, 4]
    damage(mra)
    with pytest.raises(InputError, match=reason) as caught:
        load_tokenizer(mra)
    assert str(mra) in str(caught.value)


@pytest.fixture
def pair(tiny_checkpoint: Path, tiny_export: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint and its export, each with a tokenizer."""
    copies = (Path(shutil.copytree(each, tmp_path / each.name)) for each in (tiny_checkpoint, tiny_export))
    first, second = (give_side_files(copy) for copy in copies)
    return first, second


def test_check_and_bundle_fail_with_it(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, exported = pair
    for directory in pair:
        write_files(directory, {"tokenizer.json": {"version": "1.0"}})
    output = checkpoint.parent / "bundle"
    for arguments in (["check", checkpoint, exported], ["bundle", exported, "-o", output]):
        code, result = run(*arguments, capsys=capsys)
        assert (code, "tokenizer.json cannot be read" in result["error"]) == (2, True), result
    assert not output.exists()


def test_without_a_vocabulary_there_is_none(tmp_path: Path) -> None:
    write_files(
        tmp_path, {"tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}, "special_tokens_map.json": {}}
    )
    assert load_tokenizer(tmp_path) is None


@pytest.mark.parametrize(
    "files",
    [
        {"vocab.txt": VOCABULARY, "tokenizer_config.json": {"tokenizer_class": "RobertaTokenizer"}},
        {"vocab.json": {"a": 0}, "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}},
    ],
)
def test_a_class_that_finds_none_of_its_files(files: dict[str, object], tmp_path: Path) -> None:
    """transformers gives a tokenizer of a few special tokens then."""
    write_files(tmp_path, files)
    assert load_tokenizer(tmp_path) is None


@pytest.mark.parametrize("package", ["sentencepiece", "google.protobuf"])
@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_the_missing_package_is_named(
    name: str, package: str, mra: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in ("sentencepiece", "google.protobuf"):
        monkeypatch.setitem(sys.modules, other, None if other == package else sys)
    (mra / "tokenizer.json").unlink()
    write_files(mra, {name: "model", "tokenizer_config.json": {"tokenizer_class": "XLMRobertaTokenizer"}})
    shown = {"google.protobuf": "protobuf"}.get(package, package)
    with pytest.raises(DependencyError) as caught:
        load_tokenizer(mra)
    text = str(caught.value)
    assert text.startswith(
        f"{mra / name} is a vocabulary of sentencepiece, and {shown}, which reads it, cannot be imported ("
    )
    assert text.endswith("Install it with `pip install 'mra-export[sentencepiece]'`.")


def test_check_and_bundle_end_with_4(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, exported = pair
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    for directory in pair:
        (directory / "tokenizer.json").unlink()
        write_files(
            directory, {"spiece.model": "model", "tokenizer_config.json": {"tokenizer_class": "XLMRobertaTokenizer"}}
        )
    output = checkpoint.parent / "bundle"
    for arguments in (["check", checkpoint, exported], ["bundle", exported, "-o", output, "--no-check"]):
        code, result = run(*arguments, capsys=capsys)
        assert code == 4, result
        assert f"{arguments[1] / 'spiece.model'} is a vocabulary of sentencepiece" in result["error"]
    assert not output.exists()


def test_tokenizer_json_needs_no_sentencepiece(mra: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    write_files(mra, {"sentencepiece.bpe.model": "model"})
    assert load_tokenizer(mra)("word1")["input_ids"] == [3]


@with_sentencepiece
def test_sentencepiece_is_read(tmp_path: Path) -> None:
    import sentencepiece

    (tmp_path / "text.txt").write_text("the cat sat on the mat\nthe dog sat on the log\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "m"), vocab_size=30, model_type="unigram",
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    directory = tmp_path / "mra"
    write_files(directory, {"tokenizer_config.json": {"tokenizer_class": "XLMRobertaTokenizer"}})
    shutil.copy(tmp_path / "m.model", directory / "sentencepiece.bpe.model")
    tokenizer = load_tokenizer(directory)
    expected = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model")).encode(
        "the cat sat", out_type=str
    )
    assert tokenizer.tokenize("the cat sat") == expected
    (directory / "sentencepiece.bpe.model").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"sentencepiece\.bpe\.model cannot be read as a vocabulary of sentencepiece"):
        load_tokenizer(directory)
