"""Which files an input has, in which order, and what their folders say."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from mra_export.embedding.files import find_files
from mra_export.embedding.input import ChunkReader, id_tables, scan
from mra_export.errors import InputError


def write(path: str, text: str = "") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def names(*sources: str) -> list[str]:
    return [file.name for file in find_files(sources)[0]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_come_as_they_are_named_and_those_of_patterns_and_folders_sorted() -> None:
    for name in ("d/b.txt", "d/a.txt", "d/10.txt", "d/c/z.jsonl", "d-e/x.txt", "[a].txt"):
        write(name)
    for name in ("d/_SUCCESS", "d/.a.txt.crc", "d/_temporary/x.txt", "d/.git/y.txt"):
        write(name)
    assert names("d/b.txt", "d/a.txt", "d/b.txt") == ["d/b.txt", "d/a.txt", "d/b.txt"]
    assert names("d/*.txt") == ["d/10.txt", "d/a.txt", "d/b.txt"]
    assert names("d/[!1].txt", "d/?0.txt") == ["d/a.txt", "d/b.txt", "d/10.txt"]
    assert names("**/*.txt") == ["[a].txt", "d/10.txt", "d/a.txt", "d/b.txt", "d-e/x.txt"]
    assert names("d") == ["d/10.txt", "d/a.txt", "d/b.txt", "d/c/z.jsonl"]
    assert names("d/") == names("d")
    assert names("d/_*/*.txt") == ["d/_temporary/x.txt"]
    assert names("[a].txt") == ["[a].txt"]  # it is there
    assert find_files(["d/a.txt"])[1] is False
    for sources in (["d/a.txt", "d/b.txt"], ["d/a*.txt"], ["d-e"]):
        assert find_files(sources)[1] is True


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "No INPUT is given"),
        (["none.txt"], r"^none\.txt does not exist"),
        (["none*.txt"], r"No file fits the pattern none\*\.txt\.$"),
        (["fold*"], r"No file fits the pattern fold\*\. It fits folders; end it in /\*"),
        (["folder/empty"], "folder/empty is a folder without files"),
        (["delta"], "delta is a table of Delta Lake, whose files also hold rows that were deleted"),
        (["folder"], r"folder/README is of a kind that embed does not read.*, or say what it is with --input-format"),
        (["t.gz"], r"t\.gz is of a kind"),
        (["pipe.txt"], r"pipe\.txt is not a regular file. It is read twice: save it as a file first, or pipe it in"),
    ],
)
def test_what_is_not_there_is_named(sources: list[str], message: str) -> None:
    write("folder/README")
    write("t.gz")
    Path("folder/empty").mkdir()
    Path("delta/_delta_log").mkdir(parents=True)
    os.mkfifo("pipe.txt")
    with pytest.raises(InputError, match=message):
        find_files(sources)


def test_a_format_that_is_said_holds_for_any_name() -> None:
    write("data", "a\nb\n")
    write("data.csv", "a,b\n")
    assert [scan(name, input_format="txt").rows for name in ("data", "data.csv")] == [2, 1]
    with pytest.raises(InputError, match="input_format='xml' must be one of txt, jsonl, json, csv, tsv, parquet"):
        scan("data", input_format="xml")


def test_rows_are_numbered_over_all_files_and_chunks_go_on_in_the_next() -> None:
    write("a.txt", "0\n1\n2\n")
    write("b.jsonl")
    write("c.jsonl", '{"text": "3"}\n{"text": null}\n{"text": "5"}\n')
    write("d.csv", "text\n6\n7\n")
    source = scan(["a.txt", "b.jsonl", "c.jsonl", "d.csv"], null="skip", chunk_rows=2)
    assert [(file.first_row, file.rows) for file in source.files] == [(0, 3), (3, 0), (3, 3), (6, 2)]
    assert (source.rows, source.input_rows, source.nulls, source.named, source.column) == (7, 8, 1, True, "text")
    expected = [([0, 1], ["0", "1"]), ([2, 3], ["2", "3"]), ([5, 6], ["5", "6"]), ([7], ["7"])]
    reader = ChunkReader(source)
    for index in (0, 1, 2, 3, 2, 0, 3, 1):
        assert reader.read(source.chunks[index]) == expected[index]


def test_an_error_names_the_file_and_its_own_row() -> None:
    write("d/a.jsonl", '{"text": "a"}\n' * 5)
    write("d/b.jsonl", '{"text": "b"}\n{"text": 1}\n')
    with pytest.raises(InputError, match=r"^d/b\.jsonl, line 2 \(row 1\): 'text' is a number"):
        scan("d")


def test_folders_of_a_partitioned_dataset_are_columns_as_pyarrow_reads_them() -> None:
    parts = [("2023", "en"), ("2024", "__HIVE_DEFAULT_PARTITION__"), ("2024", "d%20e")]
    for index, (year, lang) in enumerate(parts):
        table = pa.table({"text": [f"t{index}", f"u{index}"], "doc": [{"id": index}, None]})
        Path(f"h/year={year}/lang={lang}").mkdir(parents=True)
        pq.write_table(table, f"h/year={year}/lang={lang}/part-0.parquet")
    write("h/_metadata")
    theirs = ds.dataset("h", partitioning="hive", exclude_invalid_files=True).to_table()
    for sources in ("h", "h/*/*/*.parquet", "h/**/*.parquet"):
        source = scan(sources, id_columns=("year", "lang", "doc.id"))
        schema, tables = id_tables(source, ("year", "lang", "doc.id"), 4)
        ours = pa.concat_tables(tables)
        assert [str(field.type) for field in schema] == ["int64", "string", "int64"]
        reader = ChunkReader(source)
        rows = {text: row for row, text in enumerate(reader.texts(source.chunks[0]))}
        assert [rows[text] for text in theirs["text"].to_pylist()] == list(range(6))
        for name in ("year", "lang"):
            assert ours[name].to_pylist() == theirs[name].to_pylist()
        assert ours["doc.id"].to_pylist() == [0, None, 1, None, 2, None]


def test_columns_of_files_have_to_fit() -> None:
    write("a.jsonl", '{"text": "a", "id": null}\n')
    write("b.jsonl", '{"text": "b", "id": 7}\n')
    write("c.csv", 'id,text\n"x",c\n')
    pq.write_table(pa.table({"text": ["d"], "id": pa.array([3], pa.int32())}), "d.parquet")

    def ids(*sources: str) -> tuple[str, list[object]]:
        schema, tables = id_tables(scan(sources, id_columns=("id",)), ("id",), 10)
        return str(schema.field("id").type), pa.concat_tables(tables)["id"].to_pylist()

    assert ids("a.jsonl", "b.jsonl", "d.parquet") == ("int64", [None, 7, 3])
    assert ids("a.jsonl", "c.csv") == ("string", [None, "x"])
    assert ids("a.jsonl") == ("string", [None])
    with pytest.raises(InputError, match=r"^c\.csv: column 'id' is of type string, but int64 in a file before"):
        ids("b.jsonl", "c.csv")
    write("e.jsonl", '{"text": "e", "id": "y"}\n')
    with pytest.raises(InputError, match=r"^e\.jsonl, line 1 \(row 0\): 'id' is a string, but of another type"):
        ids("b.jsonl", "e.jsonl")
    write("f.txt", "f\n")
    with pytest.raises(InputError, match=r"^f\.txt is a .txt file, which has no columns"):
        ids("b.jsonl", "f.txt")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_a_column_within_another(suffix: str) -> None:
    rows = [
        {"doc": {"text": "a", "x.y": {"z": "1"}}, "other": 1},
        {"doc": {"text": "b", "x.y": None}, "other": 2},
        {"doc": None, "other": 3},
    ]

    def texts(column: str, data: list[dict[str, object]], **options: object) -> list[str]:
        if suffix == "parquet":
            pq.write_table(pa.Table.from_pylist(data), "t.parquet")
        else:
            lines = [json.dumps(row) for row in data]
            write(f"t.{suffix}", "\n".join(lines) if suffix == "jsonl" else f"[{', '.join(lines)}]")
        source = scan(f"t.{suffix}", column=column, **options)  # type: ignore[arg-type]
        return ChunkReader(source).texts(source.chunks[0])

    assert texts("doc.text", rows[:2]) == ["a", "b"]
    assert texts("doc.text", rows, null="skip") == ["a", "b"]
    assert texts("doc.text", rows, null="empty") == ["a", "b", ""]
    assert texts("doc.x.y.z", rows, null="skip") == ["1"]
    literal = [{"doc.text": "c", **row} for row in rows]
    assert texts("doc.text", literal) == ["c", "c", "c"]  # that very name wins
    with pytest.raises(InputError, match=r"row 2\)?: 'doc\.text' is null"):
        texts("doc.text", rows)
    with pytest.raises(InputError, match=r"has no (field|column) 'doc\.body'; it has: doc\.text, doc\.x\.y\.z, other"):
        texts("doc.body", rows[:1])
    with pytest.raises(InputError, match=r"'doc' is an object, not a string|'doc' is of type struct"):
        texts("doc", rows[:1])


def test_a_field_that_no_row_has_is_a_slip_and_not_null() -> None:
    write("t.jsonl", '{"text": "a"}\n{"text": "b"}\n')
    for null in ("skip", "empty"):
        with pytest.raises(InputError, match=r"None of the 2 rows has a field 'txt'\. Name the column"):
            scan("t.jsonl", column="txt", null=null)
    write("t.jsonl", '{"text": null}\n{}\n')
    assert scan("t.jsonl", null="skip").rows == 0
    with pytest.raises(InputError, match="null='drop' must be one of error, skip, empty"):
        scan("t.jsonl", null="drop")


def test_blank_lines_at_the_end_of_a_jsonl_file_are_no_rows() -> None:
    for end in ("\n", "\n\n", "  \n\t\n", "\r\n\r\n", " "):
        write("t.jsonl", '{"text": "a"}\n{"text": "b"}\n' + end)
        source = scan("t.jsonl")
        assert (source.rows, source.input_rows) == (2, 2)
        assert ChunkReader(source).texts(source.chunks[0]) == ["a", "b"]
    write("t.jsonl", '{"text": "a"}\n\n\n{"text": "b"}\n')
    with pytest.raises(InputError, match=r"line 2 \(row 1\) is empty; each line of a .jsonl file is an object"):
        scan("t.jsonl")
    write("t.jsonl", "\n")
    assert scan("t.jsonl").rows == 0
