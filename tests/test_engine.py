"""`mra-export trt`: real engines, built ahead of time by TensorRT-RTX with the real plugin; no GPU is needed."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import save_checkpoint
from onnx import TensorProto, helper, numpy_helper

from mra_export.checkpoint.load import load_checkpoint
from mra_export.engine import backend as tensorrt_backend
from mra_export.engine import gpu
from mra_export.engine.builder import inspected_types
from mra_export.engine.manifest import check_engine, manifest_path, read_manifest
from mra_export.engine.plugin import load_plugin
from mra_export.engine.ranges import Range, parse_range
from mra_export.errors import DependencyError, InputError, MraExportError
from mra_export.export.exporter import export_onnx
from mra_export.export.onnx_model import find_onnx, read_onnx
from mra_export.outputs import file_sha256
from mra_export.pipeline import build_engine as engine_module
from mra_export.pipeline.build_engine import EngineResult, build_engine

sys.path.insert(0, str(Path(__file__).parent / "tensorrt"))

CLASSES = {
    "feature-extraction": "MraModel",
    "fill-mask": "MraForMaskedLM",
    "text-classification": "MraForSequenceClassification",
    "multiple-choice": "MraForMultipleChoice",
    "token-classification": "MraForTokenClassification",
    "question-answering": "MraForQuestionAnswering",
}
TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}


@pytest.fixture(scope="session")
def plugin() -> Path:
    """libmra_tensorrt.so, compiled from this tree."""
    from test_plugin import plugin_library

    return plugin_library()


@pytest.fixture(scope="session")
def rtx(plugin: Path) -> tensorrt_backend.Backend:
    """TensorRT-RTX with the plugin loaded."""
    pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx is not installed")
    pytest.importorskip("polygraphy", reason="the package polygraphy is not installed")
    backend = tensorrt_backend.open_backend("rtx")
    for name in ("Mra2Attention", "YosoAttention"):
        load_plugin(backend, plugin, name)
    return backend


@pytest.fixture(scope="session", params=CLASSES)
def task_checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    return load_checkpoint(save_checkpoint(folder / "checkpoint", CLASSES[request.param]))


def build(onnx_file: Path, output: Path, plugin: Path, **options: Any) -> EngineResult:
    return build_engine(onnx_file, output, backend="rtx", library=plugin, **options)


# Engines of every task and type.


@pytest.mark.parametrize("dtype", TYPES)
def test_every_task_in_every_type(
    task_checkpoint: Any, dtype: str, rtx: tensorrt_backend.Backend, plugin: Path, tmp_path: Path
) -> None:
    model = export_onnx(task_checkpoint, tmp_path / "onnx", dtype=dtype).model
    result = build(model, tmp_path / "model.engine", plugin, dtype=dtype)
    made = check_engine(
        result.engine, backend="rtx", backend_version=rtx.version, compute_capability="9.0", plugin=plugin
    )
    assert made == result.manifest
    assert made.task == task_checkpoint.task.name
    assert made.plugin_layers == 2
    assert made.precision == dtype
    assert made.tensor_types[TYPES[dtype]] > 100
    assert set(made.tensor_types) - {"INT64", "INT32", "BOOL", "FLOAT"} == ({TYPES[dtype]} - {"FLOAT"})
    if dtype != "fp32":
        assert made.tensor_types["FLOAT"] == len(made.outputs)  # the casts of the outputs, and nothing else
    assert tuple(made.outputs) == task_checkpoint.task.outputs
    assert made.onnx_sha256 == file_sha256(model)
    assert made.attributes == [pytest.approx(task_checkpoint.family.attributes(task_checkpoint.config).as_dict())]
    axes = ["batch", "choices", "sequence"] if made.task == "multiple-choice" else ["batch", "sequence"]
    assert set(result.profiles) == set(axes)
    assert made.inputs["input_ids"]["max"] == [result.profiles[axis]["max"] for axis in axes]
    assert result.profiles["sequence"] == {"min": 1, "opt": 128, "max": 256}
    # An engine holds the weights: float32 ones take twice the room.
    weights = sum(i.nbytes for i in map(numpy_helper.to_array, onnx.load(model).graph.initializer))
    assert made.engine_bytes > weights


def test_minilm_through_the_command_line(minilm: Path, plugin: Path, rtx: Any, tmp_path: Path) -> None:
    output = tmp_path / "minilm.engine"
    options = ["--fp16", "--backend", "rtx", "--plugin-lib", plugin, "--batch", "1:4:16", "--seq-len", "8:64:256"]
    code, out, err = run("trt", minilm, "-o", output, *options, "--no-check", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["ok"]
    assert result["command"] == "trt"
    assert result["outputs"] == [str(output), f"{output}.json"]
    assert result["backend"] == "rtx"
    assert result["plugin_layers"] == 6
    assert result["precision"] == "fp16"
    assert result["profiles"] == {
        "batch": {"min": 1, "opt": 4, "max": 16},
        "sequence": {"min": 8, "opt": 64, "max": 256},
    }
    assert result["model_outputs"] == ["last_hidden_state", "sentence_embedding"]
    assert result["comparisons"] == []
    assert "building minilm.engine" in err
    manifest = read_manifest(output)
    assert manifest.parity is None
    assert manifest.outputs == result["model_outputs"]
    assert 40e6 < manifest.engine_bytes < 60e6
    # Pooling and the outputs are float32, all else is float16.
    assert manifest.tensor_types["HALF"] > 300
    assert manifest.tensor_types["FLOAT"] < 20


@pytest.fixture
def short_checkpoint(tmp_path: Path) -> Path:
    """Compared in a moment: one layer and 32 tokens."""
    return save_checkpoint(tmp_path / "short", max_position_embeddings=32, num_hidden_layers=1)


def test_a_checkpoint_is_compared_with_pytorch(short_checkpoint: Path, plugin: Path, rtx: Any, tmp_path: Path) -> None:
    output = tmp_path / "model.engine"
    code, out, err = run("trt", short_checkpoint, "-o", output, "--fp16", "--backend", "rtx", "--plugin-lib", plugin)
    assert code == 0, err
    assert "PASSED model.onnx fp16, ONNX Runtime" in out
    assert "1 plugin layers, TensorRT-RTX" in out
    parity = read_manifest(output).parity
    assert parity is not None
    assert all(comparison["ok"] for comparison in parity)
    assert 0 < parity[-1]["metrics"]["relative_error"] < parity[-1]["tolerance"]["relative_error"]


def test_a_checkpoint_that_fails_the_comparison(
    short_checkpoint: Path, plugin: Path, rtx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mra_export.operators import judge

    strict = {name: judge.Tolerance(1e-12, 1e-12, 1e-12, 1.0) for name in judge.TOLERANCES}
    monkeypatch.setattr(judge, "TOLERANCES", strict)
    output = tmp_path / "out" / "model.engine"
    arguments = ["-o", output, "--fp16", "--backend", "rtx", "--plugin-lib", plugin, "--json", "-q"]
    code, out, _ = run("trt", short_checkpoint, *arguments)
    assert code == 3
    result = json.loads(out)
    assert not result["ok"]
    assert not all(comparison["ok"] for comparison in result["comparisons"])
    assert_message(result["error"], "FAILED model.onnx fp16.* --no-check builds the engine nevertheless")
    assert not output.parent.exists()


def test_layer_outputs(tiny_export: Path, plugin: Path, rtx: Any, tmp_path: Path) -> None:
    model = read_onnx(tiny_export / "onnx" / "model.onnx")
    made = build(model.path, tmp_path / "model.engine", plugin, layer_outputs=True).manifest
    tensors = ("query", "key", "value", "context")
    traced = {f"{node.name}.{tensor}" for node in model.nodes for tensor in tensors}
    assert len(traced) == 8
    assert set(made.outputs) == traced | {"last_hidden_state"}


def test_embedded_plugin(tiny_export: Path, plugin: Path, rtx: Any, tmp_path: Path) -> None:
    model = tiny_export / "onnx" / "model.onnx"
    plain = build(model, tmp_path / "plain.engine", plugin)
    carrying = build(model, tmp_path / "carrying.engine", plugin, embed_plugin=True)
    assert carrying.manifest.plugin_embedded
    assert carrying.manifest.engine_bytes >= plain.manifest.engine_bytes + plugin.stat().st_size
    check_engine(carrying.engine, plugin=tmp_path / "not needed.so")


def test_hardware_compatible_says_that_rtx_is_so_anyway(
    tiny_export: Path, plugin: Path, rtx: Any, tmp_path: Path
) -> None:
    model = tiny_export / "onnx" / "model.onnx"
    result = build(model, tmp_path / "model.engine", plugin, hardware_compatible=True)
    assert result.manifest.hardware_compatible
    assert "from Ampere on" in result.notes[0]


def test_external_data(tiny_export: Path, plugin: Path, rtx: Any, tmp_path: Path) -> None:
    """Weights in a file of their own, as models over 2 GB have them."""
    embedded = tiny_export / "onnx" / "model.onnx"
    folder = tmp_path / "external" / "onnx"
    folder.mkdir(parents=True)
    model = folder / "model.onnx"
    onnx.save(onnx.load(embedded), model, save_as_external_data=True, location="model.onnx_data", size_threshold=64)
    assert model.stat().st_size < embedded.stat().st_size / 2
    made = build(model, tmp_path / "model.engine", plugin).manifest
    assert made.onnx_sha256 == file_sha256(model, folder / "model.onnx_data")
    same = build(embedded, tmp_path / "same.engine", plugin).manifest
    assert abs(made.engine_bytes - same.engine_bytes) < 2**16

    data = folder / "model.onnx_data"
    data.write_bytes(data.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"model.onnx_data has 5000 bytes, but .* reaches to byte"):
        build(model, tmp_path / "cut.engine", plugin)
    data.unlink()
    with pytest.raises(InputError, match=r"model.onnx needs model.onnx_data beside it, which is not there"):
        build(model, tmp_path / "lost.engine", plugin)


# What must not become an engine.


def test_a_silent_fallback_is_refused(
    tiny_export: Path, plugin: Path, rtx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the function bodies left in, the parser takes them instead of the plugin where the node does not name it."""
    model = tiny_export / "onnx" / "model.onnx"

    monkeypatch.setattr(engine_module, "prepare", lambda read, layer_outputs: model.read_bytes())
    with pytest.raises(
        MraExportError, match=r"(into 0 plugin layers, but it has 2 attention nodes)|refused by the parser"
    ):
        build(model, tmp_path / "model.engine", plugin)
    assert list(tmp_path.iterdir()) == []


