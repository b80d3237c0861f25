"""The partial directory of an output by itself: what is kept where, in which order, and what a later run finds of it."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mra_export.embedding import journal as module
from mra_export.embedding.chunks import Chunk, InputFile, Source
from mra_export.embedding.journal import Partial, partial_path, rows_kept, sync_directory
from mra_export.embedding.layout import Layout
from mra_export.embedding.work import Part
from mra_export.errors import InputError

FILE = InputFile(Path("/t.txt"), "t.txt", "txt", bytes=12, sha256="a" * 64)
SOURCE = Source((FILE,), None, "error", False, 10, 10, 0, tuple(
    Chunk(index, first, rows, 0, first, 0, 0, 0) for index, (first, rows) in enumerate([(0, 4), (4, 4), (8, 2)])
))  # fmt: skip
PLAIN = Layout(3)


def part(chunk: int, of: int, *places: int) -> Part:
    """Rows whose numbers tell where they are from; all of them, or some."""
    own = np.array(places or range(of))
    numbers = 10 * chunk + own
    facts = np.stack([numbers, own, 100 + numbers, 200 + numbers], axis=1)
    vectors = numbers[:, None] + np.array([0.0, 0.25, -200.0])
    return Part(chunk, of, own, facts, vectors.astype(np.float32), own + 1, own + 5, own % 2 == 1)


def opened(
    folder: Path, layout: Layout = PLAIN, source: Source = SOURCE, *, force: bool = False, **settings: Any
) -> Any:
    return Partial.open(folder / "o.npy", source, layout, settings, force=force)


def shown(partial: Partial, rows: int) -> list[list[int]]:
    """The numbers of the rows of each block."""
    return [np.rint(vectors[:, 0]).astype(int).tolist() for vectors, _ in partial.blocks(rows)]


def test_rows_are_kept_where_the_output_has_them(tmp_path: Path) -> None:
    output = tmp_path / "o.npy"
    with opened(tmp_path) as partial:
        assert partial.path == tmp_path / ".o.npy.partial" == partial_path(output)
        assert (partial.path / "lock").stat().st_mode & 0o133 == 0  # whatever the umask
        assert (partial.path / "vectors.npy").stat().st_size == 128 + 10 * 12  # the space is taken at once
        assert (partial.rows, partial.found, partial.fresh, partial.published) == (0, 0, True, False)
        assert partial.write(part(1, 4)) == 4
        assert partial.write(part(0, 4, 0, 2, 3)) == 3
        assert (partial.is_done(0), partial.done(0), partial.is_done(1), partial.done(1)) == (
            False,
            {0, 2, 3},
            True,
            set(),
        )
        assert (partial.rows, partial.truncated, partial.tokens, partial.computed) == (7, 3, 10 + 8, 26 + 20)
        assert rows_kept(output, SOURCE) == 7
    with opened(tmp_path) as partial:
        assert (partial.rows, partial.found, partial.fresh, partial.done(0)) == (7, 7, False, {0, 2, 3})
        assert (partial.truncated, partial.tokens, partial.computed) == (3, 18, 46)
        assert partial.write(part(1, 4)) == 0
        assert partial.write(part(0, 4)) == 1
        assert (partial.rows, partial.tokens, partial.is_done(0)) == (8, 20, True)
        assert partial.write(part(2, 2)) == 2
        assert (partial.rows, partial.found) == (10, 7)
        numbers = [0, 1, 2, 3, 10, 11, 12, 13, 20, 21]
        assert shown(partial, 3) == [numbers[:3], numbers[3:6], numbers[6:9], numbers[9:]]
        assert shown(partial, 5) == [numbers[:5], numbers[5:]]
        assert shown(partial, 99) == [numbers]
        files = partial.finish(4)
        assert files == [(partial.path / "vectors.npy", output)]
        partial.publish(files)
        assert partial.published
    expected = np.array(numbers)[:, None] + np.array([0.0, 0.25, -200.0])
    np.testing.assert_array_equal(np.load(output), expected.astype(np.float32))
    assert [path.name for path in tmp_path.iterdir()] == ["o.npy"]


def test_facts_are_kept_beside_vectors(tmp_path: Path) -> None:
    layout = Layout(3, "int8", gaps=True)
    with opened(tmp_path, layout) as partial:
        for each in (part(2, 2), part(0, 4), part(1, 4)):
            partial.write(each)
    with opened(tmp_path, layout) as partial:
        assert partial.found == 10
        with (partial.path / "rows.npy").open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x99")  # the scale of the last row
    with opened(tmp_path, layout) as partial:
        assert (partial.found, partial.is_done(2)) == (8, False)
        partial.write(part(2, 2))
        (block,) = partial.blocks(10)
        assert block[1] is not None
        assert block[1]["row"].tolist() == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21]
        files = partial.finish(10)
        assert files == [
            (partial.path / "rows.npy", tmp_path / "o.rows.npy"),
            (partial.path / "vectors.npy", tmp_path / "o.npy"),
        ]
        partial.publish(files)
    vectors, facts = np.load(tmp_path / "o.npy"), np.load(tmp_path / "o.rows.npy")
    largest = np.array([200, 199, 198, 197, 190, 189, 188, 187, 180, 179])
    assert (vectors.dtype, facts.dtype.names) == (np.int8, ("row", "scale"))
    np.testing.assert_allclose(facts["scale"], largest / 127, rtol=1e-6)
    assert vectors[:, 2].tolist() == [-127] * 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.npy", "o.rows.npy"]


@pytest.mark.parametrize("rows", [1, 3, 8, 100])
def test_pieces_are_kept_as_they_come_and_are_brought_into_order(rows: int, tmp_path: Path) -> None:
    layout = Layout(3, pieces=True)
    with opened(tmp_path, layout) as partial:
        assert partial.write(part(1, 5, 4)) == 1
        assert partial.write(part(0, 2)) == 2
        assert partial.write(part(1, 5, 0, 2)) == 2
    with opened(tmp_path, layout) as partial:
        assert (partial.found, partial.done(1), partial.fresh) == (5, {0, 2, 4}, False)
        assert partial.write(part(2, 1)) == 1
        assert partial.write(part(1, 5)) == 2
        assert (partial.path / "vectors.npy").stat().st_size == 8 * 12
        numbers = [0, 1, 10, 11, 12, 13, 14, 20]
        assert [each for block in shown(partial, rows) for each in block] == numbers
        assert {len(block) for block in shown(partial, rows)[:-1]} <= {rows}
        files = partial.finish(rows)
        assert [target.name for _, target in files] == ["o.rows.npy", "o.npy"]
        partial.publish(files)
    vectors, facts = np.load(tmp_path / "o.npy"), np.load(tmp_path / "o.rows.npy")
    assert (vectors.shape, vectors.dtype, facts.shape) == ((8, 3), np.float32, (8,))
    assert vectors[:, 0].tolist() == facts["row"].tolist() == numbers
    assert facts["chunk"].tolist() == [0, 1, 0, 1, 2, 3, 4, 0]
    assert facts["begin"].tolist() == [100 + each for each in numbers]
    assert facts["end"].tolist() == [200 + each for each in numbers]


def test_pieces_of_chunks_that_were_not_begun_are_none(tmp_path: Path) -> None:
    with opened(tmp_path, Layout(3, pieces=True)) as partial:
        partial.write(part(2, 1))
        assert shown(partial, 5) == [[20]]
        partial.write(part(0, 2))
        assert shown(partial, 5) == [[0, 1, 20]]


def test_vectors_are_on_the_disk_before_the_journal_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a call of the system that takes only some of the bytes is one of several."""
    calls: list[str] = []
    write, pwrite, sync = os.write, os.pwrite, os.fdatasync

    def name(descriptor: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}")).name

    def told(what: str, descriptor: int) -> None:
        if calls[-1:] != [f"{what} {name(descriptor)}"]:
            calls.append(f"{what} {name(descriptor)}")

    with opened(tmp_path, Layout(3, gaps=True)) as partial:
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", lambda fd, data: (told("write", fd), write(fd, data[:7]))[1])
            patched.setattr(os, "pwrite", lambda fd, data, at: (told("write", fd), pwrite(fd, data[:5], at))[1])
            patched.setattr(os, "fdatasync", lambda fd: (told("sync", fd), sync(fd))[1])
            partial.write(part(0, 4, 0, 2, 3))
        files = ("vectors.npy", "rows.npy", "journal.jsonl")
        assert calls == [f"{what} {file}" for file in files for what in ("write", "sync")]
    with opened(tmp_path, Layout(3, gaps=True)) as partial:
        assert (partial.found, partial.done(0)) == (3, {0, 2, 3})


