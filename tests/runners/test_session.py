"""Sessions of ONNX Runtime: versions that are too old are named, and its errors become ours."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
from command_line import run
from onnx import TensorProto, helper
from paths import REPO

from mra_export.errors import DependencyError, InputError, is_out_of_memory
from mra_export.runners.session import (
    OLDEST_FOR_LIBRARY,
    check_runtime,
    open_session,
    runtime_errors,
    session_options,
)

LIBRARY = Path("libmra_onnxruntime.so")


def test_the_version_is_that_of_the_library() -> None:
    source = (REPO / "plugins" / "onnxruntime" / "custom_op.h").read_text()
    assert f"kApiVersion = {OLDEST_FOR_LIBRARY[1]};" in source
    assert f"onnxruntime>={OLDEST_FOR_LIBRARY[0]}.{OLDEST_FOR_LIBRARY[1]}" in (REPO / "pyproject.toml").read_text()


@pytest.mark.parametrize("version", ["1.17.0", "1.19.2", "1.20.1", "1.20.0+cu12"])
def test_a_runtime_that_is_too_old_for_the_library(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    words = rf"ONNX Runtime {re.escape(version)} is too old for libmra_onnxruntime\.so, which needs 1\.21 or newer"
    for attempt in (check_runtime, session_options):
        with pytest.raises(DependencyError, match=words):
            attempt(LIBRARY)
    check_runtime(None)
    session_options(None)


@pytest.mark.parametrize("version", ["1.21.0", "1.100.0", "2.0", "1.22.0.dev20250101", "unknown"])
def test_a_runtime_that_is_new_enough(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    check_runtime(LIBRARY)


@pytest.mark.parametrize(
    "arguments",
    [
        ["embed", "{bundle}", "{lines}", "-o", "{tmp}/o.npy"],
        ["onnx", "{checkpoint}", "-o", "{tmp}/o"],
        ["check", "{checkpoint}", "{export}"],
        ["bench", "{export}"],
        ["bundle", "{checkpoint}", "-o", "{tmp}/o"],
        ["bundle", "{export}", "-o", "{tmp}/o"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
@pytest.mark.native
def test_every_command_names_both_versions(
    arguments: list[str],
    embed_bundle: Path,
    tiny_checkpoint: Path,
    tiny_export: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "lines.txt").write_text("word1 word2\n")
    places = {"bundle": embed_bundle, "checkpoint": tiny_checkpoint, "export": tiny_export, "tmp": tmp_path}
    filled = [each.format(lines=tmp_path / "lines.txt", **places) for each in arguments]
    monkeypatch.setattr(onnxruntime, "__version__", "1.19.2")
    assert run(*filled, "-q") == 4
    error = capsys.readouterr().err
    assert "ONNX Runtime 1.19.2 is too old for libmra_onnxruntime.so, which needs 1.21 or newer" in error
    assert [path.name for path in tmp_path.iterdir()] == ["lines.txt"]


def model(ir_version: int = 8, opset: int = 17, op_type: str = "Abs") -> bytes:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node(op_type, ["x"], ["y"])], "g", value[:1], value[1:])
    made: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
    ).SerializeToString()
    return made


@pytest.mark.parametrize(
    ("source", "kind", "words"),
    [
        (model(ir_version=99), DependencyError, r"is too old for m\.onnx: .*IR version.*--opset 17"),
        (model(opset=999), DependencyError, r"is too old for m\.onnx: .*[Oo]pset.*--opset 17"),
        (model(op_type="Frobnicate"), InputError, r"refused m\.onnx: .*Frobnicate"),
        (b"garbage", InputError, r"refused m\.onnx: "),
        ("/nowhere/m.onnx", InputError, r"refused m\.onnx: .*/nowhere/m\.onnx"),
    ],
    ids=["IR version", "opset", "operator", "no protobuf", "no file"],
)
def test_errors_of_the_runtime(source: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=rf"ONNX Runtime {re.escape(onnxruntime.__version__)} {words}"):
        open_session(source, session_options(), shown="m.onnx")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("Failed to allocate memory for requested buffer of size 8"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_lack_of_memory(error: Exception) -> None:
    assert is_out_of_memory(error)
    with pytest.raises(DependencyError, match=r"There is not enough memory to run m\.onnx"), runtime_errors("m.onnx"):
        raise error


def test_what_is_no_lack_of_memory() -> None:
    assert not is_out_of_memory(SimpleNamespace())  # type: ignore[arg-type]
    assert not is_out_of_memory(ValueError("the room is allocated"))