def test_a_lost_attention_layer_is_refused(
    tiny_export: Path, plugin: Path, rtx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_one_node_replaced(read: Any, layer_outputs: bool) -> bytes:
        graph = onnx.ModelProto.FromString(prepare(read, layer_outputs))
        node = next(n for n in graph.graph.node if n.op_type == "Mra2Attention")
        del node.input[1:], node.attribute[:]
        node.op_type, node.domain = "Identity", ""
        return graph.SerializeToString()

    prepare = engine_module.prepare
    monkeypatch.setattr(engine_module, "prepare", with_one_node_replaced)
    with pytest.raises(MraExportError, match=r"into 1 plugin layers, but it has 2 attention nodes .*layer\.0"):
        build(tiny_export / "onnx" / "model.onnx", tmp_path / "model.engine", plugin)


def test_a_node_that_the_plugin_refuses(model: Path, plugin: Path, rtx: Any, tmp_path: Path) -> None:
    proto = onnx.load(model)
    node = next(n for n in proto.graph.node if n.op_type == "Mra2Attention")
    next(a for a in node.attribute if a.name == "approx_mode").i = 7
    onnx.save(proto, tmp_path / "odd.onnx")
    with pytest.raises(InputError, match=r"refused by the parser of TensorRT-RTX .*approx_mode=7 must be 0"):
        build(tmp_path / "odd.onnx", tmp_path / "model.engine", plugin)
    assert not (tmp_path / "model.engine").exists()


def test_fp16_that_is_not_is_refused(plugin: Path, rtx: Any, tmp_path: Path) -> None:
    """A float16 file one of whose matrix products was put into float32, as a converter with a block list does it."""
    proto = onnx.load(half_export(tmp_path))
    index, product = next((i, n) for i, n in enumerate(proto.graph.node) if n.op_type == "MatMul")
    casts = [helper.make_node("Cast", [name], [f"{name}_wide"], to=TensorProto.FLOAT) for name in product.input]
    result = product.output[0]
    product.input[:] = [f"{name}_wide" for name in product.input]
    product.output[0] = f"{result}_wide"
    back = helper.make_node("Cast", [f"{result}_wide"], [result], to=TensorProto.FLOAT16)
    nodes = list(proto.graph.node)
    nodes[index : index + 1] = [*casts, product, back]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.save(proto, tmp_path / "mixed.onnx")
    with pytest.raises(InputError, match=r"no fp16 network: 1 layers compute in another type, for example .*\(FLOAT\)"):
        build(tmp_path / "mixed.onnx", tmp_path / "model.engine", plugin, dtype="fp16")
    assert not (tmp_path / "model.engine").exists()


def half_export(folder: Path) -> Path:
    checkpoint = load_checkpoint(save_checkpoint(folder / "checkpoint"))
    return export_onnx(checkpoint, folder / "half", dtype="fp16").model


@pytest.mark.parametrize(
    ("shown", "dtype", "expected"),
    [
        ("Row major linear FP16 format", "fp16", "2 fp16"),
        ("Half", "fp16", "2 fp16"),
        ("Row major linear FP32", "fp32", "2 fp32"),
        ("Row major linear BFloat16 format", "bf16", "2 bf16"),
        ("Row major linear FP32", "fp16", None),
        ("Row major linear BFloat16 format", "fp16", None),
        ("Row major Int32 format", "fp16", "names no types"),
    ],
)
def test_what_the_engine_inspector_says(tiny_export: Path, shown: str, dtype: str, expected: str | None) -> None:
    """On texts as TensorRT's documentation shows them; the inspector itself needs a GPU."""
    import dataclasses

    model = dataclasses.replace(read_onnx(tiny_export / "onnx" / "model.onnx"), dtype=dtype)
    tensor = {"Name": "x", "Location": "Device", "Dimensions": [1], "Format/Datatype": shown}
    text = json.dumps(
        {"Layers": [{"Name": "a", "Outputs": [tensor]}, {"Name": "b", "Outputs": [tensor]}, "c"], "Bindings": []}
    )
    if expected is None:
        with pytest.raises(InputError, match="shows no fp16 tensor"):
            inspected_types(text, model)
    else:
        assert inspected_types(text, model) == expected


def run(*arguments: Any) -> tuple[int, str, str]:
    """The command line in this process: exit code, standard output, standard error."""
    import contextlib
    import io

    from mra_export.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


def run_cli(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mra_export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="session")
def model(tiny_export: Path) -> Path:
    return tiny_export / "onnx" / "model.onnx"


RANGES = [
    (("--seq-len", "0:1:2"), "--seq-len=0:1:2: the least size is 0, but must be at least 1"),
    (("--batch", "0:0:0"), "--batch=0:0:0: the least size is 0"),
    (("--batch", "-1:1:2"), "the least size is -1"),
    (("--batch", "4:2:8"), "--batch=4:2:8 must not decrease"),
    (("--seq-len", "16:64:32"), "must not decrease"),
    (
        ("--seq-len", "1:128:257"),
        "the longest sequence is 257, but the model has max_position_embeddings=256. Give at most 256",
    ),
    (("--seq-len", "300"), "the longest sequence is 300"),
    (("--batch", "1:2"), "must be MIN:OPT:MAX, for example 1:8:32"),
    (("--batch", "one:two:three"), "must be MIN:OPT:MAX"),
    (("--batch", ""), "must be MIN:OPT:MAX"),
    (("--batch", "1:8:3000000000"), "the largest size is 3000000000, but TensorRT's sizes end at 2147483647"),
    (("--batch", "9" * 30), "the largest size is 9+, but"),
    (
        ("--batch", "1:8:100000000"),
        "The largest input, 100000000x256 tokens, needs more workspace than TensorRT-RTX .* gives",
    ),
    (("--choices", "1:2:4"), "is for multiple choice; .* is feature-extraction"),
]


@pytest.mark.parametrize(("options", "message"), RANGES, ids=[" ".join(o) for o, _ in RANGES])
def test_profiles_that_do_not_fit(
    options: tuple[str, ...], message: str, model: Path, plugin: Path, rtx: Any, tmp_path: Path
) -> None:
    output = tmp_path / "model.engine"
    code, out, err = run("trt", model, "-o", output, "--backend", "rtx", "--plugin-lib", plugin, *options)
    assert (code, out) == (2, "")
    assert_message(err, message)
    assert list(tmp_path.iterdir()) == []


def assert_message(text: str, pattern: str) -> None:
    import re

    assert re.search(pattern, " ".join(text.split())), text
    assert "Traceback" not in text


def test_the_limit_is_read_from_the_configuration_or_from_the_file(model: Path, tmp_path: Path) -> None:
    assert read_onnx(model).position_limit == 256
    shutil.copy(model, tmp_path / "alone.onnx")
    assert read_onnx(tmp_path / "alone.onnx").position_limit == 256  # the table of positions
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 100}')
    assert read_onnx(tmp_path / "alone.onnx").position_limit == 100
    (tmp_path / "config.json").write_text("not json")
    assert read_onnx(tmp_path / "alone.onnx").position_limit == 256


