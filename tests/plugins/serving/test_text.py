"""Texts in the C++ library: the tokenizer's own ids, by tables and by Python, with the bundle's prompts, limit and side."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from checkpoints import save_checkpoint
from serving_support import Driver, Refused, native_library, once, python_folder, relist, write_manifest
from text_support import byte_level, pack_texts, word_piece
from tokenizers import Tokenizer, normalizers

from mra_export.checkpoint.text_corpus import corpus
from mra_export.checkpoint.text_ids import TOKENIZER_FILE
from mra_export.checkpoint.text_tables import TABLES_FILE, write_tables

TEXTS = [
    "The ferry leaves at seven.",
    "naïve café, Ελληνικά: σίσυφος",
    "",
    "日本語のテキスト",
    "\x00null [MASK] [SEP]",
    "word " * 900,
]


class Texts:
    """Asks a driver about texts."""

    def __init__(self, driver: Driver, folder: Path) -> None:
        self.driver, self.folder = driver, folder

    def ids(self, texts: Sequence[str | bytes], *prompt: str) -> list[list[int]]:
        packed = pack_texts(self.folder / "texts", texts)
        self.driver.ask("tokenize", "m", packed, self.folder / "ids", *prompt)
        lines = (self.folder / "ids").read_text().splitlines()
        return [[int(word) for word in line.split()] for line in lines]

    def vectors(self, texts: Sequence[str], *prompt: str) -> np.ndarray:
        packed = pack_texts(self.folder / "texts", texts)
        rows, columns = map(int, self.driver.ask("embed_texts", "m", packed, self.folder / "out", *prompt))
        return np.fromfile(self.folder / "out", np.float32).reshape(rows, columns)


@pytest.fixture
def shared(shared_driver: Driver, tmp_path: Path) -> Texts:
    return Texts(shared_driver, tmp_path)


@pytest.fixture(params=["shared", "static"])
def texts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Texts]:
    with Driver(request.param, tmp_path) as driver:
        yield Texts(driver, tmp_path)


def python(*more: str) -> list[str]:
    return ["tokenizer=python", f"backend_dir={python_folder()}", *more]


def tokenizer_of(bundle: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(bundle / TOKENIZER_FILE))
    stated = json.loads((bundle / "manifest.json").read_text())["tokenizer"]
    tokenizer.enable_truncation(stated["max_length"], direction=stated["truncation_side"])
    return tokenizer


def expected(bundle: Path, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer_of(bundle).encode_batch_fast(list(texts))]


def pieces_of(tokenizer: Tokenizer) -> list[str]:
    return [piece for piece, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]


def with_tokenizer(source: Path, target: Path, tokenizer: Tokenizer, *, limit: int = 40, side: str = "right") -> Path:
    """A copy of a bundle with another tokenizer, of no more ids, and its tables."""
    bundle = Path(shutil.copytree(source, target))
    tokenizer.enable_truncation(limit, direction=side)
    tokenizer.save(str(bundle / TOKENIZER_FILE))
    assert write_tables(bundle) == []
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["tokenizer"] = {"file": TOKENIZER_FILE, "max_length": limit, "truncation_side": side}
    write_manifest(bundle, manifest)
    relist(bundle)
    return bundle


@pytest.fixture(scope="session")
def roomy_bundle(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As small as `tiny_bundle`, with room for the ids of small tokenizers."""
    from mra_export.pipeline.create_bundle import create_bundle

    with once(shared_folder / "roomy") as is_to_make:
        if is_to_make:
            checkpoint = save_checkpoint(tmp_path_factory.mktemp("roomy") / "checkpoint", vocab_size=1000)
            create_bundle(checkpoint, shared_folder / "roomy", library=native_library(), check=False)
    return shared_folder / "roomy"


