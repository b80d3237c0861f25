"""Nothing is lost or repeated by a kill, an interruption or damage."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from embed_support import (
    HIDDEN,
    TEXTS,
    Stop,
    begun,
    hidden,
    interrupt,
    journal,
    make_texts,
    start_child,
    write_lines,
)

from mra_export.bundle.manifest import seal
from mra_export.embedding.journal import Partial, partial_path
from mra_export.embedding.run import Interrupted, embed
from mra_export.errors import InputError


@pytest.mark.slow
def test_a_killed_run_goes_on_and_gives_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    """kill -9, twice, at different places."""
    source = write_lines(tmp_path / "t.txt", make_texts(6000, seed=5))
    output = tmp_path / "o.npy"
    kept = 0
    for _ in range(2):
        process, _ = start_child(None, bundle, source, output, chunk_rows=20, threads=1)
        deadline = time.monotonic() + 120
        while journal(output) < kept + 3:
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not output.exists()
        assert kept < journal(output) < 300
        kept = journal(output)
    process, answer = start_child(None, bundle, source, output, chunk_rows=20, threads=1)
    resumed, _ = answer.recv()
    process.join()
    assert resumed in (20 * kept, 20 * kept - 20)  # the last line may be torn
    embed(bundle, source, tmp_path / "whole.npy", chunk_rows=20)
    assert output.read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert not hidden(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
def test_an_interrupted_command_says_what_is_kept(how: str, bundle: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "t.txt", make_texts(30_000, seed=6))
    output = tmp_path / "o.npy"
    number = getattr(signal, how)
    process = subprocess.Popen(
        [sys.executable, "-m", "mra_export", "embed", str(bundle), str(source), "-o", str(output)],
        stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )  # fmt: skip
    while journal(output) < 1:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    told = re.search(r"Interrupted; (\d+) of 30000 rows are kept in (\S+)\. Run the same command again", err)
    assert told, err
    assert Path(told[2]) == partial_path(output)
    assert int(told[1]) == 1024 * journal(output)
    assert not output.exists()


def test_an_interruption_before_the_first_chunk_leaves_nothing(bundle: Path, lines: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        embed(bundle, lines, tmp_path / "o.npy", watcher=Stop(0, interrupt))
    assert not isinstance(caught.value, Interrupted)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("output", ["o.npy", "o.parquet"])
def test_an_interruption_while_the_output_is_written(
    output: str, bundle: Path, lines: Path, expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Partial, "publish", lambda *_: interrupt())
        with pytest.raises(Interrupted, match="300 of 300 rows are kept"):
            embed(bundle, lines, tmp_path / output, chunk_rows=20)
    assert not (tmp_path / output).exists()
    result = embed(bundle, lines, tmp_path / output, chunk_rows=20)
    assert result.resumed_rows == 300
    assert result.rows_per_second == 0
    if output == "o.npy":
        assert (tmp_path / output).read_bytes() == expected
    assert not hidden(tmp_path)


def test_an_interruption_right_after_the_journal_loses_no_row(
    bundle: Path, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal lands when the line is on the disk, but the process does not know it yet; and again while it resumes."""
    output = tmp_path / "o.npy"
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", lambda file: interrupt() if journal(output) else None)
        with pytest.raises(Interrupted, match="20 of 300 rows are kept"):
            embed(bundle, lines, output, chunk_rows=20)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", lambda *_: interrupt())
        with pytest.raises(Interrupted, match="20 of 300 rows are kept"):
            embed(bundle, lines, output, chunk_rows=20)
    assert embed(bundle, lines, output, chunk_rows=20).resumed_rows == 20


