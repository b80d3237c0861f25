"""A tokenizer as tables: the same ids, for every kind that they can say, and none for what they cannot."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from text_support import byte_level, word_piece
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from mra_export.checkpoint import text_tables
from mra_export.checkpoint.text_corpus import corpus
from mra_export.checkpoint.text_ids import TOKENIZER_FILE
from mra_export.checkpoint.text_rules import Bpe, Rules, WordPiece, encode
from mra_export.checkpoint.text_tables import TABLES_FILE, made_from, tables_of, write_tables

UNICODE_MARKS = (
    "a\u302e\U00016ff0 a\U00016ff0\u302e a\U0001d16d\U0001d165 a\u302e\u0903\U00016ff0 a\u302e\u0901\U00016ff0"
)
"""Marks that stripping accents leaves, in an order that normalizing changes, and not across others."""


def rules_of(tokenizer: Tokenizer) -> Rules:
    return text_tables._rules(tokenizer, json.loads(tokenizer.to_str()))


def thinned(tokenizer: Tokenizer, part: int) -> list[str]:
    pieces = [piece for piece, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    return corpus(pieces, ["[X]", "[XY]", "ÉCole", "<mask>"], 64, part=part)


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bert, lowered": word_piece,
    "accents stripped, cased": lambda: word_piece(normalizers.BertNormalizer(lowercase=False, strip_accents=True)),
    "lowered twice, decomposed": lambda: word_piece(
        normalizers.Sequence(
            [normalizers.Lowercase(), normalizers.NFKD(), normalizers.BertNormalizer(strip_accents=False)]
        )
    ),
    "as it is": lambda: word_piece(None),
    "byte-level BPE": byte_level,
    "byte-level BPE, blank in front": lambda: byte_level(add_prefix_space=True),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_same_ids(name: str) -> None:
    tokenizer = KINDS[name]()
    rules = rules_of(tokenizer)
    texts = [*thinned(tokenizer, 60), UNICODE_MARKS]
    for limit, side in ((1 << 30, "right"), (9, "left"), (7, "right")):
        tokenizer.enable_truncation(limit, direction=side)
        expected = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
        for text, wanted in zip(texts, expected, strict=True):
            assert encode(rules, text, limit, side) == wanted, repr(text)


def test_marks_are_put_in_order() -> None:
    """As strings: most marks are unknown to a vocabulary, so that ids would not show their order."""
    for normalizer in (normalizers.BertNormalizer(), normalizers.NFD(), normalizers.NFKD()):
        tokenizer = word_piece(normalizer)
        rules = rules_of(tokenizer)
        assert rules.orders
        for text in (UNICODE_MARKS, "x\u0307\u0323\u0301 \u0f74\u0f71\u0f72", "각\u302f\u0301각", "\u0344\u0345\u0301"):
            assert rules.normalized(text) == normalizer.normalize_str(text), repr(text)
    assert not rules_of(word_piece(normalizers.Lowercase())).orders


@pytest.mark.slow
def test_a_real_vocabulary(minilm_dense: Path) -> None:
    tokenizer = Tokenizer.from_file(str(minilm_dense / TOKENIZER_FILE))
    tokenizer.no_padding()
    pieces = [piece for piece, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    rules = rules_of(tokenizer)
    texts = corpus(pieces, [token.text for token in rules.added], 256)
    assert len(texts) > 100_000
    assert texts == corpus(pieces, [token.text for token in rules.added], 256)
    tokenizer.enable_truncation(256)
    text_tables._prove(tokenizer, rules, texts[::6], 256, "right")


def _without_transform(rules: Rules) -> None:
    del rules.transforms[ord("É")]


def _without_split(rules: Rules) -> None:
    del rules.splits[ord("-")]


def _without_piece(rules: Rules) -> None:
    assert isinstance(rules.model, WordPiece)
    rules.model.vocabulary.pop("##s")


def _shorter_words(rules: Rules) -> None:
    assert isinstance(rules.model, WordPiece)
    object.__setattr__(rules.model, "max_chars", 99)


def _without_added(rules: Rules) -> None:
    rules.added.pop()


def _without_merge(rules: Rules) -> None:
    assert isinstance(rules.model, Bpe)
    rules.model.merges.popitem()


def _letter_is_a_digit(rules: Rules) -> None:
    rules.splits[ord("é")] = 3


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (word_piece, _without_transform),
        (word_piece, _without_split),
        (word_piece, _without_piece),
        (word_piece, _shorter_words),
        (word_piece, _without_added),
        (byte_level, _without_merge),
        (byte_level, _letter_is_a_digit),
    ],
)
def test_one_wrong_entry_is_found(
    make: Callable[[], Tokenizer], change: Callable[[Rules], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And then there are no tables, which is said."""
    asked = text_tables._rules
    monkeypatch.setattr(text_tables, "corpus", lambda *given: thinned(tokenizer, 7))
    tokenizer = make()
    tokenizer.enable_truncation(len(change.__name__) * 100)  # so that each is another one

    def wrong(*given: Any) -> Rules:
        rules = copy.deepcopy(asked(*given))
        change(rules)
        return rules

    monkeypatch.setattr(text_tables, "_rules", wrong)
    tokenizer.save(str(tmp_path / TOKENIZER_FILE))
    (note,) = write_tables(tmp_path)
    assert "gets other ids by tables than by tokenizer.json, so the bundle has no tables" in note
    assert not (tmp_path / TABLES_FILE).exists()


