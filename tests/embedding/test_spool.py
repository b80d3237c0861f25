"""Standard input is saved beside the output while the command runs, and known by what it holds."""

from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embed_support import HIDDEN, TEXTS, Stop, hidden, interrupt, run_json

from mra_export.embedding.run import Interrupted, embed
from mra_export.embedding.spool import spooled
from mra_export.errors import InputError

LINES = "".join(f"{text}\n" for text in TEXTS).encode()


class Pipe:
    """In the place of `sys.stdin`."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda data: monkeypatch.setattr(sys, "stdin", Pipe(data))


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("txt", LINES),
        ("txt", gzip.compress(LINES)),
        ("jsonl", b"".join(json.dumps({"text": text}).encode() + b"\n" for text in TEXTS)),
        ("json", json.dumps(TEXTS).encode()),
        ("csv", b"text\n" + b"".join(b'"%s"\n' % text.encode() for text in TEXTS)),
    ],
)
def test_standard_input_gives_what_the_file_gives(
    kind: str,
    data: bytes,
    piped: Any,
    bundle: Path,
    expected: bytes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    piped(data)
    code, result = run_json(capsys, bundle, "-", "--input-format", kind, "-o", tmp_path / "o.npy")
    assert (code, result["rows"], result["files"]) == (0, 300, 1)
    assert (tmp_path / "o.npy").read_bytes() == expected
    assert not hidden(tmp_path)


def test_the_same_input_once_more_goes_on_and_another_does_not(
    piped: Any, bundle: Path, lines: Path, expected: bytes, tmp_path: Path
) -> None:
    output = tmp_path / "o.npy"
    options: dict[str, Any] = {"input_format": "txt", "chunk_rows": 20}
    piped(LINES)
    with pytest.raises(Interrupted, match="100 of 300 rows are kept"):
        embed(bundle, "-", output, watcher=Stop(5, interrupt), **options)
    assert hidden(tmp_path) == [".o.npy.partial"]
    piped(b"other\n" + LINES)
    with pytest.raises(InputError, match="the input file was another one"):
        embed(bundle, "-", output, **options)
    piped(LINES)
    assert embed(bundle, "-", output, **options).resumed_rows == 100
    assert output.read_bytes() == expected
    assert not hidden(tmp_path)


def test_errors_name_standard_input(piped: Any, bundle: Path, lines: Path, tmp_path: Path) -> None:
    for data, options, message in (
        (b'{"text": 1}\n', {"input_format": "jsonl"}, r"^standard input, line 1 \(row 0\): 'text' is a number"),
        ("a\n".encode("utf-16"), {"input_format": "txt"}, r"^standard input is UTF-16, not UTF-8"),
        (b"not", {"input_format": "parquet"}, r"^standard input is not a readable parquet file"),
        (b"", {}, r"Standard input has no name: say what it is with --input-format"),
    ):
        piped(data)
        with pytest.raises(InputError, match=message):
            embed(bundle, "-", tmp_path / "o.npy", **options)
    with pytest.raises(InputError, match="Standard input can be given once"):
        embed(bundle, ["-", lines, "-"], tmp_path / "o.npy", input_format="txt")
    piped(b"last\n")
    assert embed(bundle, [lines, "-"], tmp_path / "o.npy", input_format="txt").rows == 301
    assert np.load(tmp_path / "o.npy").shape == (301, HIDDEN)
    assert not hidden(tmp_path)


def test_two_runs_do_not_share_a_spool_and_what_a_kill_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".o.npy.stdin").write_bytes(b"of a run that was killed")
    with spooled(io.BytesIO(b"data"), tmp_path / "o.npy") as path:
        assert path.read_bytes() == b"data"
        with (
            pytest.raises(InputError, match=r"Another run is writing .*o.npy at this moment"),
            spooled(io.BytesIO(b"other"), tmp_path / "o.npy"),
        ):
            pass
        assert path.read_bytes() == b"data"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_real_pipe(bundle: Path, expected: bytes, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mra_export", "embed", bundle, "-", "--input-format", "txt", "-o", tmp_path / "o.npy"],
        input=LINES, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(rb"saving standard input\nreading standard input\n", done.stderr)
    assert (tmp_path / "o.npy").read_bytes() == expected
