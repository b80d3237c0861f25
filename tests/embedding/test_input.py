"""What a row of an input is, and errors that name it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embed_support import (
    HIDDEN,
    TEXTS,
    Stop,
    hidden,
    run_json,
    write_lines,
)

from mra_export import embedding
from mra_export.embedding import chunks as chunks_module
from mra_export.embedding import lines as lines_module
from mra_export.embedding.input import ChunkReader, scan
from mra_export.embedding.run import embed
from mra_export.errors import InputError


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


def test_rows_without_a_text_do_not_make_a_file_be_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time a row group of a million rows would be read from its beginning."""
    rows = [text if row % 5 else None for row, text in enumerate(TEXTS)]
    pq.write_table(pa.table({"text": rows}), tmp_path / "t.parquet")
    (tmp_path / "t.json").write_text(json.dumps(rows))
    for name, opens in (("t.parquet", "parquet.open_parquet"), ("t.json", "json_values.open_bytes")):
        source = scan(tmp_path / name, null="skip", chunk_rows=4)
        module, function = opens.split(".")
        target = getattr(embedding, module)
        opened: list[Path] = []
        own = getattr(target, function)
        monkeypatch.setattr(target, function, lambda *a, own=own, opened=opened: opened.append(a[-1].path) or own(*a))
        reader = ChunkReader(source)
        assert [text for chunk in source.chunks for text in reader.texts(chunk)] == [
            row for row in rows if row is not None
        ]
        assert len(source.chunks) == 60
        assert len(opened) == 1


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
    monkeypatch.setattr(chunks_module, "MAX_TEXT_BYTES", 1000)
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


@pytest.mark.parametrize("name", ["t.txt", "t.jsonl", "t.parquet"])
def test_a_chunk_has_at_least_one_row(name: str, tmp_path: Path) -> None:
    texts = ["word1", "word2", "word3"]
    write_lines(tmp_path / "t.txt", texts)
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pq.write_table(pa.table({"text": texts}), tmp_path / "t.parquet")
    source = scan(tmp_path / name, chunk_rows=1)
    assert [(chunk.first_row, chunk.rows) for chunk in source.chunks] == [(0, 1), (1, 1), (2, 1)]
    assert [chunk.rows for chunk in scan(tmp_path / name, chunk_rows=2).chunks] == [2, 1]
    for rows in (0, -1):
        with pytest.raises(InputError, match=f"chunk_rows={rows} must be at least 1"):
            scan(tmp_path / name, chunk_rows=rows)
