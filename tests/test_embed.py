"""`mra-export embed`: right vectors in order, errors that name the row, and nothing lost or repeated by a kill."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embed_support import HIDDEN, MAX_LENGTH, WORDS, make_texts, start_child, write_lines

from mra_export.bundle.manifest import seal
from mra_export.cli import main
from mra_export.embedding import chunks as chunks_module
from mra_export.embedding import lines as lines_module
from mra_export.embedding import parquet
from mra_export.embedding import run as embed_module
from mra_export.embedding.input import ChunkReader, scan
from mra_export.embedding.journal import Partial, partial_path
from mra_export.embedding.run import Interrupted, embed
from mra_export.errors import InputError

PAGE = (Path(__file__).parent.parent / "docs" / "embed.md").read_text()
TEXTS = make_texts(300, seed=1)


@pytest.fixture(scope="module")
def bundle(embed_bundle: Path) -> Path:
    return embed_bundle


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("lines") / "texts.txt", TEXTS)


@pytest.fixture(scope="module")
def expected(bundle: Path, lines: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of the output of an uninterrupted run in chunks of 20 rows."""
    output = tmp_path_factory.mktemp("expected") / "vectors.npy"
    embed(bundle, lines, output, chunk_rows=20, threads=1)
    return output.read_bytes()


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    code = run("embed", *arguments, "--json", "-q")
    return code, json.loads(capsys.readouterr().out)


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


class Stop:
    """A watcher that does something when the journal holds so many chunks."""

    def __init__(self, chunks: int, action: Any) -> None:
        self.chunks, self.action, self.done = chunks, action, 0

    def step(self, text: str) -> None:
        pass

    def start(self, rows: int, size: int, *, rows_done: int, size_done: int) -> None:
        if self.chunks == 0:
            self.action()

    def advance(self, rows: int, size: int) -> None:
        self.done += size > 0
        if self.done == self.chunks:
            self.done = -1_000_000
            self.action()


def interrupt() -> None:
    raise KeyboardInterrupt


# What comes out.