@pytest.fixture
def bundle(roomy_bundle: Path, tmp_path: Path) -> Path:
    """With a small tokenizer of WordPiece, to be changed."""
    return with_tokenizer(roomy_bundle, tmp_path / "bundle", word_piece(), limit=200)


# The tokenizer's own ids.


@pytest.mark.slow
def test_the_whole_corpus_by_tables(shared: Texts, minilm_bundle: Path) -> None:
    """More than 100,000 texts, by the code that serves."""
    texts = corpus(pieces_of(tokenizer_of(minilm_bundle)), ["[CLS]", "[MASK]"], 512)
    shared.driver.ask("open", "m", minilm_bundle)
    assert shared.driver.ask("tokenizer", "m") == ["tables of WordPiece"]
    assert shared.ids(texts) == expected(minilm_bundle, texts)


@pytest.mark.parametrize(
    "kind", ["WordPiece", "WordPiece, decomposed", "byte-level BPE", "byte-level BPE, blank in front"]
)
def test_every_kind_of_tables(kind: str, texts: Texts, roomy_bundle: Path, tmp_path: Path) -> None:
    decomposed = normalizers.Sequence([normalizers.NFD(), normalizers.BertNormalizer(strip_accents=False)])
    tokenizer = (
        byte_level(add_prefix_space=kind.endswith("front"))
        if kind.startswith("byte")
        else word_piece(*[decomposed] * kind.endswith("decomposed"))
    )
    side = "left" if kind.endswith("front") else "right"
    bundle = with_tokenizer(roomy_bundle, tmp_path / "bundle", tokenizer, side=side)
    texts.driver.ask("open", "m", bundle)
    assert texts.driver.ask("tokenizer", "m") == [f"tables of {kind.split(',')[0]}"]
    some = corpus(pieces_of(tokenizer), ["[X]", "[XY]", "ÉCole", "<mask>"], 40, part=40)
    some += ["ab" * 400 + " " * 90, "a\u302e\U0001d165 a\u302e\u0903\U0001d165"]
    assert texts.ids(some) == expected(bundle, some)


@pytest.mark.slow
def test_by_python_too(shared: Texts, minilm_bundle: Path, tmp_path: Path) -> None:
    some = corpus(pieces_of(tokenizer_of(minilm_bundle)), ["[CLS]", "[MASK]"], 512, part=40)
    shared.driver.ask("open", "m", minilm_bundle, *python())
    (name,) = shared.driver.ask("tokenizer", "m")
    assert name.startswith("tokenizers ")
    assert " in Python 3." in name
    assert shared.ids(some) == expected(minilm_bundle, some)
    bundle = with_tokenizer(minilm_bundle, tmp_path / "bundle", byte_level(), limit=9, side="left")
    shared.driver.ask("open", "m", bundle, *python())  # a second one in the same process
    assert shared.ids(some) == expected(bundle, some)
    assert shared.driver.ask("tokenize_at_once", "m", pack_texts(tmp_path / "few", some[:300]), 4, 5) == []


def test_threads_at_once_by_tables(texts: Texts, bundle: Path, tmp_path: Path) -> None:
    texts.driver.ask("open", "m", bundle)
    assert texts.driver.ask("tokenize_at_once", "m", pack_texts(tmp_path / "few", TEXTS * 5), 4, 5) == []


def test_vectors_are_those_of_the_ids(texts: Texts, bundle: Path) -> None:
    texts.driver.ask("open", "m", bundle)
    assert np.array_equal(texts.vectors(TEXTS), texts.driver.embed("m", expected(bundle, TEXTS)))
    assert texts.vectors([]).shape == (0, 64)


# What the bundle says of texts.


@pytest.fixture
def prompted(bundle: Path) -> Path:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["text"] = {"prompts": {"query": "find: ", "passage": "this says "}, "default_prompt": "query"}
    write_manifest(bundle, manifest)
    return bundle


