"""Chunks of an input to parts of the output, each of a few seconds: what the local engine and the workers of Ray do."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.embedding.encoder import Encoder
from mra_export.embedding.input import ChunkReader
from mra_export.embedding.pieces import Cut, check_cut, cut_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from mra_export.embedding.chunks import Chunk, Source
    from mra_export.embedding.encoder import EncodedBatch

__all__ = ["FLUSH_SECONDS", "Part", "Worker", "joined"]

FLUSH_SECONDS = 5.0
"""Between two flushes of the journal at most, as far as one batch does not take longer: what a kill costs."""
CUT_CHARACTERS = 1 << 18
"""Of the texts that are tokenized in one call to be cut: with the places of its tokens a text takes a hundred times its size."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Part:
    """Some rows of the output, all of one chunk.

    Attributes:
        chunk: its index.
        of: rows of the output that the whole chunk has.
        places: which of them these are, int64 [rows].
        facts: of each: row of the input, and of a piece its number in the text, its begin and its end, int64 [rows, 4].
        vectors: float32 [rows, dimension].
        lengths: tokens, int64 [rows].
        widths: tokens that the model ran, int64 [rows].
        cut: whether something was cut off, bool [rows].
    """

    chunk: int
    of: int
    places: Array
    facts: Array
    vectors: Array
    lengths: Array
    widths: Array
    cut: Array

    def without(self, done: Collection[int]) -> Part:
        """The rows that are not done."""
        keep = np.array([int(place) not in done for place in self.places], dtype=bool)
        if keep.all():
            return self
        rows = (self.places, self.facts, self.vectors, self.lengths, self.widths, self.cut)
        return Part(self.chunk, self.of, *(each[keep] for each in rows))


class Worker:
    """An encoder and a reader of the input.

    Args:
        encoder: of the bundle.
        source: the input.
        cut: how texts are cut; None for not at all.
        clock: seconds.
    """

    def __init__(
        self, encoder: Encoder, source: Source, cut: Cut | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._encoder, self._cut, self._clock = encoder, cut, clock
        self._reader = ChunkReader(source)
        self._special = 0
        if cut is not None:
            with encoder.whole_texts():
                self._special = self._measure([""])[0]
            check_cut(cut, self._special, encoder.max_length)

    def parts(
        self, chunk: Chunk, done: Collection[int] = (), advance: Callable[[int], None] = lambda texts: None
    ) -> Iterator[Part]:
        """A chunk's rows of the output, so many at a time as take some seconds, but for those that are done.

        Args:
            chunk: of the input.
            done: places of rows that an earlier run left.
            advance: called after each batch with its number of texts.
        """
        begun = self._clock()
        rows, texts = self._reader.read(chunk)
        facts = np.zeros((len(texts), 4), np.int64)
        facts[:, 0] = rows
        facts[:, 3] = [len(text) for text in texts]
        if self._cut is not None:
            texts, facts = self._pieces(texts, rows, self._cut)
        batches = self._encoder.batches(texts, done)
        for held in _held(batches, self._clock, begun, advance):
            yield joined(chunk.index, len(texts), held, facts)

    def _pieces(self, texts: Sequence[str], rows: Sequence[int], cut: Cut) -> tuple[list[str], Array]:
        found: list[str] = []
        facts: list[tuple[int, int, int, int]] = []
        with self._encoder.whole_texts():
            for group in _groups(texts):
                whole = [texts[place] for place in group]
                encodings = self._encoder.tokenizer.encode_batch(whole, add_special_tokens=False)
                for place, text, encoding in zip(group, whole, encodings, strict=True):
                    pieces = cut_text(text, encoding, cut, self._special, self._measure)
                    found += [text[piece.begin : piece.end] for piece in pieces]
                    facts += [(rows[place], number, each.begin, each.end) for number, each in enumerate(pieces)]
        return found, np.array(facts, np.int64).reshape(-1, 4)

    def _measure(self, texts: Sequence[str]) -> list[int]:
        prompted = [self._encoder.options.prompt + text for text in texts]
        return [len(encoding.ids) for encoding in self._encoder.tokenizer.encode_batch_fast(prompted)]


def _groups(texts: Sequence[str]) -> Iterator[list[int]]:
    held: list[int] = []
    size = 0
    for place, text in enumerate(texts):
        if held and size + len(text) > CUT_CHARACTERS:
            yield held
            held, size = [], 0
        held.append(place)
        size += len(text)
    if held:
        yield held


def _held(
    batches: Iterable[EncodedBatch], clock: Callable[[], float], begun: float, advance: Callable[[int], None]
) -> Iterator[list[EncodedBatch]]:
    """Batches in groups: one ends where another batch like the last would make more than `FLUSH_SECONDS`."""
    held: list[EncodedBatch] = []
    before = begun
    for batch in batches:
        held.append(batch)
        advance(len(batch.rows))
        now = clock()
        if now - begun + (now - before) > FLUSH_SECONDS:
            yield held
            held, begun = [], clock()
            now = begun
        before = now
    if held:
        yield held


def joined(chunk: int, of: int, batches: Sequence[EncodedBatch], facts: Array) -> Part:
    """Batches of a chunk as one part, their rows in order."""
    places = np.concatenate([batch.rows for batch in batches])
    order = np.argsort(places)
    return Part(
        chunk,
        of,
        places[order],
        facts[places[order]],
        np.concatenate([batch.vectors for batch in batches])[order],
        np.concatenate([batch.lengths for batch in batches])[order],
        np.concatenate([np.full(len(batch.rows), batch.width) for batch in batches])[order],
        np.concatenate([batch.cut for batch in batches])[order],
    )
