"""`check` of engines. What only a GPU can run is polygraphy's runner; here ONNX Runtime takes its place, on the network that the
engine was built from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_support import OnnxRuntimeInPlaceOfTheGpu, assert_message, build, run

from mra_export.checkpoint.load import load_checkpoint
from mra_export.engine import gpu
from mra_export.engine.manifest import manifest_path
from mra_export.engine.ranges import Range
from mra_export.errors import DependencyError
from mra_export.export.exporter import export_onnx
from mra_export.export.int8 import Int8Request
from mra_export.export.onnx_model import read_onnx
from mra_export.pipeline.quantize import to_int8


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
    assert "An engine with --layer-outputs shows it" in comparison.notes[0]


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


@pytest.mark.parametrize("damage", [0.0, 0.2])
def test_an_engine_of_int8_is_judged_by_its_vectors(
    tiny_checkpoint: Path,
    model: Path,
    plugin: Path,
    rtx: Any,
    tmp_path: Path,
    on_a_gpu: Any,
    damage: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Layers that it shows are not judged by an error of arithmetic, which int8 has none of."""
    quantized = tmp_path / "model_int8.onnx"
    to_int8(read_onnx(model), quantized, Int8Request(), random_ids=True)
    made = build(quantized, tmp_path / "model.engine", plugin, layer_outputs=True, seq_len=Range(1, 32, 64))
    assert made.manifest.precision == "int8"
    session = OnnxRuntimeInPlaceOfTheGpu(quantized, layer_outputs=True)
    whole = session.infer
    monkeypatch.setattr(session, "infer", lambda feed: {name: value + damage for name, value in whole(feed).items()})
    (found,) = on_a_gpu(session)(load_checkpoint(tiny_checkpoint), [made.engine], plugin=plugin, max_seq_len=64)
    assert found.reference.startswith("PyTorch")
    assert found.tolerance == {"cosine_mean": 0.999, "cosine_min": 0.997}
    assert found.ok is (damage == 0)
    assert found.layers == []