def test_the_vectors_are_the_models_own(bundle: Path, lines: Path, expected: bytes, tmp_path: Path) -> None:
    """Against the bundle's pooled output from a stock session, the function body, one text at a time, without any padding."""
    import onnxruntime
    from tokenizers import Tokenizer

    (tmp_path / "v.npy").write_bytes(expected)
    vectors = np.load(tmp_path / "v.npy", mmap_mode="r")
    assert (vectors.shape, vectors.dtype) == ((len(TEXTS), HIDDEN), np.float32)
    session = onnxruntime.InferenceSession(bundle / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokenizer.no_padding()
    for text, vector in list(zip(TEXTS, vectors, strict=True))[:60]:
        ids = tokenizer.encode(text).ids
        if len(ids) > MAX_LENGTH:
            ids = [*ids[: MAX_LENGTH - 1], ids[-1]]
        feed = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
        feed["token_type_ids"] = np.zeros_like(feed["input_ids"])
        own = session.run(["sentence_embedding"], feed)[0][0]
        np.testing.assert_allclose(vector, own, atol=2e-6)


def test_a_text_file_a_json_file_and_a_parquet_file_give_the_same(
    bundle: Path, expected: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"n": i, "id": f"d{i}", "body": text, "other": [i, None]} for i, text in enumerate(TEXTS)]
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(rows))
    )
    table = pa.table({name: [row[name] for row in rows] for name in ("n", "id", "body")})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=37)
    for kind in (pa.dictionary(pa.int32(), pa.string()), pa.large_string()):
        changed = table.set_column(2, "body", table["body"].cast(kind))
        pq.write_table(changed, tmp_path / f"{str(kind)[:5]}.parquet", row_group_size=1000)
    ours = np.frombuffer(expected[-len(TEXTS) * HIDDEN * 4 :], np.float32).reshape(-1, HIDDEN)
    for name in ("t.jsonl", "t.parquet", "dicti.parquet", "large.parquet"):
        code, result = run_json(capsys, bundle, tmp_path / name, "-o", tmp_path / f"{name}.npy", "--column", "body")
        assert code == 0
        assert (tmp_path / f"{name}.npy").read_bytes() == expected
    assert result["outputs"] == [str(tmp_path / "large.parquet.npy")]
    assert (result["ok"], result["command"], result["rows"], result["hidden_size"]) == (True, "embed", 300, HIDDEN)
    assert result["truncated"] == sum(len(text.split()) > MAX_LENGTH - 2 for text in TEXTS) > 0
    assert result["tokens"] == sum(min(MAX_LENGTH, len(text.split()) + 2) for text in TEXTS)
    assert (result["engine"], result["provider"], result["resumed_rows"]) == ("local", "CPUExecutionProvider", 0)
    for name in ("t.jsonl", "t.parquet", "dicti.parquet"):
        columns = ["--column", "body", "--id-column", "id", "--id-column", "n"]
        output = tmp_path / f"{name}.parquet"
        assert run_json(capsys, bundle, tmp_path / name, "-o", output, *columns)[0] == 0
        made = pq.read_table(output)
        assert made.schema.names == ["row", "id", "n", "embedding"]
        assert (made.schema.field("row").type, made.schema.field("n").type) == (pa.int64(), pa.int64())
        assert made.schema.field("embedding").type.list_size == HIDDEN
        assert made.schema.field("embedding").type.value_type == pa.float32()
        manifest = json.loads((bundle / "manifest.json").read_text())
        assert made.schema.metadata[b"mra_export.manifest_sha256"].decode() == manifest["manifest_sha256"]
        assert made["row"].to_pylist() == list(range(300)) == made["n"].to_pylist()
        assert made["id"].to_pylist() == [f"d{i}" for i in range(300)]
        assert np.array_equal(made["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, HIDDEN), ours)
    assert not hidden(tmp_path)


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (b"", []),
        (b"word1", ["word1"]),
        (b"word1\n\nword2\n", ["word1", "", "word2"]),
        (b"\n", [""]),
        (b"\xef\xbb\xbfword1\r\nword2\r\n", ["word1", "word2"]),
        ("a\u2028b\x0bc\rd\x00\n  e \n".encode(), ["a\u2028b\x0bc\rd\x00", "  e "]),
    ],
)
def test_what_a_line_is(data: bytes, texts: list[str], bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(data)
    source = scan(tmp_path / "t.txt", chunk_rows=2)
    assert (source.rows, source.bytes) == (len(texts), len(data))
    reader = ChunkReader(source)
    assert [text for chunk in source.chunks for text in reader.texts(chunk)] == texts
    result = embed(bundle, tmp_path / "t.txt", tmp_path / "o.npy")
    assert result.rows == len(texts)
    assert np.load(tmp_path / "o.npy").shape == (len(texts), HIDDEN)
    if "" in texts:  # the special tokens alone
        assert np.isclose(np.linalg.norm(np.load(tmp_path / "o.npy")[texts.index("")]), 1)


def test_no_rows_make_an_empty_parquet_file(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b"")
    assert embed(bundle, tmp_path / "t.jsonl", tmp_path / "o.parquet", id_columns=["id"]).rows == 0
    made = pq.read_table(tmp_path / "o.parquet")
    assert (made.num_rows, made.schema.names) == (0, ["row", "id", "embedding"])


def test_chunks_depend_on_the_rows_alone_and_are_read_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks_module, "CHUNK_BYTES", 2000)
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "one.parquet", row_group_size=300)
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "many.parquet", row_group_size=7)
    write_lines(tmp_path / "t.txt", TEXTS)
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    files = [scan(tmp_path / name, chunk_rows=40) for name in ("one.parquet", "many.parquet", "t.txt", "t.jsonl")]
    assert files[0].chunks == files[1].chunks
    for source in files:
        assert [chunk.first_row for chunk in source.chunks[1:]] == np.cumsum([c.rows for c in source.chunks])[
            :-1
        ].tolist()
        assert all(chunk.rows == 1 or (chunk.size <= 2000 and chunk.rows <= 40) for chunk in source.chunks)
        assert {chunk.rows for chunk in source.chunks} != {40}
        reader = ChunkReader(source)
        for chunk in [*source.chunks[::-1], *source.chunks[::3], *source.chunks]:
            assert reader.texts(chunk) == TEXTS[chunk.first_row : chunk.first_row + chunk.rows]


