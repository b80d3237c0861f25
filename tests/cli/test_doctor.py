"""`mra-export doctor`."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
from command_line import run, run_json


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, result = run_json(capsys, "doctor")
    assert code == 0
    assert set(result["libraries"]) == {"onnxruntime", "tensorrt", "openvino"}
    assert result["versions"]["torch"] == importlib.metadata.version("torch")
    assert isinstance(result["gpus"], list)
    import mra_export.native.libraries as libraries

    monkeypatch.setattr(libraries, "library_dirs", lambda: [tmp_path])
    code, result = run_json(capsys, "doctor")
    assert result["libraries"]["onnxruntime"] is None
    assert all(problem["fix"] for problem in result["problems"])
    assert any("mra-export build" in problem["fix"] for problem in result["problems"])
    assert run("doctor") == 0
    assert "fix: mra-export build" in capsys.readouterr().out
