"""CMake finds headers where `scripts/fetch_headers.py` puts them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from paths import REPO

from mra_export.native.headers import headers_cache_dir


@pytest.mark.native
@pytest.mark.parametrize("variable", ["MRA_EXPORT_CACHE_DIR", "XDG_CACHE_HOME", "HOME"])
def test_headers_are_looked_for_where_they_are_fetched_to(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    for name in ("MRA_EXPORT_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv(variable, str(tmp_path))
    folder = headers_cache_dir() / "onnxruntime"
    folder.mkdir(parents=True)
    (folder / "mra_marker.h").touch()
    script = tmp_path / "find.cmake"
    script.write_text(
        f"include({REPO}/plugins/headers.cmake)\nmra_find_onnxruntime(mra_marker.h)\nmessage(STATUS ${{MRA_ONNXRUNTIME_INCLUDE}})\n"
    )
    done = subprocess.run(["cmake", "-P", str(script)], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    assert str(folder) in done.stdout