def test_memory_does_not_grow_with_the_input(bundle: Path, tmp_path: Path) -> None:
    """30 times the input, 300 MB, may not take 60 MB more."""
    peaks = []
    for count in (100, 3000):
        with (tmp_path / "t.jsonl").open("w") as file:
            for index in range(count):
                file.write(json.dumps({"text": TEXTS[index % 10], "other": "x" * 100_000}) + "\n")
        process, answer = start_child(
            None,
            bundle,
            tmp_path / "t.jsonl",
            tmp_path / f"{count}.parquet",
            id_columns=["text"],
            chunk_rows=50,
            threads=1,
        )
        told, peak = answer.recv()
        process.join()
        assert told == 0
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 60, peaks


# What is refused.

JSON_ERRORS = [
    (b'{"text": "a"}\n{"text": 3}\n', r"line 2 \(row 1\): 'text' is a number, not a string"),
    (b'{"text": "a"}\n{"text": null}\n', r"line 2 \(row 1\): 'text' is null, not a string"),
    (
        b'{"text": "a"}\n{"body": "b", "id": 1}\n',
        r"line 2 \(row 1\) has no field 'text'; it has: body, id\. .*--column",
    ),
    (b'{"text": "a"}\n\n{"text": "b"}\n', r"line 2 \(row 1\) is empty"),
    (b'{"text": "a"}\n["b"]\n', r"line 2 \(row 1\) is an array, not an object"),
    (b'{"text": "a"}\n{"text": "b"\n', r"line 2 \(row 1\) is not JSON: Expecting"),
    (b'{"text": "a\xff"}\n', r"line 1 \(row 0\) is not UTF-8: byte 0xff at byte 11.*iconv"),
    (b'{"text": "a\\ud800b"}\n', r"line 1 \(row 0\): 'text' holds half of a surrogate pair \(\\ud800\)"),
    (b"[" * 100_000, r"line 1 \(row 0\) is not JSON"),
]


