"""Where libraries and headers are found, what is built, and what is said where something is missing."""

from __future__ import annotations

import ctypes
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from paths import REPO

import mra_export.native.build as build_module
import mra_export.native.headers as headers_module
import mra_export.native.libraries as libraries_module
from mra_export.errors import DependencyError, InputError
from mra_export.native.build import build_libraries, find_sources
from mra_export.native.headers import Headers, fetch_headers, find_headers, headers_cache_dir
from mra_export.native.libraries import (
    LIBRARY_FILES,
    built_for,
    find_library,
    not_built_file,
    not_built_note,
    onnxruntime_library,
    tensorrt_library,
    user_library_dir,
)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Empty directories in the places of the environment's, the package's and the user's."""
    found = {name: tmp_path / name for name in ("environment", "package", "cache")}
    for directory in found.values():
        directory.mkdir()
    monkeypatch.setenv("MRA_EXPORT_LIB_DIR", str(found["environment"]))
    monkeypatch.setenv("MRA_EXPORT_CACHE_DIR", str(found["cache"]))
    for module in (libraries_module, build_module):
        monkeypatch.setattr(module, "package_library_dir", lambda: found["package"])
    found["user"] = user_library_dir()
    found["user"].mkdir(parents=True)
    for name in ("MRA_ONNXRUNTIME_INCLUDE", "MRA_TENSORRT_INCLUDE"):
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.mark.parametrize("kind", LIBRARY_FILES)
def test_the_nearest_library_is_found(kind: str, places: dict[str, Path], tmp_path: Path) -> None:
    assert find_library(kind) is None
    for place in ("user", "package", "environment"):  # each comes before those before it
        file = places[place] / LIBRARY_FILES[kind]
        file.touch()
        assert find_library(kind) == file
    named = tmp_path / "mine.so"
    named.touch()
    assert find_library(kind, named) == named
    assert find_library(kind, places["user"]) == places["user"] / LIBRARY_FILES[kind]


def test_a_missing_library_names_the_command(places: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DependencyError, match=r"libmra_onnxruntime.so was not found in .*Run `mra-export build`"):
        onnxruntime_library()
    with pytest.raises(DependencyError, match=r"libmra_tensorrt.so was not found in .*Run `mra-export build tensorrt`"):
        tensorrt_library()
    with pytest.raises(InputError, match=r"nowhere.so does not exist. Give the path of libmra_onnxruntime.so"):
        onnxruntime_library(tmp_path / "nowhere.so")


def make_headers(directory: Path, version: int) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "onnxruntime_c_api.h").write_text(f"#pragma once\n#define ORT_API_VERSION {version}\n")
    return directory


