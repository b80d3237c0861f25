"""What a tokenizer does, as tables: asked of the tokenizer itself, proved against it, for programs that have none.

A tokenizer of WordPiece or of byte-level BPE is a function of each character, a list of pieces, and rules that fit a page. What
it makes of a character depends on its normalizer and on its release of Unicode, so none of that is written here: the tokenizer is
asked about every code point. `write_tables` then lets the tables tokenize the texts of `corpus`; one text with other ids, and there
are none. The file's layout is in docs/bundle.md; `plugins/serving/src/text_tables.h` reads it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.checkpoint.text_corpus import corpus
from mra_export.checkpoint.text_ids import NASTY_TEXTS, TOKENIZER_FILE
from mra_export.checkpoint.text_probe import classes_of, orders_of, ranges_of, splits_of, transforms_of
from mra_export.checkpoint.text_rules import Added, Bpe, Rules, WordPiece, encode

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TABLES_FILE", "made_from", "tables_of", "write_tables"]

TABLES_FILE = "tokenizer.tables"
MAGIC = b"MRATEXT\x01"
SAMPLES = 2_000
"""Texts that stand in the file with their ids: who reads it tokenizes them before anything else."""
_PLAIN_NORMALIZERS = ("BertNormalizer", "Lowercase", "NFD", "NFKD", "StripAccents")
"""Those that make of each character the same wherever it stands, but for the order of combining marks."""


class _Refused(Exception):
    """There are no tables of this tokenizer; the text says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


_known: dict[str, Any] = {}
"""The last answers of this process, which may bundle one tokenizer several times, or many with the same parts."""


def _once(key: str, make: Callable[[], Any]) -> Any:
    if key not in _known:
        for oldest in list(_known)[:-7]:
            del _known[oldest]
        _known[key] = make()
    return _known[key]


def write_tables(directory: Path) -> list[str]:
    """Writes `TABLES_FILE` beside a tokenizer.json, where the tokenizer is of a kind that tables can say, and they are proved.

    Args:
        directory: with `TOKENIZER_FILE`, in which the limit and the side of truncation are stated; without it, nothing happens.

    Returns:
        Why there are none, as notes.
    """
    path = directory / TOKENIZER_FILE
    (directory / TABLES_FILE).unlink(missing_ok=True)
    if not path.is_file():
        return []
    content = path.read_bytes()
    made = _once(hashlib.sha256(content).hexdigest(), lambda: _tables_or_reason(content))
    if isinstance(made, str):
        return [f"{made}, so the bundle has no tables of it: in C++, texts take the library that hosts Python."]
    (directory / TABLES_FILE).write_bytes(made)
    return []


def made_from(path: Path) -> str:
    """SHA-256 of the tokenizer.json that a file of tables was made from; "" where it is no such file."""
    with path.open("rb") as file:
        head = file.read(len(MAGIC) + 32)
    return head[len(MAGIC) :].hex() if head.startswith(MAGIC) else ""


def _tables_or_reason(content: bytes) -> bytes | str:
    try:
        return tables_of(content)
    except _Refused as refused:
        return refused.reason