@pytest.mark.parametrize(("data", "message"), JSON_ERRORS)
def test_a_bad_line_is_named(
    data: bytes, message: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.jsonl").write_bytes(data)
    code, result = run_json(capsys, bundle, tmp_path / "t.jsonl", "-o", tmp_path / "o.npy")
    assert (code, result["ok"]) == (2, False)
    assert re.search(message, result["error"]), result["error"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.jsonl"]


def test_a_bad_text_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.txt").write_bytes(b"a\nb\nna\xefve\n")
    with pytest.raises(InputError, match=r"line 3 \(row 2\) is not UTF-8: byte 0xef at byte 2"):
        scan(tmp_path / "t.txt")
    bad = pa.array([b"a", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"text": bad}), tmp_path / "bad.parquet")
    with pytest.raises(InputError, match=r"bad.parquet, row 1 is not UTF-8: byte 0xff"):
        scan(tmp_path / "bad.parquet")
    pq.write_table(pa.table({"text": ["a", "b", None], "n": [1, 2, 3]}), tmp_path / "null.parquet", row_group_size=1)
    with pytest.raises(InputError, match=r"null.parquet, row 2: 'text' is null"):
        scan(tmp_path / "null.parquet")
    with pytest.raises(InputError, match="column 'n' is of type int64, not string"):
        scan(tmp_path / "null.parquet", column="n")
    with pytest.raises(InputError, match="has no column 'body'; it has: text, n"):
        scan(tmp_path / "null.parquet", column="body")
    (tmp_path / "not.parquet").write_bytes(b"PAR1" * 9)
    with pytest.raises(InputError, match="is not a readable parquet file"):
        scan(tmp_path / "not.parquet")
    for module in (chunks_module, lines_module, parquet):
        monkeypatch.setattr(module, "MAX_TEXT_BYTES", 1000)
    monkeypatch.setattr(lines_module, "MAX_LINE_BYTES", 2000)
    for name, data in (("t.txt", "ö" * 501), ("t.jsonl", json.dumps({"text": "ö" * 501}, ensure_ascii=False))):
        (tmp_path / name).write_text(f"{'a' if name == 't.txt' else json.dumps({'text': 'a'})}\n{data}\n")
        with pytest.raises(InputError, match=r"line 2 \(row 1\) has a text of 0 MiB.*cut it"):
            scan(tmp_path / name)
    pq.write_table(pa.table({"text": ["ö" * 501]}), tmp_path / "long.parquet")
    with pytest.raises(InputError, match=r"long.parquet, row 0 has a text of"):
        scan(tmp_path / "long.parquet")
    (tmp_path / "line.txt").write_text("a\n" + "b" * 3000)
    with pytest.raises(InputError, match=r"line 2 \(row 1\) is longer than .* MiB. A row is a line"):
        scan(tmp_path / "line.txt")


def test_ids_of_a_json_file_have_one_type(bundle: Path, tmp_path: Path) -> None:
    def ids(*values: object) -> pa.ChunkedArray:
        text = "".join(json.dumps({"text": "word1", "id": value}) + "\n" for value in values)
        (tmp_path / "t.jsonl").write_text(text)
        embed(bundle, tmp_path / "t.jsonl", tmp_path / "o.parquet", id_columns=["id"], force=True)
        return pq.read_table(tmp_path / "o.parquet")["id"]

    assert ids(1, None, -(2**63)).to_pylist() == [1, None, -(2**63)]
    assert ids("a", None).type == pa.string()
    with pytest.raises(InputError, match=r"line 2 \(row 1\): 'id' is a string, but of another type in a line before"):
        ids(1, "a")
    with pytest.raises(
        InputError, match=r"line 1 \(row 0\): 'id' is a number; an id is a string or an integer of 64 bits"
    ):
        ids(2**63)
    with pytest.raises(InputError, match="'id' is a boolean"):
        ids(True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "o.bin"], "o.bin must end in .npy or .parquet"),
        (["-o", "o.npy", "--id-column", "id"], "cannot hold --id-column id; write a .parquet"),
        (["-o", "o.parquet", "--id-column", "row"], "--id-column row would be in the output twice"),
        (["-o", "o.parquet", "--id-column", "id"], "is a .txt file, which has no columns"),
        (["-o", "o.npy", "--workers", "2"], "--workers 2 is for --engine ray"),
        (["-o", "o.npy", "--threads", "-1"], "threads=-1 must not be negative"),
        (["-o", "o.npy", "--batch-tokens", "0"], "batch_tokens=0 must be at least 1"),
        (["-o", "o.npy", "--engine", "ray", "--workers", "0"], "workers=0 must be at least 1"),
        (["-o", "t.txt"], "must end in .npy"),
        (["-o", "there.npy"], "there.npy already exists.*--force"),
        (["-o", "folder.npy", "--force"], "folder.npy is a directory"),
    ],
)
def test_a_bad_option_is_named(
    arguments: list[str], message: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(tmp_path / "t.txt", ["word1"])
    (tmp_path / "there.npy").write_text("mine")
    (tmp_path / "folder.npy").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    arguments = [str(tmp_path / a) if a.partition(".")[2] else a for a in arguments]
    code, result = run_json(capsys, bundle, tmp_path / "t.txt", *arguments)
    assert code == 2
    assert re.search(message, result["error"]), result["error"]
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "there.npy").read_text() == "mine"