@pytest.mark.parametrize("by", ["tables", "python"])
def test_prompts(by: str, shared: Texts, prompted: Path) -> None:
    shared.driver.ask("open", "m", prompted, *(python() if by == "python" else []))
    for prompt, before in (
        ([], "find: "),
        (["name=passage"], "this says "),
        (["name=document"], ""),
        (["text="], ""),
        (["text=so ist es: é "], "so ist es: é "),
    ):
        assert shared.ids(TEXTS, *prompt) == expected(prompted, [before + text for text in TEXTS]), prompt
    for prompt, message in (
        (["name=nothing"], r"There is no prompt 'nothing'\. The model has passage, query\."),
        (["name=query", "text=a"], "Both the prompt 'query' by name and a prompt's text are given"),
    ):
        with pytest.raises(Refused, match=message) as refused:
            shared.ids(TEXTS, *prompt)
        assert refused.value.code == 2


def test_a_prompt_whose_tokens_must_not_count_is_refused(shared: Texts, prompted: Path) -> None:
    manifest = json.loads((prompted / "manifest.json").read_text())
    manifest["embedding"]["modules"][0]["include_prompt"] = False
    write_manifest(prompted, manifest)
    shared.driver.ask("open", "m", prompted)
    with pytest.raises(Refused, match="include_prompt=false"):
        shared.ids(TEXTS)
    assert shared.ids(TEXTS, "text=") == expected(prompted, TEXTS)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("by", ["tables", "python"])
def test_limit_and_side(by: str, side: str, shared: Texts, bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["tokenizer"].update(max_length=7, truncation_side=side)
    write_manifest(bundle, manifest)
    shared.driver.ask("open", "m", bundle, *(python() if by == "python" else []))
    some = ["one two three four five six seven", "one two three four five", "one", ""]
    found = shared.ids(some)
    assert found == expected(bundle, some)
    assert max(map(len, found)) == 7


# What is wrong is said.


BAD_UTF8 = {b"ab\xff": 2, b"\xc0\x80": 0, b"a\xed\xa0\x80": 1, b"\xf4\x90\x80\x80": 0, b"ok \xe2\x82": 3, b"\x80": 0}


@pytest.mark.parametrize("by", ["tables", "python"])
def test_what_is_not_utf8_is_named(by: str, shared: Texts, bundle: Path) -> None:
    shared.driver.ask("open", "m", bundle, *(python() if by == "python" else []))
    for text, byte in BAD_UTF8.items():
        with pytest.raises(Refused, match=rf"Text 1 is not UTF-8 from byte {byte} on") as refused:
            shared.ids(["fine", text])
        assert refused.value.code == 2
    assert shared.ids(["a\U0010ffff\ud7ff\ue000b"]) == expected(bundle, ["a\U0010ffff\ud7ff\ue000b"])


def test_without_tables_it_says_what_to_do(shared: Texts, bundle: Path, tiny_bundle: Path) -> None:
    (bundle / TABLES_FILE).unlink()
    relist(bundle)
    shared.driver.ask("open", "m", bundle)
    assert shared.driver.ask("tokenizer", "m") == [""]
    with pytest.raises(Refused, match=r'has no tables of its tokenizer\. Open it with tokenizer="python"'):
        shared.ids(TEXTS)
    with pytest.raises(Refused, match="has no tables of its tokenizer"):
        shared.driver.ask("open", "m", bundle, "tokenizer=tables")
    shared.driver.ask("open", "m", bundle, *python())
    assert shared.ids(TEXTS) == expected(bundle, TEXTS)
    shared.driver.ask("open", "m", tiny_bundle)
    with pytest.raises(Refused, match="has no tokenizer"):
        shared.ids(TEXTS)
    with pytest.raises(Refused, match="tokenizer='python' has nothing to read"):
        shared.driver.ask("open", "m", tiny_bundle, *python())


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["tokenizer=sentencepiece"], 2, "tokenizer='sentencepiece' must be tables, python or empty"),
        (["tokenizer=tables", "text_encoder=1"], 2, "Both tokenizer='tables' and a text_encoder are given"),
        (["tokenizer=python", "backend_dir=/nowhere"], 4, r"/nowhere/libmra_serving_python\.so cannot be loaded"),
    ],
)
def test_bad_options(options: list[str], code: int, message: str, shared: Texts, bundle: Path) -> None:
    with pytest.raises(Refused, match=message) as refused:
        shared.driver.ask("open", "m", bundle, *options)
    assert refused.value.code == code