def tables_of(content: bytes) -> bytes:
    """The tables of a tokenizer.json.

    Args:
        content: of the file.

    Raises:
        _Refused: it is of another kind, or a text of the corpus gets other ids.
    """
    from tokenizers import Tokenizer

    tokenizer, stated = Tokenizer.from_str(content.decode("utf-8")), json.loads(content)
    tokenizer.no_padding()
    limit = (stated["truncation"] or {}).get("max_length", 1 << 30)
    side = str((stated["truncation"] or {}).get("direction", "Right")).lower()
    tokenizer.no_truncation()
    rules = _rules(tokenizer, stated)
    if limit <= len(rules.before) + len(rules.after):
        raise _Refused(
            f"tokenizer.json cuts texts to {limit} tokens, special tokens included, which leaves none for a text"
        )
    pieces = [piece for piece, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    most = rules.model.max_chars if isinstance(rules.model, WordPiece) else 100
    texts = corpus(pieces, [token.text for token in rules.added], min(limit, 1 << 16), most)
    tokenizer.enable_truncation(limit, direction=side)
    _prove(tokenizer, rules, texts, limit, side)
    tokenizer.no_truncation()
    step = len(texts) // SAMPLES
    samples = [*NASTY_TEXTS, *texts[:: max(step, 1)]][:SAMPLES]
    expected = [encoding.ids for encoding in tokenizer.encode_batch_fast(samples)]
    return _packed(rules, hashlib.sha256(content).digest(), list(zip(samples, expected, strict=True)))


def _prove(tokenizer: Any, rules: Rules, texts: list[str], limit: int, side: str) -> None:
    """Lets the tables tokenize every text, and the tokenizer too."""
    for start in range(0, len(texts), 10_000):
        window = texts[start : start + 10_000]
        for text, encoding in zip(window, tokenizer.encode_batch_fast(window), strict=True):
            if any(encoding.type_ids):
                raise _Refused("Its tokenizer gives token types, which only Python passes on")
            if encode(rules, text, limit, side) != encoding.ids:
                shown = text if len(text) <= 40 else text[:40] + "..."
                raise _Refused(f"Of {len(texts)} texts, {shown!r} gets other ids by tables than by tokenizer.json")


def _rules(tokenizer: Any, stated: dict[str, Any]) -> Rules:
    """What the tokenizer does, asked of it part by part; refuses parts that tables cannot say."""
    kind = stated["model"]["type"]
    readers = {"WordPiece": _word_piece, "BPE": _byte_level}
    if kind not in readers:
        raise _Refused(f"Its tokenizer is {kind}, of which there are no tables")
    rules = readers[kind](tokenizer, stated)
    before, after = _around(tokenizer)
    return replace(rules, before=before, after=after, added=_added(tokenizer, stated))


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids that stand before and after those of each text."""
    plain = tokenizer.encode("a 1", add_special_tokens=False).ids
    whole = tokenizer.encode("a 1").ids
    for place in range(len(whole) - len(plain) + 1):
        if plain and whole[place : place + len(plain)] == plain:
            return whole[:place], whole[place + len(plain) :]
    raise _Refused("What its tokenizer puts around a text depends on the text")


def _added(tokenizer: Any, stated: dict[str, Any]) -> list[Added]:
    """Tokens that are found in a text before it is tokenized."""
    found = []
    for token in stated["added_tokens"]:
        if token["single_word"]:
            raise _Refused(f"Its added token {token['content']!r} has single_word, which tables do not know")
        text = token["content"]
        if token["normalized"] and tokenizer.normalizer is not None:
            text = tokenizer.normalizer.normalize_str(text)
        if text:
            found.append(Added(token["id"], text, token["normalized"], token["lstrip"], token["rstrip"]))
    return found


def _parts(stated: Any) -> list[dict[str, Any]]:
    many = (stated or {}).get("normalizers")
    return [stated] * bool(stated) if many is None else [part for each in many for part in _parts(each)]


def _word_piece(tokenizer: Any, stated: dict[str, Any]) -> Rules:
    model = stated["model"]
    for part in _parts(stated["normalizer"]):
        if part["type"] not in _PLAIN_NORMALIZERS:
            raise _Refused(f"Its normalizer is {part['type']}, of which there are no tables")
    if (stated["pre_tokenizer"] or {}).get("type") != "BertPreTokenizer":
        raise _Refused(
            f"Its pre_tokenizer is {(stated['pre_tokenizer'] or {}).get('type')}, of which there are no tables"
        )
    if model["unk_token"] not in model["vocab"]:
        raise _Refused(f"Its unk_token {model['unk_token']!r} is not in the vocabulary")
    rules = Rules(
        WordPiece(
            unknown=model["vocab"][model["unk_token"]],
            max_chars=model["max_input_chars_per_word"],
            prefix=model["continuing_subword_prefix"],
            vocabulary={piece: number for piece, number in model["vocab"].items() if piece},
        ),
        splits=_once(json.dumps(stated["pre_tokenizer"]), lambda: splits_of(tokenizer.pre_tokenizer)),
    )
    normalizer = tokenizer.normalizer
    if normalizer is None:
        return rules
    asked = json.dumps(stated["normalizer"])
    transforms = _once(asked, lambda: transforms_of(normalizer))
    orders, barriers = _once(f"orders {asked}", lambda: orders_of(normalizer, transforms))
    return replace(rules, transforms=transforms, orders=orders, barriers=barriers)


def _byte_level(tokenizer: Any, stated: dict[str, Any]) -> Rules:
    model, before = stated["model"], stated["pre_tokenizer"] or {}
    if before.get("type") != "ByteLevel" or not before.get("use_regex", True):
        raise _Refused("Its tokenizer is BPE, but not of bytes by GPT-2's rule")
    if stated["normalizer"] is not None:
        raise _Refused(f"Its normalizer is {stated['normalizer']['type']}, of which there are no tables for BPE")
    unusual = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    if named := [f"{name}={model[name]!r}" for name in unusual if model.get(name)]:
        raise _Refused(f"Its BPE has {', '.join(named)}, of which there are no tables")
    vocabulary = model["vocab"]
    letters = _byte_letters()
    if missing := [letter for letter in letters if letter not in vocabulary]:
        raise _Refused(f"Its BPE has no piece for {len(missing)} of the 256 bytes")
    merges = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if any(piece not in vocabulary for piece in (left, right, left + right)):
            raise _Refused(f"Its BPE merges {left!r} and {right!r}, which are not in the vocabulary")
        merges[vocabulary[left], vocabulary[right]] = rank, vocabulary[left + right]
    return Rules(
        Bpe(
            letters=[vocabulary[letter] for letter in letters],
            merges=merges,
            add_prefix_space=bool(before["add_prefix_space"]),
        ),
        splits=_once(json.dumps(before), lambda: classes_of(tokenizer.pre_tokenizer)),
    )


def _byte_letters() -> list[str]:
    """The letter by which GPT-2 writes each byte."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) if byte in shown else chr(256 + hidden.index(byte)) for byte in range(256)]


def _packed(rules: Rules, of: bytes, samples: list[tuple[str, list[int]]]) -> bytes:
    """The file."""
    out = bytearray(MAGIC + of)

    def number(*values: int) -> None:
        out.extend(struct.pack(f"<{len(values)}I", *values))

    def text(value: str) -> None:
        encoded = value.encode("utf-8")
        number(len(encoded))
        out.extend(encoded)

    def numbers(values: list[int]) -> None:
        number(len(values), *values)

    number(1 if isinstance(rules.model, WordPiece) else 2)
    numbers(rules.before)
    numbers(rules.after)
    number(len(rules.added))
    for token in rules.added:
        number(token.id, token.normalized + 2 * token.lstrip + 4 * token.rstrip)
        text(token.text)
    actions, mapped = _actions(rules)
    for ranges in (ranges_of(actions), ranges_of(rules.orders), ranges_of(rules.splits)):
        number(len(ranges))
        for entry in ranges:
            number(*entry)
    number(len(mapped))
    for code, became in mapped.items():
        number(code)
        text(became)
    if isinstance(rules.model, WordPiece):
        number(rules.model.unknown, rules.model.max_chars)
        text(rules.model.prefix)
        number(len(rules.model.vocabulary))
        for piece, piece_id in rules.model.vocabulary.items():
            number(piece_id)
            text(piece)
    else:
        number(rules.model.add_prefix_space, *rules.model.letters)
        number(len(rules.model.merges))
        for (left, right), (_, merged) in sorted(rules.model.merges.items(), key=lambda item: item[1]):
            number(left, right, merged)
    number(len(samples))
    for sample, ids in samples:
        text(sample)
        numbers(ids)
    return bytes(out)


def _actions(rules: Rules) -> tuple[dict[int, int], dict[int, str]]:
    """What becomes of each code point that changes: 1 nothing, 2 a blank, 3 itself between blanks, 4 what `mapped` says, 5 nothing,
    but marks are not put in order across it."""
    actions, mapped = {}, {}
    for code, became in rules.transforms.items():
        char = chr(code)
        known = {"": 5 if code in rules.barriers else 1, " ": 2, f" {char} ": 3}
        actions[code] = known.get(became, 4)
        if actions[code] == 4:
            mapped[code] = became
    return actions, mapped
