"""OpenVINO's runtime with our extension in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mra_export.errors import DependencyError, InputError
from mra_export.openvino import core


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "libmra_openvino.so"
    path.write_bytes(b"\x7fELF...\0mra-openvino-release=2026.4.1\0...")
    return path


def test_a_library_for_another_release_is_named_with_both(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "release", lambda: "2025.4.0")
    with pytest.raises(
        DependencyError, match=r"built for OpenVINO 2026\.4\.1, and 2025\.4\.0 is .*`mra-export build openvino`"
    ):
        core.check_library(library)
    monkeypatch.setattr(core, "release", lambda: "2026.4.1")
    core.check_library(library)


def test_another_file_is_no_library(tmp_path: Path) -> None:
    path = tmp_path / "x.so"
    path.write_bytes(b"\x7fELF")
    with pytest.raises(
        InputError, match=r"x\.so is not libmra_openvino\.so\. Build it with `mra-export build openvino`"
    ):
        core.check_library(path)


def test_an_error_is_one_line_without_places_in_the_sources() -> None:
    text = "Exception from src/inference/src/cpp/core.cpp:84:\nCheck 'x' failed at y.cpp:1:\nIt is not there.\n\n"
    assert core.first_error(RuntimeError(text)) == "Check 'x' failed at y.cpp:1: It is not there."
    assert core.first_error(RuntimeError("a" * 400)) == "a" * 300 + " ..."


def test_openvino_that_is_missing_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(DependencyError, match=r"OpenVINO is not installed.*mra-export\[openvino\]"):
        core.release()