def test_one_number_is_a_fixed_size() -> None:
    assert parse_range("7", "--batch") == Range(7, 7, 7)
    assert str(parse_range("1:8:32", "--batch")) == "1:8:32"


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
    assert_message(text, r"libmra_tensorrt\.so was not found in .*nowhere.* Run `mra-export build`")
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
    assert_message(err, "text.so cannot be loaded: .* Build it on this machine with `mra-export build`")


def test_two_plugins_in_one_process(model: Path, plugin: Path, rtx: Any, tmp_path: Path) -> None:
    copy = tmp_path / "libmra_tensorrt.so"
    copy.write_bytes(plugin.read_bytes())
    assert build(model, tmp_path / "same.engine", copy).manifest.plugin_sha256 == file_sha256(plugin)
    copy.unlink()
    copy.write_bytes(plugin.read_bytes() + b"a newer build")
    with pytest.raises(DependencyError, match=r"has loaded another plugin, .*; start a new one"):
        build(model, tmp_path / "other.engine", copy)


SOURCES = {
    "missing": ("missing.onnx", 2, "missing.onnx does not exist"),
    "cut off": ("cut.onnx", 2, "is not a readable ONNX file|has no mra::Mra2Attention"),
    "cut off early": ("early.onnx", 2, "is not a readable ONNX file|has no mra::Mra2Attention"),
    "empty": ("empty.onnx", 2, "is not a readable ONNX file"),
    "without our operator": (
        "plain.onnx",
        2,
        "has no mra::Mra2Attention node .* Export the checkpoint with `mra-export onnx`",
    ),
    "another kind of file": ("text.txt", 2, "text.txt is neither an .onnx file nor a directory"),
    "a directory of nothing": ("folder", 2, "folder has no config.json, so it is not a checkpoint"),
    "several files": ("several", 2, "holds several ONNX files: one.onnx, two.onnx. Name one of them"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_sources_that_are_no_model(kind: str, model: Path, plugin: Path, rtx: Any, tmp_path: Path) -> None:
    name, expected, message = SOURCES[kind]
    whole = model.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "early.onnx").write_bytes(whole[:100])
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "folder").mkdir()
    (tmp_path / "several").mkdir()
    for other in ("one", "two"):
        (tmp_path / "several" / f"{other}.onnx").write_bytes(b"")
    value = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    graph = helper.make_graph([helper.make_node("Identity", ["input_ids"], ["y"])], "plain", [value], [value])
    onnx.save(helper.make_model(graph), tmp_path / "plain.onnx")
    output = tmp_path / "out" / "model.engine"
    code, _, err = run("trt", tmp_path / name, "-o", output, "--backend", "rtx", "--plugin-lib", plugin)
    assert code == expected, err
    assert_message(err, message)
    assert not output.parent.exists()