def test_headers_are_found_in_order(places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = tmp_path / "system"
    kind = headers_module._KINDS["onnxruntime"]
    monkeypatch.setitem(headers_module._KINDS, "onnxruntime", kind._replace(system_dirs=(str(system),)))
    assert find_headers("onnxruntime") is None
    make_headers(headers_cache_dir() / "onnxruntime", 22)
    found = find_headers("onnxruntime")
    assert found is not None
    assert (found.version, found.source) == ("API 22", "cache")
    make_headers(system, 20)  # too old: passed by
    assert find_headers("onnxruntime") == found
    make_headers(system, 21)
    assert find_headers("onnxruntime").source == "system"  # type: ignore[union-attr]
    monkeypatch.setenv("MRA_ONNXRUNTIME_INCLUDE", str(make_headers(tmp_path / "named", 31)))
    assert find_headers("onnxruntime").version == "API 31"  # type: ignore[union-attr]
    make_headers(tmp_path / "named", 20)
    with pytest.raises(InputError, match=r"headers of version API 20; at least API 21 is needed"):
        find_headers("onnxruntime")
    with pytest.raises(InputError, match=r"has no onnxruntime headers: onnxruntime_c_api.h"):
        find_headers("onnxruntime", tmp_path)


@pytest.mark.parametrize("form", ["directory", "tgz", "zip"])
def test_headers_are_taken_from_a_release(form: str, places: dict[str, Path], tmp_path: Path) -> None:
    release = tmp_path / "onnxruntime-linux-x64-1.23.0"
    make_headers(release / "include", 23)
    archive = release
    if form == "tgz":
        archive = tmp_path / "release.tgz"
        with tarfile.open(archive, "w:gz") as bundle:
            bundle.add(release, arcname="../../outside")  # no path of an archive is trusted
    elif form == "zip":
        archive = tmp_path / "release.zip"
        with zipfile.ZipFile(archive, "w") as bundle:
            bundle.write(release / "include" / "onnxruntime_c_api.h", "a/include/onnxruntime_c_api.h")
    headers = fetch_headers("onnxruntime", archive=archive)
    assert headers.version == "API 23"
    assert headers.path == places["cache"] / "headers" / "onnxruntime"
    assert (len(headers.sha256) == 64) == (form != "directory")
    assert (headers.path / "onnxruntime_c_api.h").is_file()
    again = find_headers("onnxruntime", headers.path)
    assert again is not None
    with pytest.raises(InputError, match="does not exist"):
        fetch_headers("onnxruntime", archive=tmp_path / "nothing.tgz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no onnxruntime_c_api.h. Download the release archive"):
        fetch_headers("onnxruntime", archive=tmp_path / "empty")
    assert (headers.path / "onnxruntime_c_api.h").is_file(), "what was there stays where nothing new comes"


def test_without_apt_it_is_said_what_to_do(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DependencyError, match=r"apt-get is not here. Download the release archive"):
        fetch_headers("onnxruntime", progress=lambda line: None)


@pytest.mark.native
def test_the_library_is_built_and_replaced_in_one_step(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MRA_EXPORT_CACHE_DIR")  # the headers that the other tests have found or fetched
    unoptimized = ["-DCMAKE_BUILD_TYPE=None"]  # the compiler takes a third of the time
    (result,) = build_libraries(["onnxruntime"], jobs=2, cmake_args=unoptimized)
    assert result.path == places["package"] / "libmra_onnxruntime.so", result.detail
    assert "headers API" in result.detail
    assert ctypes.CDLL(str(result.path)).RegisterCustomOps
    monkeypatch.setenv("CXXFLAGS", "-DMRA_SYNTAX_ERROR -include /nowhere.h")
    inode = result.path.stat().st_ino
    (failed,) = build_libraries(["onnxruntime"])
    assert failed.failed
    assert failed.path is None
    assert "exit code" in failed.detail
    assert result.path.stat().st_ino == inode
    assert [path.name for path in places["package"].iterdir()] == ["libmra_onnxruntime.so"]


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        ("find_sources", "onnxruntime", "The native sources are not here"),
        ("find_tool", "onnxruntime", "cmake was not found. Run `apt-get install cmake"),
        ("find_headers", "onnxruntime", "The headers of onnxruntime were not found"),
        ("find_nvcc", "tensorrt", "nvcc was not found. Install the CUDA toolkit"),
    ],
)
def test_what_is_missing_is_named_and_nothing_fails(
    function: str, kind: str, message: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", sys.executable)  # a compiler is there, as is CMake, unless one is what is missing
    monkeypatch.setattr(build_module, "find_tool", lambda name: sys.executable)
    monkeypatch.setattr(build_module, function, lambda *arguments: None)
    (result,) = build_libraries([kind], fetch=False)
    assert result.path is None
    assert not result.failed
    assert message in result.detail


@pytest.mark.parametrize(
    ("gpu", "provider", "kinds", "cuda", "expected"),
    [
        (False, False, [], None, {"onnxruntime": "OFF"}),
        (True, False, [], None, {"onnxruntime": "OFF", "tensorrt": "ON"}),
        (False, True, [], None, {"onnxruntime": "ON"}),
        (False, False, [], True, {"onnxruntime": "ON", "tensorrt": "ON"}),
        (True, True, [], False, {"onnxruntime": "OFF"}),
        (False, False, ["tensorrt"], None, {"tensorrt": "ON"}),
        (False, False, ["onnxruntime"], True, {"onnxruntime": "ON"}),
    ],
)
def test_code_for_gpus_is_compiled_where_one_is_or_where_it_is_asked_for(
    gpu: bool,
    provider: bool,
    kinds: list[str],
    cuda: bool | None,
    expected: dict[str, str],
    places: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """nvcc is here in each case; that alone is no wish."""
    calls: dict[str, str] = {}

    def compile_target(
        cmake: str, sources: Path, tree: Path, target: str, arguments: list[str], jobs: int | None
    ) -> str:
        calls[target.removeprefix("mra_")] = "ON" if any("CMAKE_CUDA_COMPILER" in each for each in arguments) else "OFF"
        return "not compiled here"

    monkeypatch.setattr(build_module, "has_gpu", lambda: gpu)
    monkeypatch.setattr(build_module, "find_openvino", lambda: None)
    monkeypatch.setattr(build_module, "_has_cuda_provider", lambda: provider)
    monkeypatch.setattr(build_module, "find_nvcc", lambda: "/usr/local/cuda/bin/nvcc")
    monkeypatch.setattr(build_module, "_tools", lambda: ("cmake", "c++"))
    monkeypatch.setattr(build_module, "_headers", lambda *_: Headers("any", tmp_path, "1", "here"))
    monkeypatch.setattr(build_module, "compile_target", compile_target)
    results = build_libraries(kinds, cuda=cuda)
    assert [result.kind for result in results] == list(expected)
    assert calls == expected


def test_what_the_installation_left_out_is_said(places: dict[str, Path]) -> None:
    note = not_built_note()
    assert note is not None
    assert note.endswith("by their slower function body. Run `mra-export build`.")
    not_built_file("onnxruntime", places["package"]).write_text("The headers were not found.\n")
    assert str(not_built_note()).endswith(
        "Run `mra-export build`. The installation left it out: The headers were not found."
    )
    assert "Run `mra-export build tensorrt`." in str(not_built_note("tensorrt"))
    (places["package"] / LIBRARY_FILES["onnxruntime"]).touch()
    assert not_built_note() is None


@pytest.mark.parametrize("wheels", [True, False], ids=["wheels", "toolkit"])
def test_nvcc_of_the_wheels_is_told_where_the_runtime_is(
    wheels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVIDIA's wheels keep the runtime in lib, where their nvcc does not look, and without a libcudart.so, which CMake wants."""
    lib = tmp_path / "cu13" / ("lib" if wheels else "lib64")
    for path in (lib / "libcudart_static.a", lib / "libcudart.so.13", tmp_path / "cu13" / "bin" / "nvcc"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    nvcc = str(tmp_path / "cu13" / "bin" / "nvcc")
    cmake = tmp_path / "cmake"
    cmake.write_text(f'#!/bin/sh\necho "$LIBRARY_PATH|$@" >> {tmp_path}/calls\nexit 1\n')
    cmake.chmod(0o755)
    monkeypatch.setattr(build_module, "find_nvcc", lambda: nvcc)
    monkeypatch.setattr(build_module, "_tools", lambda: (str(cmake), "c++"))
    monkeypatch.setattr(build_module, "_headers", lambda *_: Headers("tensorrt", tmp_path, "10.14", "here"))
    monkeypatch.setenv("LIBRARY_PATH", "/before")
    (result,) = build_libraries(["tensorrt"], output_dir=tmp_path / "out")
    assert result.failed
    path, _, arguments = (tmp_path / "calls").read_text().partition("|")
    assert f"-DCMAKE_CUDA_COMPILER={nvcc}" in arguments
    assert (f"-DCUDA_CUDART={lib / 'libcudart.so.13'}" in arguments) == wheels
    assert path == (f"{lib}:/before" if wheels else "/before")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InputError, match="no library of kind 'tvm'; choose of onnxruntime, tensorrt, openvino"):
        build_libraries(["tvm"])


def test_openvinos_extension_is_compiled_where_openvino_is(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def compile_target(
        cmake: str, sources: Path, tree: Path, target: str, arguments: list[str], jobs: int | None
    ) -> str:
        calls.append([target, *arguments])
        return "not compiled here"

    monkeypatch.setattr(build_module, "has_gpu", lambda: False)
    monkeypatch.setattr(build_module, "_tools", lambda: ("cmake", "c++"))
    monkeypatch.setattr(build_module, "_headers", lambda *_: Headers("any", tmp_path, "1", "here"))
    monkeypatch.setattr(build_module, "compile_target", compile_target)
    monkeypatch.setattr(build_module.importlib.metadata, "version", lambda name: "2026.4.1")
    monkeypatch.setattr(build_module, "find_openvino", lambda: tmp_path / "cmake")
    assert [result.kind for result in build_libraries()] == ["onnxruntime", "openvino"]
    assert calls[-1] == [
        "mra_openvino",
        "-UMRA_*",
        "-DMRA_ONNXRUNTIME=OFF",
        "-DMRA_OPENVINO=ON",
        f"-DOpenVINO_DIR={tmp_path / 'cmake'}",
    ]
    monkeypatch.setattr(build_module, "find_openvino", lambda: None)
    assert [result.kind for result in build_libraries()] == ["onnxruntime"]
    (result,) = build_libraries(["openvino"])
    assert not result.failed
    assert "OpenVINO was not found. Run `pip install 'mra-export[openvino]'`." in result.detail


def test_a_library_says_for_which_openvino_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.so"
    path.write_bytes(b"\0mra-openvino-release=2026.4.1\0")
    assert built_for(path) == "2026.4.1"
    path.write_bytes(b"\x7fELF")
    assert built_for(path) is None


def test_the_sources_are_those_of_the_checkout() -> None:
    assert find_sources() == REPO
