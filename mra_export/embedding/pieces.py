"""Long texts cut into pieces of so many tokens, an alternative to cutting off what is too long.

A piece is `text[begin:end]`, and its vector is that of this very string: what a tokenizer makes of a piece alone may differ from
its tokens within the text, so each piece is tokenized again, and made shorter if it has become too long. Pieces begin and end at
words (as the tokenizer divides the text into words) where a word is not longer than a piece.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mra_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Cut", "Piece", "check_cut", "cut_text"]


@dataclass(frozen=True)
class Cut:
    """How texts are cut.

    Attributes:
        tokens: of a piece at most, special tokens included.
        overlap: tokens at most that a piece has in common with the one before; as many as whole words allow.
    """

    tokens: int
    overlap: int = 0


@dataclass(frozen=True)
class Piece:
    """Characters `begin` to `end` of a text."""

    begin: int
    end: int


def check_cut(cut: Cut, special: int, max_length: int) -> None:
    """Refuses lengths that do not work.

    Args:
        cut: the lengths.
        special: tokens that each piece has beside its own: special ones, and those of the prompt.
        max_length: of the bundle's tokenizer.

    Raises:
        InputError: that.
    """
    if cut.tokens > max_length:
        raise InputError(f"--chunk {cut.tokens} is more than the bundle's tokenizer allows, {max_length} tokens.")
    if cut.tokens <= special:
        raise InputError(
            f"--chunk {cut.tokens} leaves no room for text: {special} tokens of each chunk are special ones, or the prompt's."
        )
    if cut.overlap >= cut.tokens - special:
        raise InputError(
            f"--overlap {cut.overlap} must be less than {cut.tokens - special}, the tokens of a chunk without its {special} "
            "special ones."
        )


def cut_text(
    text: str, encoding: Any, cut: Cut, special: int, measure: Callable[[Sequence[str]], list[int]]
) -> list[Piece]:
    """The pieces of a text, in order; one for a text that is short enough or empty.

    Args:
        text: the whole.
        encoding: its tokens (`tokenizers.Encoding`) without special ones and without truncation.
        cut: the lengths.
        special: tokens that each piece has beside its own.
        measure: tokens of strings, special ones included, without truncation.
    """
    offsets = encoding.offsets
    window = cut.tokens - special
    if len(offsets) <= window:
        return [Piece(0, len(text))]
    words = encoding.word_ids
    starts = [i for i, word in enumerate(words) if i == 0 or word is None or word != words[i - 1]]
    pieces: list[Piece] = []
    begin = 0
    while True:
        planned = _plan(len(offsets), starts, begin, window, cut.overlap)
        spans = [_characters(offsets, *span) for span in planned]
        lengths = measure([text[piece.begin : piece.end] for piece in spans])
        bad = next((i for i, length in enumerate(lengths) if length > cut.tokens), None)
        if bad is None:
            return pieces + spans
        pieces += spans[:bad]
        first, last = planned[bad]
        length = lengths[bad]
        while length > cut.tokens and last > first + 1:
            last = _snap_down(starts, first, max(first + 1, last - (length - cut.tokens)))
            piece = _characters(offsets, first, last)
            (length,) = measure([text[piece.begin : piece.end]])
        pieces.append(_characters(offsets, first, last))
        if last == len(offsets):
            return pieces
        begin = _next(starts, first, last, cut.overlap)


def _plan(count: int, starts: list[int], begin: int, window: int, overlap: int) -> list[tuple[int, int]]:
    """First and last (excluded) token of each piece, from token `begin` on."""
    planned = []
    while True:
        end = min(begin + window, count)
        if end < count:
            end = _snap_down(starts, begin, end)
        planned.append((begin, end))
        if end == count:
            return planned
        begin = _next(starts, begin, end, overlap)


def _snap_down(starts: list[int], begin: int, end: int) -> int:
    """The last beginning of a word up to `end`; `end` itself where that would leave nothing."""
    start = starts[bisect_right(starts, end) - 1]
    return start if start > begin else end


def _next(starts: list[int], begin: int, end: int, overlap: int) -> int:
    """Where the piece after (begin, end) begins."""
    least = max(end - overlap, begin + 1)
    place = bisect_left(starts, least)
    return starts[place] if place < len(starts) and starts[place] <= end else least


def _characters(offsets: list[tuple[int, int]], first: int, last: int) -> Piece:
    """Tokens as characters; a token of no characters, as some tokenizers add them, says nothing."""
    spans = [(begin, end) for begin, end in offsets[first:last] if end > begin]
    if not spans:
        return Piece(offsets[first][0], offsets[first][0])
    return Piece(min(begin for begin, _ in spans), max(end for _, end in spans))
