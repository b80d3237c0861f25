"""ONNX Runtime's telemetry is off in every process of ours, unless the user has said otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mra_export.quiet import TELEMETRY_SWITCH, quiet_onnxruntime


@pytest.mark.parametrize(
    ("before", "after", "stopped"), [(None, "1", True), ("1", "1", True), ("0", "0", False), ("", "", False)]
)
def test_what_the_user_has_set_counts(
    before: str | None, after: str, stopped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TELEMETRY_SWITCH, raising=False)
    if before is not None:
        monkeypatch.setenv(TELEMETRY_SWITCH, before)
    calls: list[str] = []
    monkeypatch.setitem(
        sys.modules, "onnxruntime", SimpleNamespace(disable_telemetry_events=lambda: calls.append("off"))
    )
    quiet_onnxruntime()
    assert os.environ[TELEMETRY_SWITCH] == after
    assert bool(calls) == stopped


def test_an_older_runtime_has_nothing_to_turn_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TELEMETRY_SWITCH, "1")
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    quiet_onnxruntime()


@pytest.mark.slow
def test_embed_leaves_nothing_in_the_home_directory(embed_bundle: Path, tmp_path: Path) -> None:
    """With telemetry on there is an identifier of the machine under .cache; see the last lines of the C++ tests for that."""
    (tmp_path / "texts.txt").write_text("One text.\nAnother text.\n")
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in (TELEMETRY_SWITCH, "XDG_CACHE_HOME")}
    command = [sys.executable, "-m", "mra_export", "embed", str(embed_bundle), "texts.txt", "-o", "vectors.npy", "-q"]
    subprocess.run(command, cwd=tmp_path, env={**kept, "HOME": str(home)}, check=True, capture_output=True)
    assert not [path for path in home.rglob("*") if "icrosoft" in str(path) or "onnxruntime" in path.name]
