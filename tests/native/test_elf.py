"""A library that was cut off is told before it is loaded; anything else is left to the loader."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from mra_export.errors import InputError
from mra_export.native.elf import check_whole, cut_off


@pytest.fixture(scope="module")
def library() -> Path:
    """A shared library that every Python has loaded."""
    mapped = (line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libc.so" in line)
    found = next(mapped, None)
    if found is None:
        pytest.skip("this process has no libc.so")
    return Path(found)


def test_a_whole_library_is_left_alone(library: Path) -> None:
    assert cut_off(library) == ""
    assert cut_off(Path(sys.executable).resolve()) == ""
    check_whole(library)


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.5, 0.9, 0.9999])
def test_a_library_that_was_cut_off(share: float, library: Path, tmp_path: Path) -> None:
    content = library.read_bytes()
    short = tmp_path / "short.so"
    short.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=rf"short\.so has {short.stat().st_size} bytes, .* it was cut off or damaged"):
        check_whole(short)


def test_a_library_without_its_last_byte(library: Path, tmp_path: Path) -> None:
    content = library.read_bytes()
    (tmp_path / "short.so").write_bytes(content[:-1])
    assert f"say that it has {len(content)} at least" in cut_off(tmp_path / "short.so")


def elf(bits: int, offset: int, size: int, sections_at: int = 0) -> bytes:
    """The headers of a library with one segment that is loaded, and one that is not and reaches beyond any file."""
    ident = b"\x7fELF" + bytes([1 if bits == 32 else 2, 1 if sys.byteorder == "little" else 2, 1]) + bytes(9)
    word = "I" if bits == 32 else "Q"
    head = 16 + struct.calcsize(f"=HHI{word * 3}IHHHHHH")
    segment_bytes = 32 if bits == 32 else 56
    header = struct.pack(f"=HHI{word * 3}IHHHHHH", 3, 62, 1, 0, head, sections_at, 0, head, segment_bytes, 2, 64, 3, 0)
    if bits == 32:
        segments = struct.pack("=8I", 1, offset, 0, 0, size, size, 5, 1) + struct.pack(
            "=8I", 4, 1 << 31, 0, 0, 1, 1, 4, 1
        )
    else:
        segments = struct.pack("=IIQQQQQQ", 1, 5, offset, 0, 0, size, size, 1)
        segments += struct.pack("=IIQQQQQQ", 4, 4, 1 << 62, 0, 0, 1, 1, 1)
    return ident + header + segments


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(
    ("offset", "size", "sections_at", "end"),
    [(0, 500, 0, 500), (400, 100, 0, 500), (0, 10, 308, 500), (0, 501, 0, 501), (401, 100, 0, 501), (0, 10, 309, 501)],
)
def test_segments_and_tables_count(
    bits: int, offset: int, size: int, sections_at: int, end: int, tmp_path: Path
) -> None:
    """A file of 500 bytes: by the last segment, or by the table of sections, which has three entries of 64."""
    file = tmp_path / "made.so"
    file.write_bytes(elf(bits, offset, size, sections_at).ljust(500, b"\0"))
    assert (cut_off(file) == "") == (end <= 500)
    assert (f"has {end} at least" in cut_off(file)) == (end > 500)


@pytest.mark.parametrize(
    "content", [b"", b"\x7fEL", b"\x7fELF", b"not a library", b"\x7fELF\x09\x01".ljust(500, b"\0")]
)
def test_what_the_loader_refuses_itself_is_left_to_it(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "made.so").write_bytes(content)
    assert cut_off(tmp_path / "made.so") == ""
    assert cut_off(tmp_path / "none.so") == ""
    assert cut_off(tmp_path) == ""


@pytest.mark.native
def test_onnx_runtime_does_not_get_a_library_that_was_cut_off(tmp_path: Path) -> None:
    """In a process of its own: it would end the process."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from mra_export.native.libraries import find_library

    whole = find_library("onnxruntime")
    if whole is None:
        pytest.skip("the native library is not built")
    short = Path(shutil.copyfile(whole, tmp_path / "short.so"))
    short.write_bytes(short.read_bytes()[: whole.stat().st_size // 3])
    code = "import sys, pathlib\nfrom mra_export.runners.session import session_options\nsession_options(pathlib.Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(short)], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.returncode
    assert "it was cut off or damaged. Copy it again" in done.stderr