def test_an_encoder_of_the_callers_own(texts: Texts, tiny_bundle: Path) -> None:
    texts.driver.ask("open", "m", tiny_bundle, "text_encoder=1")
    assert texts.driver.ask("tokenizer", "m") == ["letters"]
    assert texts.ids(["ab", "c"]) == [[97, 98], [99]]
    assert np.array_equal(texts.vectors(["ab", "cde"]), texts.driver.embed("m", [[97, 98], [99, 100, 101]]))
    with pytest.raises(Refused, match="This encoder takes no such text"):
        texts.ids(["refuse"])
    with pytest.raises(Refused, match="letters gave ids of 2 texts for 3"):
        texts.ids(["a", "b", "c"])
    with pytest.raises(Refused, match="Text 0 has no tokens"):
        texts.vectors([""])


def test_a_missing_package_is_named(bundle: Path, tmp_path: Path) -> None:
    """In a process of its own: a Python that was started once keeps what it imported."""
    with Driver("shared", tmp_path) as driver:
        with pytest.raises(
            Refused, match=r"tokenizers cannot be imported from .*empty: .*`pip install tokenizers`"
        ) as refused:
            driver.ask("open", "m", bundle, *python(f"python_site={tmp_path / 'empty'}"))
        assert refused.value.code == 4
        driver.ask("open", "m", bundle, *python())  # and the process lives on


def test_the_site_comes_from_the_environment(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python itself would be told by the environment counts nothing."""
    monkeypatch.setenv("MRA_SERVING_PYTHON_SITE", str(tmp_path / "named"))
    monkeypatch.setenv("PYTHONPATH", os.fspath(Path(pytest.__file__).parents[1]))
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with Driver("shared", tmp_path) as driver, pytest.raises(Refused, match=r"imported from .*named"):
        driver.ask("open", "m", bundle, *python())


# Damaged tables: refused, and never read beyond their end.


def test_damaged_tables_are_refused(sanitized_driver: Driver, bundle: Path) -> None:
    file = bundle / TABLES_FILE
    whole = file.read_bytes()
    draw = np.random.default_rng(0)
    cut = [0, 7, 8, 39, 40, 43, 44, *draw.integers(44, len(whole), 25).tolist(), len(whole) - 1]
    damaged = [whole[:size] for size in cut] + [whole + b"\0"]
    for place in [0, 9, *range(40, 200, 4), *draw.integers(200, len(whole), 60).tolist()]:
        damaged.append(whole[:place] + b"\xff\xff\xff\x7f" + whole[place + 4 :])
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(Refused, match=r"tokenizer\.tables ") as refused:
            sanitized_driver.ask("open", "m", bundle, "verify_files=0")
        assert refused.value.code == 2
    file.write_bytes(whole)
    sanitized_driver.ask("open", "m", bundle, "verify_files=0")
    (bundle / TOKENIZER_FILE).write_text("{}")
    with pytest.raises(Refused, match=r"was not made from .*tokenizer\.json"):
        sanitized_driver.ask("open", "m", bundle, "verify_files=0")


def test_the_library_for_python_needs_no_other_library() -> None:
    """Of ours: it may be loaded by a program that links the static library."""
    needed = subprocess.run(
        ["readelf", "-d", python_folder() / "libmra_serving_python.so"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "libpython3" in needed
    assert "libmra_serving" not in needed.replace("libmra_serving_python", "")
