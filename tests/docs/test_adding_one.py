"""docs/operators/adding_one.md names files that exist, and what its tables say that a file has is in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operators" / "adding_one.md").read_text(encoding="utf-8")
FOLDERS = ("docs", "kernels", "mra_export", "plugins", "scripts", "tests")
QUOTED = sorted(set(re.findall(r"`([^`\n]+)`", PAGE)))
PATHS = [quoted for quoted in QUOTED if "/" in quoted and " " not in quoted]
FILES = [quoted for quoted in QUOTED if re.fullmatch(r"\w+\.(py|cc|h|inc|cu|cuh|md|toml)", quoted)]
ROWS = re.findall(r"^\| `([^`]+/[^`]+)` \| (.*) \|$", PAGE, re.MULTILINE)


def test_there_is_something_to_look_up() -> None:
    assert len(PATHS) > 25
    assert len(FILES) > 5
    assert len(ROWS) > 15


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_there(path: str) -> None:
    assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_somewhere(name: str) -> None:
    assert (ROOT / name).is_file() or any(any((ROOT / folder).rglob(name)) for folder in FOLDERS)


@pytest.mark.parametrize(("path", "text"), ROWS)
def test_a_file_has_what_the_table_says(path: str, text: str) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    for name in re.findall(r"`(\w+)`", text):
        assert re.search(rf"\b{name}\b", source), f"{path} has no {name}"
