"""Compressed inputs: the texts of the file that was packed, whatever they are named, and errors for what is cut off."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from embed_support import TEXTS

from mra_export.embedding.input import ChunkReader, scan
from mra_export.errors import InputError

PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
FILES = {
    "t.txt": "".join(f"{text}\n" for text in TEXTS),
    "t.jsonl": "".join(json.dumps({"text": text}) + "\n" for text in TEXTS),
    "t.json": json.dumps(TEXTS),
    "t.csv": "text\n" + "".join(f'"{text}"\n' for text in TEXTS),
}


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("name", FILES)
def test_a_packed_file_gives_the_texts_of_the_plain_one_in_any_order(name: str, suffix: str, tmp_path: Path) -> None:
    data = FILES[name].encode()
    for packed in (PACK[suffix](data), PACK[suffix](data[:999]) + PACK[suffix](data[999:])):
        (tmp_path / (name + suffix)).write_bytes(packed)
        source = scan(tmp_path / (name + suffix), chunk_rows=40)
        assert (source.rows, source.bytes) == (300, len(packed))
        reader = ChunkReader(source)
        chunks = [*source.chunks[::-1], *source.chunks]
        random.Random(1).shuffle(chunks)
        for chunk in [*source.chunks, *chunks]:
            assert reader.texts(chunk) == TEXTS[chunk.first_row : chunk.first_row + chunk.rows]


@pytest.mark.parametrize("suffix", PACK)
def test_what_is_cut_off_or_not_packed_is_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"t.txt{suffix}"
    path.write_bytes(PACK[suffix](FILES["t.txt"].encode())[:-20])
    with pytest.raises(InputError, match=rf"t.txt{suffix} cannot be unpacked .* cut off or damaged; copy it again"):
        scan(path)
    path.write_text(FILES["t.txt"])
    with pytest.raises(InputError, match=rf"is not compressed, though its name ends in {suffix}. Rename it"):
        scan(path)
    (tmp_path / "t.txt").write_bytes(PACK[suffix](FILES["t.txt"].encode()))  # as a browser may save it
    assert scan(tmp_path / "t.txt").rows == 300


def test_a_zst_file_with_a_long_window_is_not_called_damaged(tmp_path: Path) -> None:
    block = (3 << 3 | 1).to_bytes(3, "little") + b"a\nb"
    for descriptor, log in ((0x50, 20), (0xA8, 31)):  # of the window: 10 more than the upper five bits
        (tmp_path / "t.txt.zst").write_bytes(b"\x28\xb5\x2f\xfd\x00" + bytes([descriptor]) + block)
        if log == 20:
            assert scan(tmp_path / "t.txt.zst").rows == 2
            continue
        with pytest.raises(
            InputError, match=r"packed with a window of more than 128 MiB.*`zstd -dc --long=31 .*t\.txt\.zst \|"
        ):
            scan(tmp_path / "t.txt.zst")


def test_the_contents_decide_and_not_a_beginning_that_is_text(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("BZh9 is how an archive begins\n")
    assert scan(tmp_path / "t.txt").rows == 1
    (tmp_path / "t.parquet.gz").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"t\.parquet\.gz is packed once more; a parquet file packs its columns itself"
    ):
        scan(tmp_path / "t.parquet.gz")
