"""Tokenizes by rules and tables alone, as `plugins/serving/src/text_tables.cc` does in C++: WordPiece and byte-level BPE."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from functools import cached_property

from mra_export.checkpoint.text_probe import ranges_of

__all__ = ["Added", "Bpe", "Rules", "WordPiece", "encode"]

_BARRIER = "\ud800"
"""Stands in for what is left out only after marks were put in order; no text holds it."""
_BLANKS = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


@dataclass(frozen=True)
class Added:
    """A token that is found in the text itself.

    Attributes:
        id: of the token.
        text: of it; as the normalizer leaves it where `normalized`.
        normalized: whether it is looked for in the normalized text.
        lstrip: whether blanks before it belong to it.
        rstrip: whether blanks after it belong to it.
    """

    id: int
    text: str
    normalized: bool
    lstrip: bool
    rstrip: bool


@dataclass(frozen=True)
class WordPiece:
    """The longest pieces of a word, from left to right.

    Attributes:
        unknown: id of a word that is not made of pieces.
        max_chars: a longer word is unknown.
        prefix: of a piece that does not begin a word.
        vocabulary: piece -> id.
    """

    unknown: int
    max_chars: int
    prefix: str
    vocabulary: dict[str, int]
    known: dict[str, list[int]] = field(default_factory=dict, repr=False)

    def ids(self, word: str) -> list[int]:
        """Of one word."""
        found = self.known.get(word)
        if found is None:
            found = self.known[word] = self._pieces(word)
        return found

    def _pieces(self, word: str) -> list[int]:
        ids, start = [], 0
        if len(word) > self.max_chars:
            return [self.unknown]
        while start < len(word):
            before = self.prefix if start else ""
            for end in range(len(word), start, -1):
                number = self.vocabulary.get(before + word[start:end])
                if number is not None:
                    break
            else:
                return [self.unknown]
            ids.append(number)
            start = end
        return ids


@dataclass(frozen=True)
class Bpe:
    """Byte-level BPE: of two neighbours those that were merged first in training, the left ones first.

    Attributes:
        letters: id of each byte.
        merges: two ids -> rank, id of both.
        add_prefix_space: whether a text begins with a blank that it does not have.
    """

    letters: list[int]
    merges: dict[tuple[int, int], tuple[int, int]]
    add_prefix_space: bool
    known: dict[str, list[int]] = field(default_factory=dict, repr=False)

    def ids(self, word: str) -> list[int]:
        """Of one word."""
        found = self.known.get(word)
        if found is None:
            found = self.known[word] = self._merged(word)
        return found

    def _merged(self, word: str) -> list[int]:
        ids = [self.letters[byte] for byte in word.encode("utf-8")]
        while True:
            ranks = [(*self.merges[pair], at) for at, pair in enumerate(itertools.pairwise(ids)) if pair in self.merges]
            if not ranks:
                return ids
            _, merged, at = min(ranks, key=lambda each: (each[0], each[2]))
            ids[at : at + 2] = [merged]


@dataclass(frozen=True)
class Rules:
    """A tokenizer.

    Attributes:
        model: what makes ids of a word.
        splits: code point -> class, as `splits_of` or `classes_of` says.
        transforms: code point -> what the normalizer makes of it.
        orders: code point of a combining mark -> its class.
        barriers: code points that are left out only after marks were put in order.
        added: tokens that are found in the text itself.
        before: ids before those of each text.
        after: ids after them.
    """

    model: WordPiece | Bpe
    splits: dict[int, int]
    transforms: dict[int, str] = field(default_factory=dict)
    orders: dict[int, int] = field(default_factory=dict)
    barriers: set[int] = field(default_factory=set)
    added: list[Added] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)

    @cached_property
    def _marks(self) -> re.Pattern[str] | None:
        marks = "".join(f"\\U{code:08x}" for code in self.orders)
        return re.compile(f"[{marks}]{{2,}}") if marks else None

    @cached_property
    def _translation(self) -> dict[int, str]:
        return {**self.transforms, **dict.fromkeys(self.barriers, _BARRIER)}

    @cached_property
    def _words(self) -> dict[int, str]:
        return {code: " " if number == 1 else f" {chr(code)} " for code, number in self.splits.items()}

    @cached_property
    def _rule(self) -> re.Pattern[str]:
        blank, letter, digit = (
            "".join(
                f"\\U{first:08x}-\\U{last:08x}" for first, last, number in ranges_of(self.splits) if number == wanted
            )
            for wanted in (1, 2, 3)
        )
        return re.compile(
            f"'s|'t|'re|'ve|'m|'ll|'d| ?[{letter}]+| ?[{digit}]+| ?[^{blank}{letter}{digit}]+|[{blank}]+(?![^{blank}])|[{blank}]+"
        )

    @cached_property
    def _first(self) -> re.Pattern[str] | None:
        return _any_of(self.added, normalized=False)

    @cached_property
    def _second(self) -> re.Pattern[str] | None:
        return _any_of(self.added, normalized=True)

    def normalized(self, text: str) -> str:
        """What the normalizer makes of a text."""
        text = text.translate(self._translation) if self.transforms else text
        if self._marks is not None:
            text = self._marks.sub(lambda run: "".join(sorted(run[0], key=lambda mark: self.orders[ord(mark)])), text)
        return text.replace(_BARRIER, "") if self.barriers else text

    def words(self, text: str) -> list[str]:
        """The words of a normalized text."""
        if isinstance(self.model, WordPiece):
            return [word for word in text.translate(self._words).split(" ") if word]
        if self.model.add_prefix_space and not text.startswith(" "):
            text = " " + text
        return self._rule.findall(text)


def encode(rules: Rules, text: str, limit: int, side: str) -> list[int]:
    """The ids of a text.

    Args:
        rules: of the tokenizer.
        text: without surrogates.
        limit: ids at most, those around the text included.
        side: "left" or "right", where a longer text loses ids.
    """
    ids: list[int] = []
    for number, part in _cut(text, rules._first, rules.added, False):
        if number is not None:
            ids.append(number)
            continue
        for inner, rest in _cut(rules.normalized(part), rules._second, rules.added, True):
            if inner is not None:
                ids.append(inner)
            elif rest:
                for word in rules.words(rest):
                    ids += rules.model.ids(word)
    room = limit - len(rules.before) - len(rules.after)
    if len(ids) > room:
        ids = ids[:room] if side == "right" else ids[len(ids) - room :]
    return [*rules.before, *ids, *rules.after]


def _any_of(added: list[Added], *, normalized: bool) -> re.Pattern[str] | None:
    texts = sorted((token.text for token in added if token.normalized == normalized), key=lambda t: -len(t.encode()))
    return re.compile("|".join(map(re.escape, texts))) if texts else None


def _cut(
    text: str, pattern: re.Pattern[str] | None, added: list[Added], normalized: bool
) -> list[tuple[int | None, str]]:
    """A text at its added tokens: their ids, and what stands between."""
    if pattern is None or not text:
        return [(None, text)]
    tokens = {token.text: token for token in added if token.normalized == normalized}
    parts: list[tuple[int | None, str]] = []
    done = 0
    for match in pattern.finditer(text):
        token, (start, end) = tokens[match[0]], match.span()
        if token.lstrip:
            start = max(done, len(re.sub(f"[{_BLANKS}]+$", "", text[:start])))
        if token.rstrip:
            end += len(text[end:]) - len(re.sub(f"^[{_BLANKS}]+", "", text[end:]))
        if done < start:
            parts.append((None, text[done:start]))
        parts.append((token.id, ""))
        done = end
    if done != len(text):
        parts.append((None, text[done:]))
    return parts
