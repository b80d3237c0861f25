"""The journal is flushed every few seconds, whatever a chunk takes; what is in it is not computed again."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embed_support import HIDDEN, TEXTS, Stop, hidden, interrupt

from mra_export.bundle.manifest import read_bundle
from mra_export.embedding import run as run_module
from mra_export.embedding.encoder import Encoder
from mra_export.embedding.input import scan
from mra_export.embedding.journal import partial_path
from mra_export.embedding.pieces import Cut
from mra_export.embedding.run import Interrupted, embed
from mra_export.embedding.work import FLUSH_SECONDS, Part, Worker, _held


def clock(*seconds: float) -> Callable[[], float]:
    """A clock that goes on by so many seconds each time it is read, over and over."""
    state = {"now": 0.0, "read": 0}

    def read() -> float:
        state["now"] += seconds[int(state["read"]) % len(seconds)]
        state["read"] += 1
        return state["now"]

    return read


class Batch:
    rows = (0, 1)


@pytest.mark.parametrize(
    ("seconds", "sizes"),
    [
        ([1.0] * 12, [5, 5, 2]),
        ([0.1] * 30, [30]),
        ([4.0] * 3, [1, 1, 1]),
        ([9.0] * 3, [1, 1, 1]),  # a batch that takes longer is alone
        ([0.5, 4.0, 0.5, 0.5], [2, 2]),
    ],
)
def test_batches_are_flushed_before_five_seconds_are_over(seconds: list[float], sizes: list[int]) -> None:
    now = [0.0]

    def batches() -> Any:
        for each in seconds:
            now[0] += each
            yield Batch()

    told: list[int] = []
    flushed = []
    for held in _held(batches(), lambda: now[0], 0.0, told.append):  # type: ignore[arg-type]
        flushed.append((now[0], len(held)))
    assert [size for _, size in flushed] == sizes
    assert told == [2] * len(seconds)
    times = [0.0, *(time for time, _ in flushed)]
    for before, after, size in zip(times, times[1:], sizes, strict=False):
        assert after - before <= FLUSH_SECONDS or size == 1


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch takes three seconds by the clock."""
    monkeypatch.setattr(run_module, "Worker", functools.partial(Worker, clock=clock(3.0)))


def records(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (partial_path(output) / "journal.jsonl").read_text().splitlines()]


class StopAfter(Stop):
    """Stops when so many parts are written."""

    def advance(self, rows: int, size: int) -> None:
        self.done += rows == 0
        if self.done == self.chunks:
            self.done = -1_000_000
            self.action()


