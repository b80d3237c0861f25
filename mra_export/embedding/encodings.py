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

    Without a byte-order mark the zero bytes tell: in UTF-16 they are the upper halves of spaces, line feeds and ASCII letters,
    all at odd places (LE) or all at even ones (BE), and what is decoded so are characters, no control codes.

    Args:
        head: the first bytes, unpacked.
    """
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if b"\0" not in head:
        return None
    for name, width, zeros, others in (
        ("UTF-32LE", 4, (3,), (0, 1, 2)),
        ("UTF-32BE", 4, (0,), (1, 2, 3)),
        ("UTF-16LE", 2, (1,), (0,)),
        ("UTF-16BE", 2, (0,), (1,)),
    ):
        whole = head[: len(head) // width * width]
        if not whole or not _fits(whole, width, zeros[0], others):
            continue
        text = whole.decode(name, errors="ignore" if len(head) >= HEAD_BYTES else "replace")
        if "\ufffd" not in text and not any(map(_is_odd, text)):
            return name
    return None


def _fits(data: bytes, width: int, upper: int, lower: tuple[int, ...]) -> bool:
    """Whether zero bytes stand where that encoding puts them."""
    high = data[upper::width]
    if width == 4:
        return not any(high)
    if 0 in data[lower[0] :: width]:
        return False
    # Of UTF-8 with a zero byte here and there most bytes at these places are letters; of UTF-16 they are zeros, and the pages of
    # scripts: small numbers for all alphabets. Ideographs have large ones, but their bytes are no UTF-8.
    return sum(value < 32 for value in high) > 0.6 * len(high) or not _is_utf8(data)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(data) - 4 and error.reason == "unexpected end of data"
    return True


def _is_odd(character: str) -> bool:
    """Control codes, unassigned and private characters: hardly anything that people write."""
    return character not in "\t\n\r\f\x0b\ufeff" and unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs")


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
    return f"{found} Convert the file, for example with `iconv -f WINDOWS-1252 -t UTF-8`."
