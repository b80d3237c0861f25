"""`mra-export build`: what it compiles where nothing is named; and that a user is told of what was not compiled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mra_export.native.build as build_module
import mra_export.native.libraries as libraries_module
from mra_export.cli import main
from mra_export.native.build import BuildResult


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool | None]]:
    """Which libraries were to be compiled, and with what wish for CUDA; nothing is compiled."""
    calls: list[tuple[str, bool | None]] = []

    def build(kind: str, _tree: Path, cuda: bool | None, *_: Any) -> BuildResult:
        calls.append((kind, cuda))
        return BuildResult(kind, Path(f"/lib/{kind}.so"), "made")

    monkeypatch.setattr(build_module, "_build", build)
    monkeypatch.setattr(build_module, "has_gpu", lambda: False)
    monkeypatch.setattr(build_module, "find_openvino", lambda: None)
    return calls


@pytest.mark.parametrize(
    ("arguments", "expected", "said"),
    [
        ([], [("onnxruntime", None)], "tensorrt: left out, as no GPU is here; `mra-export build tensorrt` compiles it"),
        (["--no-cuda"], [("onnxruntime", False)], "tensorrt: left out, as --no-cuda says"),
        (["--cuda"], [("onnxruntime", True), ("tensorrt", True)], "tensorrt: /lib/tensorrt.so"),
        (["tensorrt"], [("tensorrt", None)], "tensorrt: /lib/tensorrt.so"),
    ],
    ids=str,
)
def test_code_for_gpus_is_asked_for(
    arguments: list[str],
    expected: list[tuple[str, bool | None]],
    said: str,
    asked: list[tuple[str, bool | None]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["build", *arguments, "-q"])
    assert stop.value.code == 0
    assert asked == expected
    assert said in capsys.readouterr().out


@pytest.mark.slow
def test_an_export_says_that_the_native_library_is_not_built(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MRA_EXPORT_LIB_DIR", raising=False)
    monkeypatch.setenv("MRA_EXPORT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(libraries_module, "package_library_dir", lambda: tmp_path)
    (tmp_path / "libmra_onnxruntime.so.not-built").write_text("cmake was not found.\n")
    for command, output in (("onnx", "o"), ("bundle", "b")):
        with pytest.raises(SystemExit) as stop:
            main([command, str(tiny_checkpoint), "-o", str(tmp_path / output), "--no-check", "-q"])
        assert stop.value.code == 0
        said = capsys.readouterr().out
        assert "Run `mra-export build`" in said
        assert ("The installation left it out: cmake was not found." in said) == (command == "onnx")
    with pytest.raises(SystemExit):
        main(["doctor", "--json"])
    texts = [problem["text"] for problem in json.loads(capsys.readouterr().out)["problems"]]
    assert any("The installation left it out: cmake was not found." in text for text in texts)
