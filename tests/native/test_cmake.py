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
@pytest.mark.parametrize("form", ["option", "relative variable"])
def test_the_cache_can_be_named(form: str, tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    folder = tmp_path / "named" / "headers" / "onnxruntime"
    folder.mkdir(parents=True)
    (folder / "mra_marker.h").touch()
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(find LANGUAGES NONE)\n"
        f"include({REPO}/plugins/headers.cmake)\nmra_find_onnxruntime(mra_marker.h)\n"
    )
    env = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": "", "MRA_EXPORT_CACHE_DIR": "", "PWD": str(tmp_path)}
    command = ["cmake", "-S", ".", "-B", "build"]
    if form == "option":
        command.append("-DMRA_EXPORT_CACHE_DIR=named")
    else:
        env["MRA_EXPORT_CACHE_DIR"] = "named"
    subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert f"MRA_ONNXRUNTIME_INCLUDE:PATH={folder}\n" in (tmp_path / "build" / "CMakeCache.txt").read_text()


@pytest.mark.native
@pytest.mark.parametrize("version", [20, 21])
def test_headers_that_are_too_old_are_refused(version: int, tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    folder = tmp_path / "headers" / "onnxruntime"
    folder.mkdir(parents=True)
    (folder / "onnxruntime_c_api.h").write_text(f"#define ORT_API_VERSION {version}\n")
    script = tmp_path / "find.cmake"
    script.write_text(f"include({REPO}/plugins/headers.cmake)\nmra_find_onnxruntime(onnxruntime_c_api.h)\n")
    env = {**os.environ, "MRA_EXPORT_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(["cmake", "-P", str(script)], capture_output=True, text=True, env=env, check=False)
    assert (done.returncode == 0) == (version >= 21), done.stderr
    assert ("ONNX Runtime 1.20; 1.21 or newer is needed" in " ".join(done.stderr.split())) == (version < 21)


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
