"""Bytes that are not UTF-8: what they are instead, and how they are converted."""

from __future__ import annotations

import unicodedata

__all__ = ["HEAD_BYTES", "encoding_of", "not_utf8", "other_encoding"]

HEAD_BYTES = 64 << 10
"""From the beginning of a file, enough to tell its encoding."""

_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
"""Byte-order marks; with one, iconv needs no order."""


def encoding_of(head: bytes) -> str | None:
    """The encoding's name for iconv, where the beginning of a file shows that it is not UTF-8 but UTF-16 or UTF-32.

    Without a byte-order mark there have to be zero bytes, as spaces, line feeds and ASCII letters have them in UTF-16, and what is
    decoded so must be characters, no control codes.

    Args:
        head: the first bytes, unpacked.
    """
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if b"\0" not in head:
        return None
    found: dict[str, int] = {}
    for name, width, upper in (("UTF-32LE", 4, 3), ("UTF-32BE", 4, 0), ("UTF-16LE", 2, 1), ("UTF-16BE", 2, 0)):
        whole = head[: len(head) // width * width]
        if not whole or not _fits(whole, width, upper):
            continue
        text = whole.decode(name, errors="replace")
        text = text[:-1] if len(head) >= HEAD_BYTES else text  # which may be half a pair
        if "\ufffd" not in text and "\ufeff" not in text and not any(map(_is_odd, text)):
            found[name] = sum(map(str.isascii, text)) * width
    return max(found, key=lambda name: found[name]) if found else None


def _fits(data: bytes, width: int, upper: int) -> bool:
    """Whether the upper bytes are such as that encoding has."""
    high = data[upper::width]
    if width == 4:
        return not any(high)
    try:
        data[: len(data) - 3 if len(data) >= HEAD_BYTES else None].decode("utf-8")
    except UnicodeDecodeError:
        # Ideographs have any bytes; of a text in another encoding of bytes, with some zeros in it, most pairs are letters.
        pairs = sum(32 <= one < 127 and 32 <= other < 127 for one, other in zip(data[::2], data[1::2], strict=True))
        return pairs <= len(high) // 2
    # Alphabets have small numbers, and of UTF-8 with a zero byte here and there most bytes at these places are letters.
    return sum(value < 32 for value in high) > 0.6 * len(high)


def _is_odd(character: str) -> bool:
    """Control codes, unassigned and private characters: hardly anything that people write."""
    return character not in "\t\n\r\f\x0b" and unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs")


def other_encoding(name: str, encoding: str) -> str:
    """The message for a file in another encoding.

    Args:
        name: of the file.
        encoding: what `encoding_of` says.
    """
    return f"{name} is {encoding}, not UTF-8. Convert it: `iconv -f {encoding} -t UTF-8`."


def not_utf8(where: str, error: UnicodeDecodeError, head: bytes) -> str:
    """The message for bytes that are not UTF-8.

    Args:
        where: file and row.
        error: of the decoder.
        head: the first bytes of the file.
    """
    encoding = encoding_of(head)
    found = f"{where} is not UTF-8: byte 0x{error.object[error.start]:02x} at byte {error.start}."
    if encoding is not None:
        return f"{found} The file is {encoding}; convert it: `iconv -f {encoding} -t UTF-8`."
    if sum(value < 32 and value not in b"\t\n\v\f\r\x1b" for value in head) > len(head) // 50:
        return f"{found} The file looks like no text at all; is it the right one?"
    if _is_western(error.object + head):
        return f"{found} Convert the file, for example with `iconv -f WINDOWS-1252 -t UTF-8`."
    return (
        f"{found} Convert the file from what it is in, which may be WINDOWS-1251 (Cyrillic), GB18030 (Chinese), SHIFT_JIS "
        "(Japanese) or another: `iconv -f ENCODING -t UTF-8`."
    )


def _is_western(data: bytes) -> bool:
    """Whether most letters are those of ASCII, as in the languages that WINDOWS-1252 is for."""
    letters = sum(value | 32 in range(97, 123) for value in data if value < 128)
    others = sum(value >= 128 for value in data)
    return others < letters
