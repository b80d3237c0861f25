"""Text in another encoding is named by it, with the command that converts it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from mra_export.embedding.encodings import encoding_of
from mra_export.embedding.input import ChunkReader, scan
from mra_export.errors import InputError

TEXTS = {
    "ascii": "plain text\r\nsecond line\r\n",
    "latin": "naïve café\nÉté à Zürich\n",
    "polish": "zażółć gęślą jaźń\nłódź\n",
    "cyrillic": "Привет, мир\nзима и лето\n",  # noqa: RUF001 (it is Cyrillic)
    "greek": "Καλημέρα κόσμε\nπώς είσαι\n",
    "arabic": "مرحبا بالعالم\nكيف حالك\n",
    "hindi": "हिन्दी में पाठ\nदूसरी पंक्ति\n",
    "japanese": "日本語 テキスト\n東京\n",
    "emoji": "smile 😀 there\nand 👩‍🔬 here\n",
}


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", TEXTS)
def test_utf_16_and_32_are_told_from_utf_8(codec: str, text: str) -> None:
    name = encoding_of(TEXTS[text].encode(codec))
    assert name == codec.upper().replace("-LE", "LE").replace("-BE", "BE")
    assert encoding_of((TEXTS[text] * 3000).encode(codec)[: 64 << 10]) == name
    assert encoding_of(TEXTS[text].encode()) is None


@pytest.mark.parametrize(
    "data", [b"", b"a", b"a\x00", b"\x00", b"abc\x00def\x00ghi\n", b"1\n2\n3\n", b"a\x00\n" * 9, b"word\x00\n" * 99]
)
def test_a_zero_byte_alone_makes_no_other_encoding(data: bytes) -> None:
    found = encoding_of(data)
    assert found is None or data == b"a\x00"  # which may be either


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv", "json"])
def test_a_file_in_utf_16_is_named_with_the_command_that_converts_it(suffix: str, tmp_path: Path) -> None:
    whole = {
        "txt": "naïve\nline\n",
        "jsonl": '{"text": "naïve"}\n{"text": "line"}\n',
        "csv": "text\nnaïve\nline\n",
        "json": '["naïve", "line"]',
    }[suffix]
    for codec, encoding in (("utf-16", "UTF-16"), ("utf-16-le", "UTF-16LE"), ("utf-32-be", "UTF-32BE")):
        path = tmp_path / f"t.{suffix}"
        path.write_bytes(whole.encode(codec))
        with pytest.raises(InputError, match=rf"is {encoding}, not UTF-8\. .*`iconv -f {encoding} -t UTF-8`") as caught:
            scan(path)
        command = re.search(r"`(.*)`", str(caught.value))
        assert command is not None
        path.write_bytes(subprocess.run([*command[1].split(), path], check=True, capture_output=True).stdout)
        source = scan(path)
        assert ChunkReader(source).texts(source.chunks[0]) == ["naïve", "line"]


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("cyrillic", "cp1251"),
        ("cyrillic", "koi8-r"),
        ("greek", "cp1253"),
        ("japanese", "shift_jis"),
        ("japanese", "gb18030"),
    ],
)
def test_a_text_that_is_not_western_is_not_called_so(text: str, codec: str, tmp_path: Path) -> None:
    """What WINDOWS-1252 would make of it is garbage, and taken for text."""
    for name, data in (("t.txt", TEXTS[text]), ("t.csv", f"id,text\n1,{TEXTS[text].splitlines()[0]}\n")):
        (tmp_path / name).write_bytes(data.encode(codec))
        with pytest.raises(
            InputError, match=r"is not UTF-8: byte .*Convert the file from what it is in.*iconv -f ENCODING"
        ):
            scan(tmp_path / name)


def test_a_western_text_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(TEXTS["latin"].encode("cp1252"))
    with pytest.raises(InputError, match=r"is not UTF-8: byte .*iconv -f WINDOWS-1252"):
        scan(tmp_path / "t.txt")


def test_other_bytes_get_other_advice(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes("Stra\xdfe\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"line 1 \(row 0\) is not UTF-8: byte 0xdf at byte 4.*WINDOWS-1252"):
        scan(tmp_path / "t.txt")
    (tmp_path / "t.txt").write_bytes(b"PK\x03\x04\x14\x00\x06\x00\x08\x00\x00\x00!\x00\xe9\xff" * 9)
    with pytest.raises(InputError, match=r"is not UTF-8: .* looks like no text at all; is it the right one"):
        scan(tmp_path / "t.txt")
    # The end of the file is in UTF-16, as `Add-Content` of PowerShell leaves it.
    (tmp_path / "t.txt").write_bytes(b"first\n" + "zweite Größe\n".encode("utf-16"))
    with pytest.raises(InputError, match=r"line 2 \(row 1\) is not UTF-8: byte 0xff at byte 0"):
        scan(tmp_path / "t.txt")
