"""`mra-export embed`: right vectors in order, in every form of input and output, and errors that say what is wrong."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embed_support import (
    HIDDEN,
    MAX_LENGTH,
    TEXTS,
    WORDS,
    blocks,
    hidden,
    make_texts,
    run,
    run_json,
    start_child,
    write_lines,
)

from mra_export.embedding import run as embed_module
from mra_export.embedding.files import INPUT_FORMATS
from mra_export.embedding.input import NULLS
from mra_export.embedding.layout import OUTPUT_TYPES
from mra_export.embedding.run import embed
from mra_export.errors import InputError


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


def test_several_files_are_one_input_and_the_output_says_which(
    bundle: Path, expected: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for index in range(3):
        Path(f"data/part={index}").mkdir(parents=True)
        rows = [{"n": n, "doc": {"text": TEXTS[n]}} for n in range(100 * index, 100 * index + 100)]
        pq.write_table(pa.Table.from_pylist(rows), f"data/part={index}/p.parquet")
    named = [str(path) for path in sorted(Path("data").glob("*/*"))]
    for sources in (["data"], ["data/*/*.parquet"], named):
        options = ["--column", "doc.text", "--force"]
        code, result = run_json(capsys, bundle, *sources, "-o", "o.npy", *options)
        assert (code, result["files"], result["input_rows"], result["null_rows"]) == (0, 3, 300, 0)
        assert (result["outputs"], result["output_type"]) == (["o.npy"], "float32")
        assert Path("o.npy").read_bytes() == expected
        ids = ["--id-column", "n", "--id-column", "part"]
        assert run_json(capsys, bundle, *sources, "-o", "o.parquet", *options, *ids)[0] == 0
        made = pq.read_table("o.parquet")
        assert made.schema.names == ["row", "file", *ids[1::2], "embedding"]
        assert made["row"].to_pylist() == list(range(300)) == made["n"].to_pylist()
        assert made["file"].to_pylist() == [f"data/part={n // 100}/p.parquet" for n in range(300)]
        assert made["part"].to_pylist() == [n // 100 for n in range(300)]
    with pytest.raises(InputError, match=r"data/part=1/p.parquet is one of the input's files"):
        embed(bundle, "data", Path("data/part=1/p.parquet"), column="doc.text", force=True)


@pytest.mark.parametrize("null", ["skip", "empty"])
def test_id_columns_of_any_type_keep_type_and_row(null: str, bundle: Path, tmp_path: Path) -> None:
    rows = range(60)
    ids = {
        "dictionary": pa.array([f"k{i % 9}" for i in rows]).dictionary_encode(),
        "time": pa.array([1_700_000_000_000_000 + i for i in rows], pa.timestamp("us", "UTC")),
        "list": pa.array([[i, None] for i in rows]),
        "struct": pa.array([{"a": i, "b": "x"} for i in rows]),
        "decimal": pa.array(list(rows), pa.decimal128(10, 2)),
        "bytes": pa.array([bytes([i]) for i in rows]),
        "map": pa.array([[("a", i)] for i in rows], pa.map_(pa.string(), pa.int64())),
    }
    if int(pa.__version__.split(".")[0]) >= 20:  # older ones do not write views
        ids["view"] = pa.array([f"v{i}" for i in rows], pa.string_view())
    text = pa.array([f"word{i}" if i % 5 else None for i in rows])
    table = pa.table({"text": text, **ids})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=17)
    embed(bundle, tmp_path / "t.parquet", tmp_path / "o.parquet", id_columns=list(ids), null=null)
    made = pq.read_table(tmp_path / "o.parquet")
    kept = [i for i in rows if null == "empty" or i % 5]
    assert made["row"].to_pylist() == kept
    for name in ids:
        assert made[name].type == table[name].type
        values = table[name].to_pylist()
        assert made[name].to_pylist() == [values[row] for row in kept]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("file", {}),
        ("scale", {"output_type": "int8"}),
        ("chunk", {"chunk": 9}),
        ("begin", {"chunk": 9}),
        ("end", {"chunk": 9}),
    ],
)
def test_an_id_column_may_have_the_name_of_what_the_output_lacks(
    name: str, options: dict[str, Any], bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text(f"{name},text\nx,word1\n")
    source = tmp_path / "t.csv"
    embed(bundle, source, tmp_path / "o.parquet", id_columns=[name])
    assert pq.read_table(tmp_path / "o.parquet")[name].to_pylist() == ["x"]
    sources = [source, source] if name == "file" else [source]
    with pytest.raises(InputError, match=f"--id-column {name} would be in the output twice"):
        embed(bundle, sources, tmp_path / "p.parquet", id_columns=[name], **options)
    assert not (tmp_path / "p.parquet").exists()


@pytest.mark.parametrize(("null", "left"), [("skip", [0, 2, 5]), ("empty", [0, 1, 2, 3, 4, 5])])
def test_rows_without_a_text_are_left_out_or_taken_as_empty(
    null: str, left: list[int], bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["word1", None, "word2", None, None, "word3 word4"]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts)))
    arguments = ["--null", null, "--id-column", "id", "-o", tmp_path / "o.parquet"]
    assert run("embed", bundle, tmp_path / "t.jsonl", *arguments) == 0
    told = {"skip": "3 of 6 rows have no text, left out", "empty": "3 of 6 rows have no text, taken as empty"}
    assert f"rows of {HIDDEN}; {told[null]}" in capsys.readouterr().out
    made = pq.read_table(tmp_path / "o.parquet")
    assert made["row"].to_pylist() == left == made["id"].to_pylist()
    assert run("embed", bundle, tmp_path / "t.jsonl", "--null", null, "-o", tmp_path / "o.npy") == 0
    assert (f"{tmp_path / 'o.rows.npy'} says what its rows are" in capsys.readouterr().out) == (null == "skip")
    arguments = ["--null", null, "-o", tmp_path / "o.npy", "--force"]
    code, result = run_json(capsys, bundle, tmp_path / "t.jsonl", *arguments)
    assert (code, result["rows"], result["input_rows"], result["null_rows"]) == (0, len(left), 6, 3)
    write_lines(tmp_path / "t.txt", [texts[row] or "" for row in left])
    embed(bundle, tmp_path / "t.txt", tmp_path / "t.npy")
    assert (tmp_path / "o.npy").read_bytes() == (tmp_path / "t.npy").read_bytes()
    vectors = made["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, HIDDEN)
    assert np.array_equal(vectors, np.load(tmp_path / "t.npy"))
    if null == "skip":
        assert result["outputs"] == [str(tmp_path / "o.npy"), str(tmp_path / "o.rows.npy")]
        assert np.load(tmp_path / "o.rows.npy")["row"].tolist() == left
    else:
        assert result["outputs"] == [str(tmp_path / "o.npy")]


def test_no_rows_make_an_empty_parquet_file(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b"")
    assert embed(bundle, tmp_path / "t.jsonl", tmp_path / "o.parquet", id_columns=["id"]).rows == 0
    made = pq.read_table(tmp_path / "o.parquet")
    assert (made.num_rows, made.schema.names) == (0, ["row", "id", "embedding"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv.gz"])
def test_memory_does_not_grow_with_the_input(kind: str, bundle: Path, tmp_path: Path) -> None:
    """Ten times the input, 100 MB, may not take 40 MB more."""
    peaks = []
    for count in (100, 1000):
        source = tmp_path / f"t.{kind}"
        with gzip.open(source, "wt", compresslevel=1) if kind == "csv.gz" else source.open("w") as file:
            file.write({"jsonl": "", "json": "[", "csv.gz": "text,other\n"}[kind])
            for index in range(count):
                row = {"text": TEXTS[index % 10], "other": "x" * 100_000}
                if kind == "json":
                    file.write("," * (index > 0) + json.dumps(row))
                else:
                    file.write((json.dumps(row) if kind == "jsonl" else f'"{row["text"]}",{row["other"]}') + "\n")
            file.write("]" * (kind == "json"))
        process, answer = start_child(
            None,
            bundle,
            source,
            tmp_path / f"{count}.parquet",
            id_columns=["text"],
            chunk_rows=50,
            threads=1,
        )
        told, peak = answer.recv()
        process.join()
        assert told == 0
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 40, peaks


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
        (
            ["-o", "o.parquet", "--output-type", "int8", "--id-column", "scale"],
            r"t.txt is a .txt file, which has no columns",
        ),
        (["-o", "o.npy", "--delimiter", ";;"], "delimiter=';;' must be one ASCII character"),
        (["-o", "o.npy", "--overlap", "3"], "--overlap 3 is for --chunk"),
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


def test_the_command_knows_the_same_names_as_the_function() -> None:
    """They are written out there, since `--help` imports nothing of embed."""
    from mra_export.cli.embed import embed_command

    choices = {each.name: getattr(each.type, "choices", None) for each in embed_command.params}
    assert tuple(choices["input_format"] or ()) == INPUT_FORMATS
    assert tuple(choices["null"] or ()) == NULLS
    assert tuple(choices["output_type"] or ()) == tuple(OUTPUT_TYPES)
    assert tuple(choices["engine"] or ()) == embed_module.ENGINES


def test_a_bad_input_or_bundle_is_named(bundle: Path, lines: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.txt does not exist"):
        embed(bundle, tmp_path / "none.txt", tmp_path / "o.npy")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(InputError, match="is not a regular file"):
        embed(bundle, tmp_path / "pipe.txt", tmp_path / "o.npy")
    (tmp_path / "t.docx").write_text("a")
    with pytest.raises(
        InputError, match=r"does not read. Give a .txt, .jsonl, .*, or say what it is with --input-format"
    ):
        embed(bundle, tmp_path / "t.docx", tmp_path / "o.npy")
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
    batches = embed_module.Encoder.batches

    def spoil(*arguments: Any) -> Any:
        for batch in batches(*arguments):
            batch.vectors[batch.rows == 4, 3] = np.inf
            yield batch

    monkeypatch.setattr(embed_module.Encoder, "batches", spoil)
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


@pytest.mark.slow
def test_a_disk_that_is_too_small_is_found_before_any_work(bundle: Path, lines: Path, tmp_path: Path) -> None:
    process, answer = start_child(50_000, bundle, lines, tmp_path / "o.npy")
    told, _ = answer.recv()
    process.join()
    assert "o.npy could not be written: File too large. What was done is kept; free some space" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
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


def test_the_commands_of_the_page_run(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but Ray's, which runs in test_ray.py."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle, "minilm-bundle")
    texts = [f"{WORDS[i]} {WORDS[i + 1]}" for i in range(20)]
    write_lines(Path("documents.txt"), texts)
    Path("documents.jsonl").write_text("".join(json.dumps({"id": i, "body": t}) + "\n" for i, t in enumerate(texts)))
    pq.write_table(pa.table({"body": texts}), "documents.parquet")
    table = "".join(f"{line}\n" for line in ["id,body", "x,", *(f"{i},{text}" for i, text in enumerate(texts))])
    Path("documents.csv.gz").write_bytes(gzip.compress(table.encode()))
    for year in (2023, 2024):
        Path(f"lake/year={year}").mkdir(parents=True)
        pq.write_table(pa.table({"doc": [{"body": text} for text in texts]}), f"lake/year={year}/part-0.parquet")
    commands = [line for block in blocks("bash") for line in block.splitlines() if line and "--engine ray" not in line]
    assert len(commands) >= 9
    for command in commands:
        before, _, own = command.rpartition("| ")
        if before:
            piped = subprocess.run(["bash", "-c", before], check=True, capture_output=True).stdout
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped)))
        assert run(*shlex.split(own)[1:]) == 0, command
    for code in blocks("python"):
        exec(code, {})
    assert np.array_equal(np.load("vectors.npy"), np.load("from-python.npy"))
    assert np.array_equal(np.load("vectors.npy"), np.load("from-parquet.npy"))
    assert pq.read_table("vectors.parquet")["id"].to_pylist() == list(range(20))
    assert pq.read_table("lake.parquet")["year"].to_pylist() == [2023] * 20 + [2024] * 20
    assert np.array_equal(np.load("vectors.npy").astype(np.float16), np.load("from-csv.npy"))
    assert np.array_equal(np.load("vectors.npy"), np.load("piped.npy"))
    assert np.array_equal(np.load("vectors.npy"), np.load("chunks.npy"))  # none is so long
    assert np.load("both.rows.npy")["row"].tolist() == [*range(20), *range(21, 41)]
