"""Asks the parts of a tokenizer what they do with every code point."""

from __future__ import annotations

import functools
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["classes_of", "orders_of", "ranges_of", "splits_of", "transforms_of"]

_CHUNK = 256
_SURROGATES = range(0xD800, 0xE000)


def _marks() -> list[str]:
    return [char for char in map(chr, range(0x110000)) if unicodedata.combining(char)]


def _chunks() -> Iterator[list[str]]:
    for start in range(0, 0x110000, _CHUNK):
        if start not in _SURROGATES:
            yield [chr(code) for code in range(start, start + _CHUNK)]


def transforms_of(normalizer: Any) -> dict[int, str]:
    """What a normalizer makes of each code point that does not stay as it is.

    Args:
        normalizer: of the tokenizers library, one that makes of each character the same wherever it stands.
    """
    changed = {}
    for chars in _chunks():
        whole = normalizer.normalize_str("".join(chars))
        if whole == "".join(chars):
            continue
        became = [""] * len(chars) if whole == "" else normalizer.normalize_str(",".join(chars)).split(",")
        if len(became) != len(chars):  # commas are among them, or become some
            became = [normalizer.normalize_str(char) for char in chars]
        changed.update({ord(char): new for char, new in zip(chars, became, strict=True) if char != new})
    return changed


def orders_of(normalizer: Any, transforms: dict[int, str]) -> tuple[dict[int, int], set[int]]:
    """In which order a normalizer puts combining marks that it leaves.

    Args:
        normalizer: of the tokenizers library.
        transforms: from `transforms_of`.

    Returns:
        A class of 1 or more for each mark: neighbours are sorted by it, and those without one are not moved. And the code points
        of which nothing is left, but across which marks are not sorted.
    """
    ask = normalizer.normalize_str

    def compare(one: str, other: str) -> int:
        if ask(one + other) != one + other:
            return 1
        return -1 if ask(other + one) != other + one else 0

    by_class: dict[int, list[str]] = {}
    for mark in _marks():
        if ord(mark) not in transforms:
            by_class.setdefault(unicodedata.combining(mark), []).append(mark)
    # The normalizer may be of another release of Unicode: which marks it moves is asked, only where to begin is taken from Python.
    some = [mark for many in by_class.values() for mark in many[:3]]
    moved = sorted(
        (one for one in some if any(compare(one, other) for other in some)), key=functools.cmp_to_key(compare)
    )
    if not moved:
        return {}, set()  # it puts nothing in order, or all marks that come through are of one class
    low, high = moved[0], moved[-1]
    found = []
    for chars in _chunks():
        staying = [char for char in chars if ord(char) not in transforms]
        # A mark between these two is sorted among them; anything else keeps them apart, as they are.
        if ask("".join(f"{high}{char}{low}" for char in staying)) == "".join(f"{high}{char}{low}" for char in staying):
            continue
        found += [char for char in staying if ask(high + char + low) != high + char + low]
    marks = sorted(sorted({*found, high, low}), key=functools.cmp_to_key(compare))
    orders, number = {}, 0
    for index, mark in enumerate(marks):
        number += index == 0 or compare(marks[index - 1], mark) != 0
        orders[ord(mark)] = number
    dropped = [code for code, became in transforms.items() if not became]
    barriers = {code for code in dropped if ask(high + chr(code) + low) != low + high}
    return orders, barriers


def splits_of(pre_tokenizer: Any) -> dict[int, int]:
    """At which code points a pre-tokenizer splits a word: 1 where they are left out, 2 where they are a word of their own."""
    ask = pre_tokenizer.pre_tokenize_str
    found = {}
    for chars in _chunks():
        word = f"a{''.join(chars)}b"
        if [piece for piece, _ in ask(word)] == [word]:
            continue
        for char in chars:
            pieces = [piece for piece, _ in ask(f"a{char}b")]
            if pieces != [f"a{char}b"]:
                found[ord(char)] = 2 if pieces == ["a", char, "b"] else 1
    return found


def classes_of(pre_tokenizer: Any) -> dict[int, int]:
    """The class of each code point for GPT-2's rule: 1 a blank, 2 a letter, 3 a digit; none for all else."""
    ask = pre_tokenizer.pre_tokenize_str

    def of(text: str) -> int | None:
        """The class of all these characters, None where they are of several."""
        for number, other in ((0, "!"), (2, "a"), (3, "1")):
            if len(ask(other + text)) == 1:
                return number
        return 1 if len(ask(text)) == 1 else None

    found = {}
    for chars in _chunks():
        whole = of("".join(chars))
        for char in chars:
            number = whole if whole is not None else of(char)
            if number:
                found[ord(char)] = number
    return found


def ranges_of(numbers: dict[int, int]) -> list[tuple[int, int, int]]:
    """Code points with the same number, one after the other: first, last, number."""
    ranges: list[tuple[int, int, int]] = []
    for code, number in sorted(numbers.items()):
        if ranges and ranges[-1][1] == code - 1 and ranges[-1][2] == number:
            ranges[-1] = (ranges[-1][0], code, number)
        else:
            ranges.append((code, code, number))
    return ranges
