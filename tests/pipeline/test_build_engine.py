"""`mra-export trt`: real engines, built ahead of time by TensorRT-RTX with the real plugin; no GPU is needed."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from checkpoints import save_checkpoint
from engine_support import CLASSES, TYPES, assert_message, build, half_export, run
from onnx import TensorProto, helper, numpy_helper

from mra_export.checkpoint.load import load_checkpoint
from mra_export.checkpoint.modules import from_pooling
from mra_export.checkpoint.text import read_contract
from mra_export.engine import backend as tensorrt_backend
from mra_export.engine.manifest import check_engine, manifest_path, read_manifest
from mra_export.errors import InputError, MraExportError
from mra_export.export.exporter import export_onnx
from mra_export.export.onnx_model import read_onnx
from mra_export.outputs import file_sha256
from mra_export.pipeline import build_engine as engine_module


@pytest.fixture(scope="session", params=CLASSES)
def task_checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    return load_checkpoint(save_checkpoint(folder / "checkpoint", CLASSES[request.param]))


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


def test_the_modules_after_an_fp16_encoder_stay_float32(
    sentence_export: Path, rtx: tensorrt_backend.Backend, plugin: Path, tmp_path: Path
) -> None:
    made = build(
        sentence_export / "onnx" / "model.onnx", tmp_path / "e.engine", plugin, dtype="fp16", layer_outputs=True
    )
    assert made.manifest.precision == "fp16"
    stated = json.loads(manifest_path(tmp_path / "e.engine").read_text())["pooling"]
    assert [module["kind"] for module in stated["modules"]] == [
        "Pooling",
        "Dense",
        "LayerNorm",
        "Normalize",
        "Truncate",
    ]
    assert from_pooling(stated) == read_contract(sentence_export).modules


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


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_stops_the_builder(
    how: signal.Signals, model: Path, plugin: Path, rtx: Any, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "mra_export", "trt", str(model), "-o", str(tmp_path / "model.engine")]
    command += ["--backend", "rtx", "--plugin-lib", str(plugin)]
    # A shell's background job ignores SIGINT, and its children with it.
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(how, signal.SIG_DFL)
    )
    assert process.stderr is not None
    said = next((line for line in process.stderr if "building model.engine" in line), "")
    process.send_signal(how)
    _, err = process.communicate(timeout=120)
    assert said
    assert (process.returncode, err.splitlines()[-1:]) == (128 + how, ["Interrupted; no output was written."]), err
    assert list(tmp_path.iterdir()) == []
