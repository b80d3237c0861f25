"""Texts on which a tokenizer written anew would show that it is another: made from its own vocabulary, the same each time."""

# ruff: noqa: RUF001 (characters that look like others are what is tried here)
from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mra_export.checkpoint.text_ids import NASTY_TEXTS

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["corpus"]

_SEED = 20240229
_PLANES = ((0x20, 0xD800), (0xE000, 0x20000), (0xE0000, 0xE0200), (0xFFFF0, 0x100010), (0x10FFF0, 0x110000))
"""Code points that each stand in some text: all that are assigned, but for rare ideographs."""
_ALPHABETS = (
    "abcdefghij klmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0123456789 .,-+$%/:",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ab",
    " \t\n\r\x0b\x0c\x1c\x1d\x85\xa0\u1680\u2000\u200b\u2028\u2029\u202f\u205f\u3000\ufeffab",
    "\x00\x01\x08\x1b\x7f\x80\x9f\xad\ufffd\ufffe\u200d\u200e\u2060ab ",
    "àéîõüçñåøœßẞıİſǅǆŉΐΰևĄęŁżþÐ ab",
    "aeinouc \u0300\u0301\u0302\u0303\u0308\u030a\u0327\u0328\u0323\u0345\u0488\u20dd\u302e\u302f\u3099\u0f71\u0f74",
    "ΟΔΥΣΣΕΥΣσίσυφοςάέ αβγ",
    "Привет Ёлка йЙ ґїє",
    "שלום עולם בְּרֵאשִׁית",
    "مرحبا بالعالم ١٢٣ لا",
    "हिन्दी ज़ क्ष ১২৩ বাংলা தமிழ் ಕನ್ನಡ",
    "สวัสดี ภาษาไทย ລາວ",
    "我能吞下玻璃日本語のテキスト々〆㐀𠀀",
    "한국어 텍스트 각가각",
    "😀👍🏽👩\u200d👧🇩🇪✈\ufe0f ab",
    "ﬁ㎏½²Ⅳ①Ａａ１ ǲ ℌ ℃",
    "𝐀𝑏𝟘𞤀𞤢𐐀𐐨\U0001d165\U0001d16d ab",
    "'s 't 're 've 'm 'll 'd 'S ''' I'm it's",
)  # fmt: skip


def corpus(
    vocabulary: Sequence[str], special: Sequence[str], longest: int, most_chars: int = 100, *, part: int = 1
) -> list[str]:
    """More than 100,000 texts, most of them short.

    Args:
        vocabulary: the tokenizer's pieces, in the order of their ids.
        special: its added tokens.
        longest: tokens to which it cuts a text; a few texts are about as long.
        most_chars: characters of a word beyond which WordPiece does not look at it.
        part: of the most numerous kinds of texts one in so many.
    """
    draw = random.Random(_SEED)
    pieces = [piece for piece in vocabulary if piece] or ["a"]
    texts = [*NASTY_TEXTS, *_sentences(), *_code_points()[::part]]
    texts += [_from_alphabets(draw) for _ in range(36_000 // part)]
    texts += [_from_pieces(draw, pieces) for _ in range(26_000 // part)]
    texts += [_from_sentences(draw) for _ in range(18_000 // part)]
    texts += [_with_special(draw, list(special) or ["[CLS]"], pieces) for _ in range(4_000 // part)]
    texts += [draw.choice(pieces) * draw.randint(1, 4) for _ in range(1_000 // part)]
    for size in range(max(1, most_chars - 2), most_chars + 3):
        texts += [unit * size for unit in ("a", "é", "e\u0301", "中", "1", "!")]
    few = min(longest, 600)
    for size in (*range(max(0, few - 4), few + 5), 2 * few):
        texts += [" ".join("ab1."[(size + i) % 4] for i in range(size)), ", ".join(["word"] * size)]
    return texts


@cache
def _sentences() -> tuple[str, ...]:
    folder = Path(__file__).parents[1] / "data"
    lines: list[str] = []
    for name in ("sentences.txt", "proof.txt", "calibration.txt", "tuning.txt"):
        lines += (folder / name).read_text(encoding="utf-8").splitlines()
    return tuple(lines)


@cache
def _code_points() -> tuple[str, ...]:
    """Each code point within a word, alone, and beside others."""
    found = []
    for first, last in _PLANES:
        for start in range(first, last, 8):
            points = [chr(point) for point in range(start, min(start + 8, last))]
            found.append(" ".join(f"a{point}b {point}" for point in points) + "".join(points))
    return tuple(found)


def _from_alphabets(draw: random.Random) -> str:
    letters = "".join(draw.choices(_ALPHABETS, k=draw.choice((1, 1, 2, 3))))
    return "".join(draw.choices(letters, k=draw.choice((1, 2, 4, 8, 16, 24))))


def _changed(draw: random.Random, word: str) -> str:
    kind = int(8 * draw.random())
    if kind == 0:
        return word.upper()
    if kind == 1:
        return word.capitalize()
    if kind == 2 and word:
        place = draw.randrange(len(word))
        return f"{word[:place]}{draw.choice(draw.choice(_ALPHABETS))}{word[place:]}"
    if kind == 3:
        return word[: draw.randint(0, len(word))]
    return word


def _from_pieces(draw: random.Random, pieces: Sequence[str]) -> str:
    between = draw.choice((" ", " ", "", "-", "  "))
    return between.join(_changed(draw, piece) for piece in draw.choices(pieces, k=draw.choice((1, 2, 3, 4, 5))))


def _from_sentences(draw: random.Random) -> str:
    words = draw.choice(_sentences()).split(" ")
    start = draw.randrange(len(words))
    return " ".join(_changed(draw, word) for word in words[start : start + draw.randint(1, 10)])


def _with_special(draw: random.Random, special: Sequence[str], pieces: Sequence[str]) -> str:
    parts = [
        draw.choice((draw.choice(special), draw.choice(pieces), " ", "a", "\t", "\u3000"))
        for _ in range(draw.randint(1, 7))
    ]
    text = "".join(parts)
    return _changed(draw, text) if draw.randrange(4) == 0 else text
