"""JSON arrays and values one after the other, read bit by bit."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mra_export.embedding import json_values
from mra_export.embedding.chunks import InputFile
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
        ('["a", "b"]', ["a", "b"]),
        ('\ufeff [\n  "a" ,\n\n "" ] \n', ["a", ""]),
        ('[{"text": "a", "n": [1, {"text": 3}]}, {"text": "b"}]', ["a", "b"]),
        ('["a", {"text": "b"}]', ["a", "b"]),
        ("[]", []),
        ("", []),
        ('{"text": "a"}\n{"text": "b"}\n', ["a", "b"]),  # by lines, under another name
        ('{\n"text": "a"\n}', ["a"]),
        ('["\\ud83d\\ude00 \\" ] , \\\\"]', ['😀 " ] , \\']),
    ],
)
def test_what_an_element_is(data: str, texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes(data.encode())
    assert texts_of(tmp_path / "t.json") == texts


LEAVES = st.none() | st.booleans() | st.integers() | st.text()
VALUES = st.recursive(LEAVES, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=5)


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, max_size=8), st.integers(1, 40), st.sampled_from([None, 2]), st.booleans())
def test_any_array_is_read_in_blocks_of_any_size(
    values: list[object], block: int, indent: int | None, ascii_only: bool
) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    file = InputFile(Path("t.json"), "t.json", "json")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_values, "_BLOCK", block)
        patched.setattr(json_values, "open_bytes", lambda file: io.BytesIO(data))
        assert [value for _, _, (_, value) in json_values.elements(file, 0, 0)] == values


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[{"text": "a"},\n{"text": 3}]', r"line 2 \(row 1\): 'text' is a number, not a string"),
        (b'[{"text": "a"},\n{"body": "b"}]', r"line 2 \(row 1\) has no field 'text'; it has: body"),
        (b'["a",\n null]', r"line 2 \(row 1\): 'text' is null, not a string"),
        (b'["a", ["b"]]', r"line 1 \(row 1\) is an array, not a string or an object"),
        (b'["a",\n"b"', r"line 2 \(row 2\) is not JSON: a comma or the closing bracket .* Is the file cut off"),
        (b'["a",\n"b', r"line 2 \(row 1\) is not JSON: Unterminated string"),
        (b'["a" "b"]', r"row 1\) is not JSON: a comma or the closing bracket"),
        (b'["a",]', r"row 1\) is not JSON: a comma stands before the closing bracket"),
        (b'["a"]\n["b"]', r"line 2 \(row 1\) is not JSON: something follows the closing bracket"),
        (b'["a",\n\n{"text": nope}]', r"line 3 \(row 1\) is not JSON: Expecting value"),
        (b'["a\\ud800"]', r"line 1 \(row 0\): the text holds half of a surrogate pair"),
        (b'["na\xefve"]', r"row 0 or after it, is not UTF-8: byte 0xef at byte 4.*iconv"),
        (b"[" + b"[" * 100_000, r"row 0\) is not JSON"),
        (b'{"rows": [{"text": "a"}]}', r"row 0\) has no field 'text'; it has: rows"),
    ],
)
def test_a_bad_element_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes(data)
    with pytest.raises(InputError, match=message):
        scan(tmp_path / "t.json")


def test_the_lines_of_a_long_file_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_values, "_BLOCK", 50)
    rows = [{"text": f"word {i}"} for i in range(200)]
    (tmp_path / "t.json").write_text(json.dumps([*rows, {"text": 1}], indent=1))
    with pytest.raises(InputError, match=r"line 602 \(row 200\): 'text' is a number"):
        scan(tmp_path / "t.json")


def test_a_value_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mra_export.embedding.lines.MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(json_values, "_BLOCK", 100)
    (tmp_path / "t.json").write_text(json.dumps(["a", "b" * 5000]))
    with pytest.raises(InputError, match=r"row 1\) is not JSON, or a value longer than"):
        scan(tmp_path / "t.json")


def test_strings_have_no_columns(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('["a"]')
    with pytest.raises(InputError, match="row 0\\) is a string, which has no fields; leave out --id-column"):
        scan(tmp_path / "t.json", id_columns=("id",))
