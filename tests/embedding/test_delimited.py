"""csv and tsv: what a record is, where it is, and which fields are no text."""

from __future__ import annotations

import csv
import io
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mra_export.embedding.chunks import InputFile
from mra_export.embedding.delimited import record_text, records
from mra_export.embedding.input import ChunkReader, scan
from mra_export.errors import InputError


def texts_of(path: Path, **options: object) -> list[str]:
    source = scan(path, chunk_rows=2, **options)  # type: ignore[arg-type]
    reader = ChunkReader(source)
    chunks = list(source.chunks)
    random.Random(0).shuffle(chunks)
    read = {chunk.index: reader.texts(chunk) for chunk in chunks}
    return [text for index in sorted(read) for text in read[index]]


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        ("id,text\n1,a\n2,b", ["a", "b"]),
        ("\ufeffid,text\r\n1,a\r\n2,b\r\n", ["a", "b"]),
        ('id,text\n1,"a, b"\n2,"c\nd\r\n\ne"\n3,"""q"" r"\n', ["a, b", "c\nd\r\n\ne", '"q" r']),
        ('id,text\n1,5" pipe\n2, b \n', ['5" pipe', " b "]),
        ('text,id\n"",1\nNA,2\nnull,3\n', ["", "NA", "null"]),
        ("text\n\na\n\n\nb\n", ["a", "b"]),
        ('"text"\n"a"\n', ["a"]),
        ("id,text\n", []),
        ("id,doc.text\n1,a\n", ["a"]),
    ],
)
def test_what_a_record_is(data: str, texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(data.encode())
    column = "doc.text" if "doc.text" in data else "text"
    assert texts_of(tmp_path / "t.csv", column=column) == texts
    (tmp_path / "t.tsv").write_bytes(data.replace(",", "\t").encode())
    assert texts_of(tmp_path / "t.tsv", column=column) == [text.replace(",", "\t") for text in texts]


CELLS = st.text(st.sampled_from('ab,"\n\r\t;ü '), max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS), max_size=9), st.sampled_from(",;\t|"))
def test_what_the_csv_module_wrote_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], delimiter: str
) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([("id", "text"), *rows])
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    path.write_bytes(buffer.getvalue().encode())
    assert texts_of(path, delimiter=delimiter) == [text for _, text in rows]


def test_an_empty_field_without_quotation_marks_is_null(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('a,text,b\n"1,""2",,3\n1,"",\n"x\ny",z,"q"\n')
    with pytest.raises(InputError, match=r"t.csv, line 2 \(row 0\): 'text' is null.*--null skip.*--null empty"):
        scan(tmp_path / "t.csv")
    assert texts_of(tmp_path / "t.csv", null="skip") == ["", "z"]
    assert texts_of(tmp_path / "t.csv", null="empty") == ["", "", "z"]
    file = InputFile(tmp_path / "t.csv", "t.csv", "csv", delimiter=",")
    found = [[record_text(file, column, (), n, record, True) for column in ("a", "text", "b")]
             for n, _, record in records(file, 0, 0)]  # fmt: skip
    assert found == [['1,"2', None, "3"], ["1", "", None], ["x\ny", "z", "q"]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            'id,text\n1,a\n2,"b\n3,c\n',
            r"line 3 \(row 1\) cannot be read: unexpected end of data. A field that begins with",
        ),
        ('id,text\n1,"a" b\n', r"line 2 \(row 0\) cannot be read: ',' expected after"),
        ('id,text\n1,"a\nb"\n2,b,c\n', r"line 4 \(row 1\) has 3 fields, the header 2"),
        ("id,text\n1,a\n2\n", r"line 3 \(row 1\) has 1 fields, the header 2"),
        ("id,text\r1,a\r", r"line 1 \(the header\) cannot be read: a carriage return without a line feed"),
        ("", r"t.csv is empty. A csv file begins with a line of names"),
        ("id,body\n1,a\n", r"has no column 'text'; it has: id, body. Name another with --column"),
        ("id,body\n", r"has no column 'text'"),
        ("text,text\na,b\n", r"has 2 columns 'text'"),
        ("id;text\n1;a\n", r"has no column 'text'; it has: id;text. .* or the delimiter: --delimiter ';'"),
    ],
)
def test_a_bad_record_is_named(data: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(data.encode())
    with pytest.raises(InputError, match=message):
        scan(tmp_path / "t.csv")


def test_a_bad_byte_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b'text\n"a\nb"\nna\xefve\n')
    with pytest.raises(InputError, match=r"t.csv, line 4 is not UTF-8: byte 0xef at byte 2.*iconv -f WINDOWS-1252"):
        scan(tmp_path / "t.csv")


def test_a_quotation_mark_that_is_never_closed_ends_with_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mra_export.embedding.lines.MAX_LINE_BYTES", 1000)
    (tmp_path / "t.csv").write_text('text\na\n"b\n' + "c\n" * 1000)
    with pytest.raises(InputError, match=r"line 3 \(row 1\) is longer than .*quotation mark missing"):
        scan(tmp_path / "t.csv")


@pytest.mark.parametrize(("separator", "written"), [(";", ";"), ("\t", r"\t"), ("|", "|")])
def test_the_delimiter_that_the_message_names_is_the_right_one(separator: str, written: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"id{separator}text\n1{separator}a, b\n")
    with pytest.raises(InputError, match=re.escape(f"--delimiter '{written}'")):
        scan(tmp_path / "t.csv")
    assert texts_of(tmp_path / "t.csv", delimiter=written) == ["a, b"]
    assert texts_of(tmp_path / "t.csv", delimiter=separator) == ["a, b"]


@pytest.mark.parametrize("delimiter", ["", ",,", '"', "\n", "é"])
def test_a_delimiter_is_one_character(delimiter: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text\na\n")
    with pytest.raises(InputError, match="must be one ASCII character"):
        scan(tmp_path / "t.csv", delimiter=delimiter)