def test_what_is_damaged_is_computed_again(bundle: Path, lines: Path, expected: bytes, tmp_path: Path) -> None:
    """A torn last line, as a power cut leaves it; lines that are no record; and vectors that are not what was written."""
    output = tmp_path / "o.npy"
    partial = begun(bundle, lines, output)
    with (partial / "journal.jsonl").open("a") as file:
        record = {"of": 20, "at": 0, "places": None, "crc32": 1, "truncated": 0, "tokens": 0, "computed": 0}
        for chunk in (99, -1):
            file.write(json.dumps({"chunk": chunk, **record}) + "\n")
        file.write('nonsense\n{"chunk": 7}\n[]\n{"chunk": 8, "crc32": 0, "trunc')
    with (partial / "vectors.npy").open("r+b") as file:
        file.seek(len(expected) - 300 * HIDDEN * 4 + 25 * HIDDEN * 4)
        file.write(b"\x00" * 8)  # in chunk 1
    result = embed(bundle, lines, output, chunk_rows=20)
    assert result.resumed_rows == 80
    assert output.read_bytes() == expected


def test_a_partial_directory_that_is_not_whole_is_begun_again(
    bundle: Path, lines: Path, expected: bytes, tmp_path: Path
) -> None:
    output = tmp_path / "o.npy"
    for spoil in (
        lambda partial: (partial / "state.json").unlink(),
        lambda partial: (partial / "state.json").write_text("{"),
        lambda partial: (partial / "vectors.npy").unlink(),
        lambda partial: os.truncate(partial / "vectors.npy", 1000),
        lambda partial: (partial / "journal.jsonl").unlink(),
    ):
        spoil(begun(bundle, lines, output, chunks=2))
        assert embed(bundle, lines, output, chunk_rows=20).resumed_rows == 0
        assert output.read_bytes() == expected
        output.unlink()
    assert not hidden(tmp_path)


def test_the_folder_of_the_output_is_made(bundle: Path, lines: Path, expected: bytes, tmp_path: Path) -> None:
    output = tmp_path / "new" / "folder" / "o.npy"
    embed(bundle, lines, output, chunk_rows=20)
    assert output.read_bytes() == expected
    assert [path.name for path in output.parent.iterdir()] == ["o.npy"]


def test_a_run_with_something_else_is_not_continued(bundle: Path, lines: Path, expected: bytes, tmp_path: Path) -> None:
    output = tmp_path / "o.npy"
    partial = begun(bundle, lines, output)
    changed = write_lines(tmp_path / "t.txt", ["other", *TEXTS[1:]])
    with pytest.raises(InputError, match=r"holds the work of another run: the input file was another one. Add --force"):
        embed(bundle, changed, output, chunk_rows=20)
    with pytest.raises(InputError, match="batch_tokens was 2048, now 64"):
        embed(bundle, lines, output, chunk_rows=20, batch_tokens=64)
    other = shutil.copytree(bundle, tmp_path / "bundle")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["provenance"]["source"] = "elsewhere"
    (other / "manifest.json").write_bytes(seal(manifest))
    with pytest.raises(InputError, match="the bundle was another one"):
        embed(other, lines, output, chunk_rows=20)
    assert len((partial / "journal.jsonl").read_text().splitlines()) == 5
    # --force goes on with what does fit.
    assert embed(bundle, lines, output, chunk_rows=20, force=True).resumed_rows == 100
    assert output.read_bytes() == expected
    output.unlink()
    begun(bundle, lines, output)
    assert embed(bundle, lines, output, chunk_rows=20, batch_tokens=64, force=True).resumed_rows == 0
    assert output.read_bytes() == expected
    assert not hidden(tmp_path)


@pytest.mark.native
def test_a_run_goes_on_with_another_number_of_threads(
    bundle: Path, lines: Path, expected: bytes, tmp_path: Path
) -> None:
    """They do not change a vector of the native operator."""
    begun(bundle, lines, tmp_path / "o.npy")
    assert embed(bundle, lines, tmp_path / "o.npy", chunk_rows=20, threads=2, force=True).resumed_rows == 100
    assert (tmp_path / "o.npy").read_bytes() == expected


def test_two_runs_do_not_write_one_output(bundle: Path, lines: Path, tmp_path: Path) -> None:
    def second() -> None:
        with pytest.raises(InputError, match=r"Another run is writing .*o.npy at this moment"):
            embed(bundle, lines, tmp_path / "o.npy", chunk_rows=20, force=True)

    embed(bundle, lines, tmp_path / "o.npy", chunk_rows=20, watcher=Stop(2, second))
    assert np.load(tmp_path / "o.npy").shape == (300, HIDDEN)