def test_a_directory_that_is_no_export_is_a_checkpoint(tiny_checkpoint: Path, tiny_export: Path) -> None:
    assert find_onnx(tiny_checkpoint) is None
    assert find_onnx(tiny_export) == tiny_export / "onnx" / "model.onnx"


def test_a_half_file_cannot_become_another_type(tmp_path: Path, plugin: Path, rtx: Any) -> None:
    half = half_export(tmp_path)
    for dtype in ("fp32", "bf16"):
        arguments = ["-o", tmp_path / "m.engine", "--dtype", dtype, "--backend", "rtx", "--plugin-lib", plugin]
        code, _, err = run("trt", half, *arguments)
        assert code == 2
        assert_message(err, f"is fp16, and what was rounded once cannot become {dtype}. Export it again")


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_float32_file_is_converted(model: Path, plugin: Path, rtx: Any, tmp_path: Path, dtype: str) -> None:
    output = tmp_path / "model.engine"
    code, out, err = run("trt", model, "-o", output, "--dtype", dtype, "--backend", "rtx", "--plugin-lib", plugin)
    assert code == 0, err
    assert "converting" in err
    assert "note: converted from fp32; relative error" in out
    made = read_manifest(output)
    assert (made.precision, made.onnx_dtype) == (dtype, "fp32")
    assert made.onnx_sha256 == file_sha256(model)
    assert made.tensor_types["FLOAT"] == 1  # the cast of the output
    assert made.parity is not None
    assert 0 < made.parity[0]["metrics"]["relative_error"] < made.parity[0]["tolerance"]["relative_error"]