def test_a_bad_input_or_bundle_is_named(bundle: Path, lines: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.txt does not exist"):
        embed(bundle, tmp_path / "none.txt", tmp_path / "o.npy")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(InputError, match="is not a regular file"):
        embed(bundle, tmp_path / "pipe.txt", tmp_path / "o.npy")
    (tmp_path / "t.csv").write_text("a")
    with pytest.raises(InputError, match=r"Give a .txt, .jsonl, .ndjson, .parquet file"):
        embed(bundle, tmp_path / "t.csv", tmp_path / "o.npy")
    (tmp_path / "exported" / "onnx").mkdir(parents=True)
    with pytest.raises(InputError, match="is an ONNX directory, not a bundle"):
        embed(tmp_path / "exported", lines, tmp_path / "o.npy")
    damaged = shutil.copytree(bundle, tmp_path / "damaged")
    with (damaged / "onnx" / "model.onnx").open("r+b") as file:
        file.seek(5000)
        file.write(b"\x00\x01\x02\x03")
    with pytest.raises(InputError, match=r"model.onnx was changed"):
        embed(damaged, lines, tmp_path / "o.npy")
    assert not hidden(tmp_path)


def test_a_vector_that_is_not_finite_is_refused(
    bundle: Path, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = embed_module.Encoder.encode

    def spoil(*arguments: Any) -> Any:
        encoded = encode(*arguments)
        encoded.vectors[4, 3] = np.inf
        return encoded

    monkeypatch.setattr(embed_module.Encoder, "encode", spoil)
    with pytest.raises(InputError, match=r"vector of row 4 has values that are not finite"):
        embed(bundle, lines, tmp_path / "o.npy")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("missing", "extra", "arguments"),
    [
        ("pyarrow", "embed", ["-o", "o.parquet"]),
        ("tokenizers", "embed", ["-o", "o.npy"]),
        ("ray", "ray", ["-o", "o.npy", "--engine", "ray"]),
    ],
)
def test_a_missing_package_ends_with_4_and_the_command_that_installs_it(
    missing: str, extra: str, arguments: list[str], bundle: Path, lines: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in [name for name in sys.modules if name.split(".")[0] == missing] or [missing]:
        monkeypatch.setitem(sys.modules, name, None)
    code, result = run_json(capsys, bundle, lines, arguments[0], tmp_path / arguments[1], *arguments[2:])
    assert code == 4
    assert f"pip install 'mra-export[{extra}]'" in result["error"]
    assert not list(tmp_path.iterdir())


# Interruptions.


def journal(output: Path) -> int:
    with contextlib.suppress(OSError):
        return (partial_path(output) / "journal.jsonl").read_bytes().count(b"\n")
    return 0


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
    assert process.returncode == 1
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


def begun(bundle: Path, source: Path, output: Path, *, chunks: int = 5) -> Path:
    """An interrupted run's partial directory."""
    with pytest.raises(Interrupted, match=f"Interrupted; {20 * chunks} of 300 rows are kept"):
        embed(bundle, source, output, chunk_rows=20, watcher=Stop(chunks, interrupt))
    return partial_path(output)


def test_what_is_damaged_is_computed_again(bundle: Path, lines: Path, expected: bytes, tmp_path: Path) -> None:
    """A torn last line, as a power cut leaves it; lines that are no record; and vectors that are not what was written."""
    output = tmp_path / "o.npy"
    partial = begun(bundle, lines, output)
    with (partial / "journal.jsonl").open("a") as file:
        file.write('{"chunk": 99, "crc32": 1, "truncated": 0, "tokens": 0, "computed": 0}\n')
        file.write('{"chunk": -1, "crc32": 1, "truncated": 0, "tokens": 0, "computed": 0}\n')
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
    # Threads and engine do not change a vector; and --force goes on with what does fit.
    assert embed(bundle, lines, output, chunk_rows=20, threads=2, force=True).resumed_rows == 100
    assert output.read_bytes() == expected
    output.unlink()
    begun(bundle, lines, output)
    assert embed(bundle, lines, output, chunk_rows=20, batch_tokens=64, force=True).resumed_rows == 0
    assert output.read_bytes() == expected
    assert not hidden(tmp_path)


def test_two_runs_do_not_write_one_output(bundle: Path, lines: Path, tmp_path: Path) -> None:
    def second() -> None:
        with pytest.raises(InputError, match=r"Another run is writing .*o.npy at this moment"):
            embed(bundle, lines, tmp_path / "o.npy", chunk_rows=20, force=True)

    embed(bundle, lines, tmp_path / "o.npy", chunk_rows=20, watcher=Stop(2, second))
    assert np.load(tmp_path / "o.npy").shape == (300, HIDDEN)


def test_an_input_that_changes_meanwhile_is_refused(bundle: Path, tmp_path: Path) -> None:
    for name in ("t.txt", "t.parquet"):
        source = tmp_path / name

        def save(texts: list[str], source: Path = source) -> None:
            if source.suffix == ".txt":
                write_lines(source, texts)
            else:
                pq.write_table(pa.table({"text": texts}), source)

        save(TEXTS)
        with pytest.raises(InputError, match=r"changed while it was being read \(rows 0 to 19 are other ones\)"):
            embed(
                bundle,
                source,
                tmp_path / "o.npy",
                chunk_rows=20,
                watcher=Stop(0, lambda save=save: save(["x", *TEXTS[1:]])),
            )
    assert not hidden(tmp_path)


def test_a_disk_that_is_too_small_is_found_before_any_work(bundle: Path, lines: Path, tmp_path: Path) -> None:
    process, answer = start_child(50_000, bundle, lines, tmp_path / "o.npy")
    told, _ = answer.recv()
    process.join()
    assert "o.npy could not be written: File too large. What was done is kept; free some space" in told
    assert not list(tmp_path.iterdir())


# What people see.


def test_a_terminal_shows_rows_speed_and_bytes(bundle: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "t.txt", make_texts(3000, seed=6))
    master, slave = os.openpty()
    command = [sys.executable, "-m", "mra_export", "embed", str(bundle), str(source), "-o", str(tmp_path / "o.npy")]
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "150"}
    process = subprocess.Popen(command, stderr=slave, stdout=subprocess.PIPE, text=True, env=env)
    os.close(slave)
    shown = b""
    while True:
        if select.select([master], [], [], 0.2)[0]:
            try:
                data = os.read(master, 65536)
            except OSError:  # the other side was closed
                break
            shown += data
            if not data:
                break
    out, _ = process.communicate(timeout=60)
    os.close(master)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"[\d,]+ of 3,000 rows, [\d,]+ rows/s, \d\.\d of \d\.\d MiB", text), text
    assert out.startswith(f"{tmp_path / 'o.npy'}: 3000 rows of {HIDDEN}, ")
    assert "x CPUExecutionProvider" in out


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_commands_of_the_page_run(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but Ray's, which runs in test_embed_ray.py."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle, "minilm-bundle")
    texts = [f"{WORDS[i]} {WORDS[i + 1]}" for i in range(20)]
    write_lines(Path("documents.txt"), texts)
    Path("documents.jsonl").write_text("".join(json.dumps({"id": i, "body": t}) + "\n" for i, t in enumerate(texts)))
    pq.write_table(pa.table({"body": texts}), "documents.parquet")
    commands = [line for block in blocks("bash") for line in block.splitlines() if line and "ray" not in line]
    assert len(commands) >= 4
    for command in commands:
        assert run(*shlex.split(command)[1:]) == 0, command
    for code in blocks("python"):
        exec(code, {})
    assert np.array_equal(np.load("vectors.npy"), np.load("from-python.npy"))
    assert np.array_equal(np.load("vectors.npy"), np.load("from-parquet.npy"))
    assert pq.read_table("vectors.parquet")["id"].to_pylist() == list(range(20))