def test_a_kill_in_the_midst_of_a_chunk_costs_no_more_than_a_few_batches(
    slow: None, bundle: Path, lines: Path, expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "o.npy"
    options: dict[str, Any] = {"batch_tokens": 256, "threads": 1}
    with pytest.raises(Interrupted, match=r"Interrupted; \d+ of 300 rows are kept") as caught:
        embed(bundle, lines, output, watcher=StopAfter(4, interrupt), **options)  # all is one chunk
    found = records(output)
    assert [record["chunk"] for record in found] == [0] * len(found)
    assert len(found) >= 4
    kept = [place for record in found for place in record["places"]]
    assert len(kept) == len(set(kept)) < 300
    assert f"{len(kept)} of 300" in str(caught.value)
    ran: list[int] = []
    run = Encoder._run

    def count(self: Encoder, inputs: dict[str, Any]) -> Any:
        ran.append(len(inputs["input_ids"]))
        return run(self, inputs)

    monkeypatch.setattr(Encoder, "_run", count)
    result = embed(bundle, lines, output, **options)
    assert (result.resumed_rows, sum(ran)) == (len(kept), 300 - len(kept))
    assert output.read_bytes() == expected
    # The counts are of all rows, those of the first run too.
    again = embed(bundle, lines, tmp_path / "whole.npy", **options)
    assert (again.tokens, again.computed_tokens, again.truncated) == (
        result.tokens, result.computed_tokens, result.truncated,
    )  # fmt: skip
    assert not hidden(tmp_path)


def test_rows_of_a_chunk_whose_checksum_is_wrong_are_computed_again(
    slow: None, bundle: Path, lines: Path, expected: bytes, tmp_path: Path
) -> None:
    output = tmp_path / "o.npy"
    options: dict[str, Any] = {"batch_tokens": 256, "threads": 1}
    with pytest.raises(Interrupted):
        embed(bundle, lines, output, watcher=StopAfter(4, interrupt), **options)
    found = records(output)
    spoiled = found[1]
    journal = partial_path(output) / "journal.jsonl"
    with journal.open("a") as file:
        # Said twice, of places that are not there, and of a chunk in another place.
        for changes in ({}, {"places": [299, 300]}, {"places": [5, -1]}, {"at": 3}, {"of": 299}, {"places": []}):
            file.write(json.dumps({**found[0], **changes}) + "\n")
    with (partial_path(output) / "vectors.npy").open("r+b") as file:
        file.seek(len(expected) - 300 * HIDDEN * 4 + spoiled["places"][-1] * HIDDEN * 4)
        file.write(b"\x01\x02")
    kept = sum(len(record["places"]) for record in found) - len(spoiled["places"])
    assert embed(bundle, lines, output, **options).resumed_rows == kept
    assert output.read_bytes() == expected


def test_parts_that_come_twice_or_overlap_are_written_once(
    bundle: Path, lines: Path, expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a worker of Ray makes them that is killed and begins anew; what does not come at all is asked for again."""
    parts = Worker.parts
    asked: list[tuple[int, int]] = []

    def again(self: Worker, chunk: Any, done: Any = (), advance: Any = None) -> Any:
        asked.append((chunk.index, len(done)))
        (part,) = parts(self, chunk)
        rows = [part.places, part.facts, part.vectors, part.lengths, part.widths, part.cut]
        for first, last in ((0, 9), (5, 15), (0, 9), (2, 4)):
            yield Part(part.chunk, part.of, *(each[first:last] for each in rows))
        if len(done):
            yield part

    monkeypatch.setattr(run_module.Worker, "parts", again)
    result = embed(bundle, lines, tmp_path / "o.npy", chunk_rows=20, threads=1)
    assert (tmp_path / "o.npy").read_bytes() == expected
    assert asked == [(index, done) for done in (0, 15) for index in range(15)]
    assert result.tokens == sum(min(96, len(text.split()) + 2) for text in TEXTS)


def test_work_that_gets_no_further_is_a_bug(
    bundle: Path, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module.Worker, "parts", lambda *_: iter(()))
    with pytest.raises(AssertionError, match=r"chunks \[0, 1, 2, 3, 4\] were not computed"):
        embed(bundle, lines, tmp_path / "o.npy", chunk_rows=20)


def test_pieces_go_on_in_the_midst_of_a_chunk(slow: None, bundle: Path, lines: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"chunk": 20, "overlap": 5, "batch_tokens": 256, "threads": 1, "output_type": "int8"}
    whole = embed(bundle, lines, tmp_path / "whole.npy", **options)
    output = tmp_path / "o.npy"
    resumed = 0
    for chunks in (3, 4):
        with pytest.raises(Interrupted, match=r"\d+ vectors are kept"):
            embed(bundle, lines, output, chunk_rows=100, watcher=StopAfter(chunks, interrupt), **options)
        kept = sum(len(record["places"] or range(record["of"])) for record in records(output))
        assert kept > resumed
        resumed = kept
    result = embed(bundle, lines, output, chunk_rows=100, **options)
    assert (result.resumed_rows, result.rows, result.tokens) == (resumed, whole.rows, whole.tokens)
    for name in ("{}.npy", "{}.rows.npy"):
        assert (tmp_path / name.format("o")).read_bytes() == (tmp_path / name.format("whole")).read_bytes()


def test_chunks_that_come_in_any_order_are_brought_into_theirs(
    bundle: Path, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"chunk": 20, "chunk_rows": 30}
    embed(bundle, lines, tmp_path / "whole.npy", **options)
    local = run_module._local_parts

    def shuffled(job: Any, partial: Any, pending: list[Any], watcher: Any) -> Any:
        yield from local(job, partial, pending[::-1][3:] + pending[-3:], watcher)

    monkeypatch.setattr(run_module, "_local_parts", shuffled)
    embed(bundle, lines, tmp_path / "o.npy", **options)
    for name in ("{}.npy", "{}.rows.npy"):
        assert (tmp_path / name.format("o")).read_bytes() == (tmp_path / name.format("whole")).read_bytes()


def test_the_window_of_a_chunk_counts_special_tokens(bundle: Path, lines: Path) -> None:
    encoder = Encoder(read_bundle(bundle), threads=1)
    source = scan(lines)
    (part,) = Worker(encoder, source, Cut(12, 2)).parts(source.chunks[0])
    assert part.lengths.max() == 12
    assert part.of == len(part.places) > 300
    assert np.array_equal(part.places, np.arange(part.of))
    assert encoder.tokenizer.truncation["max_length"] == 96  # as before