def test_a_conversion_that_is_not_the_model_is_refused(
    model: Path, plugin: Path, rtx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mra_export.operators import judge

    monkeypatch.setitem(judge.TOLERANCES, "fp16", judge.Tolerance(1e-9, 1e-9, 1e-9, 1.0))
    arguments = ["-o", tmp_path / "m.engine", "--fp16", "--backend", "rtx", "--plugin-lib", plugin]
    code, _, err = run("trt", model, *arguments)
    assert code == 3
    assert_message(err, r"in fp16 is not the float32 file: relative error [^ ]+ \(limit 1e-09\)")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "option", [("--task", "fill-mask"), ("--opset", "20"), ("--pooling", "mean"), ("--no-normalize",)]
)
def test_options_of_a_checkpoint_for_a_file(
    option: tuple[str, ...], model: Path, plugin: Path, rtx: Any, tmp_path: Path
) -> None:
    code, _, err = run("trt", model, "-o", tmp_path / "m.engine", "--backend", "rtx", "--plugin-lib", plugin, *option)
    assert code == 2
    assert_message(err, rf"{option[0].replace('no-', '')}.* is for a checkpoint, but .* is already exported")


# The output.


def test_an_existing_output_is_kept(model: Path, plugin: Path, rtx: Any, tmp_path: Path) -> None:
    output = tmp_path / "model.engine"
    for existing in (output, manifest_path(output)):
        existing.write_text("precious")
        code, _, err = run("trt", model, "-o", output, "--backend", "rtx", "--plugin-lib", plugin)
        assert code == 2
        assert_message(err, f"{existing.name} already exists. .* add --force")
        assert existing.read_text() == "precious"
        existing.unlink()
    output.write_text("old")
    code, out, _ = run("trt", model, "-o", output, "--backend", "rtx", "--plugin-lib", plugin, "--force", "-q")
    assert code == 0
    assert "2 plugin layers, TensorRT-RTX" in out
    check_engine(output)


def test_the_input_is_never_replaced(model: Path, plugin: Path, rtx: Any, tmp_path: Path) -> None:
    copy = tmp_path / "model.onnx"
    shutil.copy(model, copy)
    code, _, err = run("trt", copy, "-o", copy, "--force", "--backend", "rtx", "--plugin-lib", plugin)
    assert code == 2
    assert_message(err, "belongs to the input")
    assert copy.read_bytes() == model.read_bytes()
    for _ in range(2):  # beside its ONNX file an engine is at home
        code, _, err = run(
            "trt", tmp_path, "-o", tmp_path / "model.engine", "--force", "--backend", "rtx", "--plugin-lib", plugin
        )
        assert code == 0, err