def test_what_is_published_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are on the disk before they get their names, the names after that, and no descriptor is left."""
    synced: list[str] = []

    def sync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        assert (tmp_path / "o.npy").exists() is stat.S_ISDIR(os.fstat(descriptor).st_mode)

    before = len(os.listdir("/proc/self/fd"))
    with opened(tmp_path, Layout(3, gaps=True)) as partial:
        partial.write(part(0, 4))
        monkeypatch.setattr(os, "fsync", sync)
        partial.publish(partial.finish(5))
        assert synced == [str(partial.path / "rows.npy"), str(partial.path / "vectors.npy"), str(tmp_path)]
    sync_directory(tmp_path)
    assert synced[3:] == [str(tmp_path)]
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_the_journal_says_twice_or_otherwise_counts_once(tmp_path: Path) -> None:
    with opened(tmp_path) as partial:
        partial.write(part(0, 4, 1, 2))
        partial.write(part(1, 4))
        path = partial.path / "journal.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    elsewhere = json.dumps({**json.loads(second), "at": 0}).encode() + b"\n"
    others = json.dumps({**json.loads(first), "of": 3}).encode() + b"\n"
    path.write_bytes(elsewhere + others + first + second + first + second + b'{"chunk": 2')
    assert rows_kept(tmp_path / "o.npy", SOURCE) == 6
    with opened(tmp_path) as partial:
        assert (partial.found, partial.done(0), partial.is_done(1)) == (6, {1, 2}, True)
        assert path.read_bytes().endswith(second)  # the torn line is gone
        partial.write(part(2, 2))
    assert len(path.read_bytes().splitlines()) == 7
    with opened(tmp_path) as partial:
        assert partial.found == 8


def test_an_empty_journal_of_a_whole_directory_is_continued(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), opened(tmp_path) as partial:
        partial.write(part(0, 4))
        raise ZeroDivisionError
    (partial.path / "journal.jsonl").write_bytes(b"")
    with opened(tmp_path) as partial:
        assert (partial.fresh, partial.found) == (False, 0)
    assert partial.path.is_dir()  # it was not begun by this run


@pytest.mark.parametrize("layout", [PLAIN, Layout(3, "int8"), Layout(3, pieces=True)])
def test_files_of_another_shape_are_begun_anew(layout: Layout, tmp_path: Path) -> None:
    def longer(path: Path) -> None:
        with path.open("ab") as file:
            file.write(b"x")

    def otherwise(path: Path) -> None:
        with path.open("r+b") as file:
            file.write(b"?")

    names = ["vectors.npy"] if layout.facts is None else ["vectors.npy", "rows.npy"]
    for name in names:
        for spoil in (Path.unlink, longer, otherwise):
            with opened(tmp_path, layout) as partial:
                partial.write(part(0, 4, 0, 3))
            spoil(partial.path / name)
            with opened(tmp_path, layout) as partial:
                # Pieces have no header, and as many rows as there are; only the rows that were changed are lost.
                is_new = spoil is Path.unlink or not layout.pieces
                assert (partial.fresh, partial.found) == (is_new, 2 if layout.pieces and spoil is longer else 0)
            shutil.rmtree(partial.path, ignore_errors=True)


def test_a_second_run_on_an_output_is_refused_and_a_later_one_is_not(tmp_path: Path) -> None:
    with opened(tmp_path) as partial:
        with pytest.raises(InputError, match=r"Another run is writing .*o\.npy at this moment"), opened(tmp_path):
            pytest.fail("the block was entered")
        partial.write(part(0, 4))
    with opened(tmp_path) as partial:
        assert partial.rows == 4


def test_another_job_is_refused_in_the_words_of_the_command_line(tmp_path: Path) -> None:
    with opened(tmp_path, threads=1, manifest_sha256="b") as partial:
        partial.write(part(0, 4))
    state = json.loads((partial.path / "state.json").read_text())
    assert state == {
        "format": module.FORMAT,
        "input": {"sha256": "a" * 64, "bytes": 12, "rows": 10},
        "chunks": 3,
        "hidden_size": 3,
        "output_type": "float32",
        "threads": 1,
        "manifest_sha256": "b",
    }
    other = Source((InputFile(Path("/t"), "t", "txt", bytes=13),), None, "error", False, 10, 10, 0, SOURCE.chunks)
    for given, message in (
        ({"threads": 2, "manifest_sha256": "b", "more": None}, r"more was null, now null|threads was 1, now 2"),
        ({"threads": 1, "manifest_sha256": "c"}, "the bundle was another one"),
        ({"manifest_sha256": "b"}, "threads was 1, now null"),
        ({"source": other, "threads": 1, "manifest_sha256": "b"}, "the input file was another one"),
    ):
        with pytest.raises(InputError, match=rf"holds the work of another run: ({message})\. Add --force"):  # noqa: SIM117
            with opened(tmp_path, **given):
                pytest.fail("the block was entered")
    with opened(tmp_path, threads=2, manifest_sha256="b", force=True) as partial:
        assert (partial.fresh, partial.rows) == (True, 0)
    assert not partial.path.exists()


def test_what_differs_is_said_of_each_setting() -> None:
    old = {"input": 1, "b": 1, "a": "x", "same": 0}
    assert module._difference(old, {"input": 1, "b": 2, "c": True, "same": 0}) == (
        'a was "x", now null; b was 1, now 2; c was null, now true'
    )


@pytest.mark.parametrize("text", ["[]", "{", "3", "null"])
def test_a_state_that_is_no_object_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "s").write_text(text)
    assert module._read_state(tmp_path / "s") is None
    assert module._read_state(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("spans", "merged"),
    [
        ([(0, 2), (2, 3)], [(0, 5)]),
        ([(0, 2), (3, 1), (4, 1)], [(0, 2), (3, 2)]),
        ([(4, 1), (0, 4)], [(0, 0), (4, 1), (0, 4)]),
        ([(0, 0), (0, 3)], [(0, 3)]),
        ([], [(0, 0)]),
    ],
)
def test_spans_that_touch_are_one(spans: list[tuple[int, int]], merged: list[tuple[int, int]]) -> None:
    assert list(module._merged(spans)) == merged


@pytest.mark.parametrize(
    ("error", "reason"), [(OSError(28, os.strerror(28)), "No space left on device"), (OSError("quota"), "quota")]
)
def test_a_full_disk_is_an_error_with_a_reason(
    error: OSError, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise error

    with opened(tmp_path) as partial:
        partial.write(part(0, 4))
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(InputError, match=rf"o\.npy could not be written: {reason}\. What was done is kept"):
            partial.write(part(1, 4))
        assert partial.rows == 4
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=reason), Partial.open(tmp_path / "p.npy", SOURCE, PLAIN, {}, force=False):
        pytest.fail("the block was entered")
    assert not partial_path(tmp_path / "p.npy").exists()
