"""The plugin's library: found, of the right version, and for this GPU; or an error that says so."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from engine_support import assert_message, build, run

from mra_export.engine import gpu
from mra_export.errors import DependencyError
from mra_export.outputs import file_sha256
from mra_export.pipeline import build_engine as engine_module


@pytest.mark.parametrize("as_json", [False, True])
def test_no_plugin_library(
    model: Path, rtx: Any, tmp_path: Path, as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mra_export.native import libraries

    monkeypatch.setattr(libraries, "library_dirs", lambda: [tmp_path / "nowhere"])
    extra = ["--json"] if as_json else []
    code, out, err = run("trt", model, "-o", tmp_path / "model.engine", "--backend", "rtx", *extra)
    assert code == 4
    text = json.loads(out)["error"] if as_json else err
    assert_message(text, r"libmra_tensorrt\.so was not found in .*nowhere.* Run `mra-export build tensorrt`")
    assert list(tmp_path.iterdir()) == []


def test_a_plugin_library_that_is_not_there(model: Path, rtx: Any, tmp_path: Path) -> None:
    code, _, err = run(
        "trt", model, "-o", tmp_path / "m.engine", "--backend", "rtx", "--plugin-lib", tmp_path / "no.so"
    )
    assert code == 2
    assert_message(err, r"no\.so does not exist")


def compile_c(folder: Path, name: str, source: str) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc was not found, so no other library can be compiled")
    (folder / f"{name}.c").write_text(source)
    subprocess.run(["gcc", "-shared", "-fPIC", str(folder / f"{name}.c"), "-o", str(folder / f"{name}.so")], check=True)
    return folder / f"{name}.so"


OTHER_LIBRARIES = {
    "nothing": (
        "int nothing;",
        "is not the TensorRT plugin of mra-export: it does not export getCreators, setLoggerFinder, mraBuildInfo",
    ),
    "half": ("const char* mraBuildInfo(void) { return 0; }", "does not export getCreators, setLoggerFinder. Give"),
    "version": (
        'const char* mraBuildInfo(void) { return "{\\"plugin_version\\": \\"2\\"}"; }'
        "void* getCreators(int* n) { *n = 0; return 0; } void setLoggerFinder(void* f) {}",
        "holds version 2 of the plugin Mra2Attention, this mra-export writes version 1. Build it again",
    ),
}


@pytest.mark.parametrize("kind", OTHER_LIBRARIES)
def test_another_library_as_the_plugin(kind: str, model: Path, rtx: Any, tmp_path: Path) -> None:
    source, message = OTHER_LIBRARIES[kind]
    library = compile_c(tmp_path, kind, source)
    output = tmp_path / "model.engine"
    code, _, err = run("trt", model, "-o", output, "--backend", "rtx", "--plugin-lib", library)
    assert code == 2
    assert_message(err, message)
    assert not output.exists()


def test_a_file_that_is_no_library(model: Path, rtx: Any, tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("not a library")
    code, _, err = run(
        "trt", model, "-o", tmp_path / "m.engine", "--backend", "rtx", "--plugin-lib", tmp_path / "text.so"
    )
    assert code == 2
    assert_message(err, "text.so cannot be loaded: .* Build it on this machine with `mra-export build tensorrt`")


def test_two_plugins_in_one_process(model: Path, plugin: Path, rtx: Any, tmp_path: Path) -> None:
    copy = tmp_path / "libmra_tensorrt.so"
    copy.write_bytes(plugin.read_bytes())
    assert build(model, tmp_path / "same.engine", copy).manifest.plugin_sha256 == file_sha256(plugin)
    copy.unlink()
    copy.write_bytes(plugin.read_bytes() + b"a newer build")
    with pytest.raises(DependencyError, match=r"has loaded another plugin, .*; start a new one"):
        build(model, tmp_path / "other.engine", copy)


def test_a_plugin_for_other_gpus(
    model: Path, plugin: Path, rtx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "find_gpus", lambda: (gpu.Gpu("Tesla T4", "7.5"),))
    with pytest.raises(DependencyError, match=r"and Tesla T4 has compute capability 7.5. Run `mra-export build`"):
        build(model, tmp_path / "model.engine", plugin)