def _edited(make: Callable[[], Tokenizer], **settings: Any) -> Tokenizer:
    stated = json.loads(make().to_str())
    for path, value in settings.items():
        *outer, last = path.split("__")
        place = stated
        for name in outer:
            place = place[name]
        place[last] = value
    return Tokenizer.from_str(json.dumps(stated))


def _unigram() -> Tokenizer:
    return Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))


def _single_word() -> Tokenizer:
    tokenizer = word_piece()
    tokenizer.add_tokens([AddedToken("alone", single_word=True)])
    return tokenizer


def _types() -> Tokenizer:
    stated = json.loads(word_piece().to_str())
    for piece in stated["post_processor"]["single"]:
        next(iter(piece.values()))["type_id"] = 1
    return Tokenizer.from_str(json.dumps(stated))


def _whitespace() -> Tokenizer:
    tokenizer = word_piece()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def _cut_to(limit: int) -> Tokenizer:
    tokenizer = word_piece()
    tokenizer.enable_truncation(limit)
    return tokenizer


REFUSED: dict[str, Callable[[], Tokenizer]] = {
    "Its tokenizer is Unigram": _unigram,
    "'alone' has single_word": _single_word,
    "gives token types": _types,
    "Its pre_tokenizer is Whitespace": _whitespace,
    "Its normalizer is NFC": lambda: word_piece(normalizers.NFC()),
    "Its normalizer is Replace": lambda: word_piece(normalizers.Sequence([normalizers.Replace("a", "b")])),
    "cuts texts to 2 tokens": lambda: _cut_to(2),
    "not of bytes by GPT-2's rule": lambda: _edited(byte_level, pre_tokenizer__use_regex=False),
    "has ignore_merges=True": lambda: _edited(byte_level, model__ignore_merges=True),
    "Its normalizer is NFC, of which there are no tables for BPE": lambda: _edited(
        byte_level, normalizer={"type": "NFC"}
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_tables_cannot_say_is_refused(message: str) -> None:
    with pytest.raises(text_tables._Refused) as refused:
        tables_of(REFUSED[message]().to_str().encode())
    assert message in refused.value.reason


def test_the_file_says_what_it_was_made_from_and_is_the_same_each_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / TABLES_FILE).write_bytes(b"older")
    assert write_tables(tmp_path) == []
    assert not (tmp_path / TABLES_FILE).exists()  # without a tokenizer
    word_piece().save(str(tmp_path / TOKENIZER_FILE))
    assert write_tables(tmp_path) == []
    first = (tmp_path / TABLES_FILE).read_bytes()
    assert made_from(tmp_path / TABLES_FILE) == hashlib.sha256((tmp_path / TOKENIZER_FILE).read_bytes()).hexdigest()
    assert made_from(tmp_path / TOKENIZER_FILE) == ""
    monkeypatch.setattr(text_tables, "_known", {})
    assert write_tables(tmp_path) == []
    assert (tmp_path / TABLES_FILE).read_bytes() == first