def test_an_output_that_cannot_be_written(model: Path, plugin: Path, rtx: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run("trt", model, "-o", tmp_path / "file" / "m.engine", "--backend", "rtx", "--plugin-lib", plugin)
    assert code == 2
    assert_message(err, "file is not a directory")
    code, _, err = run("trt", model, "-o", tmp_path, "--force", "--backend", "rtx", "--plugin-lib", plugin)
    assert code == 2
    assert_message(err, "is a directory; the output is a file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("limit", [100_000, 0])
def test_a_full_disk_leaves_nothing(limit: int, model: Path, plugin: Path, rtx: Any, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the same error from the same call."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(InputError, match=r"could not be written: File too large. Nothing was left behind"):
            build(model, tmp_path / "model.engine", plugin)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_no_engine_without_its_manifest(
    model: Path, plugin: Path, rtx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the manifest cannot get its name after the engine got its own, the engine goes again."""
    replace = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if str(target).endswith(".json"):
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(InputError, match="No space left on device"):
        build(model, tmp_path / "model.engine", plugin)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_stops_the_builder(model: Path, plugin: Path, rtx: Any, tmp_path: Path) -> None:
    timer = None

    def progress(line: str) -> None:
        nonlocal timer
        if "building" in line:
            timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()

    with pytest.raises(KeyboardInterrupt):
        build(model, tmp_path / "model.engine", plugin, progress=progress)
        pytest.fail("the builder was faster than the signal")
    assert list(tmp_path.iterdir()) == []


# Backends.


def test_backends_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    there: set[str] = set()
    gpus: tuple[gpu.Gpu, ...] = ()
    monkeypatch.setattr(tensorrt_backend.importlib.util, "find_spec", lambda name: object() if name in there else None)
    monkeypatch.setattr(tensorrt_backend, "find_gpus", lambda: gpus)
    select = tensorrt_backend.select_backend
    with pytest.raises(DependencyError, match=r"Neither TensorRT nor TensorRT-RTX is installed. Run `pip install"):
        select("auto")
    with pytest.raises(DependencyError, match=r"backend rtx is not installed. Run `pip install tensorrt-rtx`"):
        select("rtx")
    there.add("tensorrt")
    with pytest.raises(DependencyError, match=r"CUDA's driver shows none here. Build ahead of time with --backend rtx"):
        select("auto")
    there.add("tensorrt_rtx")
    assert select("auto") == "rtx"
    gpus = (gpu.Gpu("NVIDIA H100", "9.0"),)
    assert select("auto") == "tensorrt"
    assert select("rtx") == "rtx"
    there.remove("tensorrt")
    assert select("auto") == "rtx"
    with pytest.raises(InputError, match="backend='cuda' must be auto, tensorrt or rtx"):
        select("cuda")


@pytest.mark.parametrize(
    ("option", "code", "message"),
    [
        (
            "version_compatible",
            2,
            "--version-compatible needs the lean runtime of a full TensorRT; TensorRT-RTX has none",
        ),
        ("timing_cache", 2, "--timing-cache is for TensorRT; TensorRT-RTX has none"),
        ("strip_weights", 4, "--strip-weights needs a GPU"),
    ],
)
def test_options_that_a_backend_lacks(
    option: str, code: int, message: str, model: Path, plugin: Path, rtx: Any, tmp_path: Path
) -> None:
    if option == "strip_weights" and gpu.find_gpus():
        pytest.skip("this machine has a GPU")
    with pytest.raises(MraExportError, match=message) as caught:
        build(model, tmp_path / "model.engine", plugin, **{option: tmp_path / "cache" if "cache" in option else True})
    assert caught.value.exit_code == code
    assert list(tmp_path.iterdir()) == []


def test_a_plugin_for_other_gpus(
    model: Path, plugin: Path, rtx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "find_gpus", lambda: (gpu.Gpu("Tesla T4", "7.5"),))
    with pytest.raises(DependencyError, match=r"and Tesla T4 has compute capability 7.5. Run `mra-export build`"):
        build(model, tmp_path / "model.engine", plugin)


def test_the_bare_name_needs_no_compiler(tmp_path: Path) -> None:
    """TensorRT-RTX's parser looks for a name that the wheel lacks; the empty library is one the loader takes."""
    program = (
        "import ctypes, sys; from mra_export.engine import rtx_loader as b\n"
        "ctypes.CDLL('libm.so.6')\n"
        "text = b._empty_library('libmra_alias.so', 'libm.so.6')\n"
        "open(sys.argv[1], 'wb').write(text)\n"
        "ctypes.CDLL(sys.argv[1])\n"
        "f = ctypes.CDLL('libmra_alias.so').cos; f.restype = ctypes.c_double; f.argtypes = [ctypes.c_double]\n"
        "assert f(0.0) == 1.0\n"
        "try: b.provide_bare_name('libmra_none.so')\n"
        "except Exception as e: print(type(e).__name__, e)\n"
    )
    library = tmp_path / "alias.so"
    done = subprocess.run(
        [sys.executable, "-c", program, str(library)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("DependencyError libmra_none.so cannot be loaded: libmra_none.so.1")
    if shutil.which("readelf"):
        shown = subprocess.run(["readelf", "-dW", str(library)], capture_output=True, text=True, check=True).stdout
        assert "[libmra_alias.so]" in shown
        assert "[libm.so.6]" in shown


def test_the_parser_needs_the_bare_name(rtx: Any) -> None:
    assert ctypes.CDLL("libtensorrt_rtx.so").getInferLibVersion() >= 10000


# `check` of engines. What only a GPU can run is polygraphy's runner; here ONNX Runtime takes its place, on the network that the
# engine was built from.


class OnnxRuntimeInPlaceOfTheGpu:
    def __init__(self, model: Path, *, layer_outputs: bool, damage: float = 0.0) -> None:
        import onnxruntime

        proto = onnx.ModelProto.FromString(engine_module.prepare(read_onnx(model), layer_outputs))
        proto.functions.extend(onnx.load(model).functions)
        for node in proto.graph.node:
            kept = [a for a in node.attribute if not a.name.startswith("plugin_")]
            del node.attribute[:]
            node.attribute.extend(kept)
        self.damage = damage
        self.session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        self.is_active = True

    def infer(self, feed: dict[str, Any]) -> dict[str, Any]:
        assert self.is_active
        names = [output.name for output in self.session.get_outputs()]
        values = dict(zip(names, self.session.run(None, feed), strict=True))
        if self.damage:
            key = next((name for name in values if name.endswith("layer.1.Mra2Attention.context")), names[0])
            values[key] = values[key] * (1 + self.damage)
        return values

    def deactivate(self) -> None:
        self.is_active = False


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes `check` believe in a GPU on which `infer` is ONNX Runtime's."""
    from mra_export.engine import runner as engine_runner
    from mra_export.pipeline import check as check_module

    monkeypatch.setattr(engine_runner, "find_gpus", lambda: (gpu.Gpu("NVIDIA H100", "9.0"),))

    def arrange(session: OnnxRuntimeInPlaceOfTheGpu) -> Any:
        monkeypatch.setattr(engine_runner, "_activate", lambda backend, engine: session)
        return check_module.check

    return arrange


@pytest.mark.parametrize("dtype", ["fp16"])
def test_check_of_an_engine_that_shows_its_layers(
    short_checkpoint: Path, plugin: Path, rtx: Any, tmp_path: Path, on_a_gpu: Any, dtype: str
) -> None:
    checkpoint = load_checkpoint(short_checkpoint)
    model = export_onnx(checkpoint, tmp_path / "onnx", dtype=dtype).model
    made = build(model, tmp_path / "model.engine", plugin, layer_outputs=True)
    session = OnnxRuntimeInPlaceOfTheGpu(model, layer_outputs=True)
    comparisons = on_a_gpu(session)(checkpoint, [made.engine, model], plugin=plugin)
    assert not session.is_active
    engine = [c for c in comparisons if c.candidate.startswith(f"model.engine {dtype}, rtx 1.")]
    assert len(engine) == 3
    assert engine[0].reference.startswith("PyTorch")
    assert engine[1].reference == "specification, same blocks"
    assert [layer.name for layer in engine[1].layers] == ["layer.0"]
    assert engine[2].reference.startswith(f"model.onnx {dtype}, ONNX Runtime")
    assert [c.ok for c in engine] == [True] * 3
    assert engine[1].metrics["operator_error"] > 0


def test_check_names_the_layer_of_an_engine_where_a_difference_starts(
    tiny_checkpoint: Path, model: Path, plugin: Path, rtx: Any, tmp_path: Path, on_a_gpu: Any
) -> None:
    made = build(model, tmp_path / "model.engine", plugin, layer_outputs=True, seq_len=Range(1, 32, 64))
    session = OnnxRuntimeInPlaceOfTheGpu(model, layer_outputs=True, damage=0.01)
    found = on_a_gpu(session)(load_checkpoint(tiny_checkpoint), [made.engine], plugin=plugin, max_seq_len=100)
    assert found[1].ok is False
    assert "the difference starts in layer.1: arithmetic of the attention" in found[1].notes[0]
    assert "are outside the engine's profile and were left out" in found[1].notes[-1]
    assert max(case.seq_len for case in found[1].cases) <= 64


@pytest.mark.parametrize("damage", [0.0, 0.01])
def test_check_of_a_plain_engine(
    short_checkpoint: Path, plugin: Path, rtx: Any, tmp_path: Path, on_a_gpu: Any, damage: float
) -> None:
    checkpoint = load_checkpoint(short_checkpoint)
    made = build(export_onnx(checkpoint, tmp_path / "onnx").model, tmp_path / "model.engine", plugin)
    session = OnnxRuntimeInPlaceOfTheGpu(tmp_path / "onnx" / "onnx" / "model.onnx", layer_outputs=False, damage=damage)
    (comparison,) = on_a_gpu(session)(checkpoint, [made.engine], plugin=plugin)
    assert comparison.ok is (damage == 0)
    assert comparison.metrics["judged_rows"] == comparison.metrics["rows"]
    assert comparison.layers == []


def test_a_plain_engine_is_judged_where_all_blocks_are_selected(
    tiny_checkpoint: Path, model: Path, plugin: Path, rtx: Any, tmp_path: Path, on_a_gpu: Any
) -> None:
    made = build(model, tmp_path / "model.engine", plugin)  # 32 blocks: all up to 160 tokens
    session = OnnxRuntimeInPlaceOfTheGpu(model, layer_outputs=False)
    checkpoint = load_checkpoint(tiny_checkpoint)
    (comparison,) = on_a_gpu(session)(checkpoint, [made.engine], plugin=plugin, max_seq_len=192)
    assert comparison.ok
    assert {case.judged_rows > 0 for case in comparison.cases if case.seq_len <= 160} == {True}
    assert {case.judged_rows > 0 for case in comparison.cases if case.seq_len > 160} == {False}
    assert "Build the engine with --layer-outputs to judge all" in comparison.notes[0]


def test_an_engine_for_another_gpu_is_not_loaded(
    short_checkpoint: Path, plugin: Path, rtx: Any, tmp_path: Path, on_a_gpu: Any
) -> None:
    checkpoint = load_checkpoint(short_checkpoint)
    made = build(export_onnx(checkpoint, tmp_path / "onnx").model, tmp_path / "model.engine", plugin)
    path = manifest_path(made.engine)
    path.write_text(path.read_text().replace('"compute_capability": "8.0"', '"compute_capability": "12.0"'))
    with pytest.raises(DependencyError, match=r"needs a GPU of compute capability 12\.0 or newer .* this one has 9\.0"):
        on_a_gpu(None)(checkpoint, [made.engine], plugin=plugin)


def test_check_without_a_gpu(
    short_checkpoint: Path, plugin: Path, rtx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mra_export.engine import runner as engine_runner

    monkeypatch.setattr(engine_runner, "find_gpus", lambda: ())
    exported = export_onnx(load_checkpoint(short_checkpoint), tmp_path / "onnx").directory
    engine = exported / "model.engine"
    build(exported / "onnx" / "model.onnx", engine, plugin)
    code, _, err = run("check", short_checkpoint, engine)
    assert code == 4
    assert_message(
        err, "model.engine: whole, with a manifest that fits the checkpoint; but running an engine needs a GPU"
    )
    code, out, err = run("check", short_checkpoint, exported, "-q")  # the directory holds both
    assert code == 0, err
    assert "NOT JUDGED model.engine fp32, rtx" in out
    assert "1 not judged" in out
    engine.write_bytes(engine.read_bytes()[:-1])
    code, _, err = run("check", short_checkpoint, engine)
    assert code == 2
    assert_message(err, "it was cut off or replaced")


def test_loading_without_a_gpu_is_an_error_and_no_crash(model: Path, plugin: Path, rtx: Any, tmp_path: Path) -> None:
    from mra_export.engine import runner as engine_runner

    if gpu.find_gpus():
        pytest.skip("this machine has a GPU")
    made = build(model, tmp_path / "model.engine", plugin)
    with pytest.raises(DependencyError, match=r"could not load .*model\.engine: .*CUDA"):
        engine_runner._activate(rtx, made.engine)


def test_check_of_an_engine_of_another_model(
    short_checkpoint: Path, model: Path, plugin: Path, rtx: Any, tmp_path: Path
) -> None:
    build(model, tmp_path / "model.engine", plugin)
    code, _, err = run("check", short_checkpoint, tmp_path / "model.engine")
    assert code == 2
    assert_message(err, "model.engine has 2 attention nodes, the checkpoint 1 layers")


# `doctor`.


def test_doctor_opens_the_plugin(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mra_export.native import libraries

    monkeypatch.setattr(libraries, "find_library", lambda kind, path=None: plugin if kind == "tensorrt" else None)
    code, out, err = run("doctor", "--json")
    assert code == 0, err
    shown = json.loads(out)["plugin"]
    assert shown["version"] == "1"
    assert shown["exports"] == "getCreators, setLoggerFinder, mraBuildInfo"
    assert shown["architectures"]
    assert int(shown["tensorrt_headers"].split(".")[0]) >= 10
    assert int(shown["cuda_runtime"].split(".")[0]) >= 12
    code, out, _ = run("doctor")
    assert f"for GPUs {shown['architectures']}; headers of TensorRT {shown['tensorrt_headers']}" in " ".join(
        out.split()
    )


def test_doctor_says_what_does_not_agree(plugin: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mra_export.pipeline import doctor

    versions: dict[str, str | None] = {"tensorrt": "10.3.0", "tensorrt-rtx": None, "polygraphy": None}
    monkeypatch.setattr(gpu, "find_gpus", lambda: (gpu.Gpu("Tesla T4", "7.5"),))
    monkeypatch.setattr(gpu, "driver_version", lambda: 11080)
    info, problems = doctor._tensorrt(plugin, versions)
    assert info is not None
    text = " ".join(problem.text for problem in problems)
    assert_message(text, "polygraphy is not installed")
    assert_message(text, r"headers of TensorRT 10\.[0-9]+, newer than the TensorRT 10\.3\.0 that is installed")
    assert_message(text, r"The plugin needs CUDA 1[0-9]\.[0-9]+; the driver serves CUDA 11\.8 at most")
    assert_message(text, r"and Tesla T4 has compute capability 7\.5")
    assert len(problems) == 4

    nothing = {"tensorrt": None, "tensorrt-rtx": None, "polygraphy": None}
    info, problems = doctor._tensorrt(None, nothing)
    assert info is None
    assert [problem.fix for problem in problems] == ["pip install tensorrt", "mra-export build tensorrt"]
    (tmp_path / "libmra_tensorrt.so").write_text("no library")
    info, problems = doctor._tensorrt(tmp_path / "libmra_tensorrt.so", {**versions, "polygraphy": "0.53"})
    assert info is None
    assert_message(problems[0].text, "cannot be loaded")
