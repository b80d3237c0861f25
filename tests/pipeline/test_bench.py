"""The timing of exported models, and the dense model that they are timed against."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from checkpoints import save_checkpoint
from command_line import run

from mra_export.checkpoint.load import load_checkpoint
from mra_export.cli.tables import describe_fastest, print_bench
from mra_export.errors import DependencyError, InputError
from mra_export.export.exporter import export_onnx
from mra_export.export.int8 import Int8Request, linears_of, quantize
from mra_export.export.onnx_model import OnnxModel, read_onnx
from mra_export.native import libraries
from mra_export.native.libraries import find_library
from mra_export.pipeline import bench as bench_module
from mra_export.pipeline import bench_engines
from mra_export.pipeline.bench import BenchResult, BenchRow, bench, fastest, text_feed, time_engines
from mra_export.pipeline.bench_engines import DENSE, Bound, Engine, dense_twin, open_engines, usable_runtimes
from mra_export.pipeline.bench_plot import check_plot, write_plot
from mra_export.pipeline.turns import Turn

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tiny_export: Path) -> OnnxModel:
    return read_onnx(tiny_export / "onnx" / "model.onnx")


@pytest.fixture(scope="module")
def everything(model: OnnxModel) -> BenchResult:
    """Each engine there is, with the model quantized."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    if find_library("openvino") is None:
        pytest.skip("libmra_openvino.so is not built: `mra-export build openvino`")
    return bench(
        model,
        batches=[2],
        seq_lens=[64, 256],
        int8=Int8Request(every_layer=True),
        random_ids=True,
        threads=1,
        seconds=0.01,
    )


def row(backend: str, speed: float, *, size: int = 64, precision: str = "fp32", cosine: float | None = 1.0) -> BenchRow:
    attention = DENSE if backend.startswith(DENSE) else "MRA"
    runtime = "openvino" if "OpenVINO" in backend else "onnxruntime"
    return BenchRow(
        backend, 1, size, 10 / speed, 11 / speed, size * speed * 100, speed, 5, runtime, precision, attention, 20 / speed,
        speed, None, None, cosine, cosine and cosine - 0.001,
    )  # fmt: skip


def test_the_dense_twin_is_the_model_with_the_full_budget(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "c", block_per_row=8))
    path = export_onnx(checkpoint, tmp_path / "o").model
    mask = np.ones((2, 100), np.int64)
    mask[1, 60:] = 0
    ids = np.random.default_rng(0).integers(0, 120, mask.shape)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}
    results = [onnxruntime.InferenceSession(m).run(None, inputs)[0] for m in (str(path), dense_twin(read_onnx(path)))]
    np.testing.assert_allclose(results[0][mask == 1], results[1][mask == 1], atol=1e-4)


def test_openvino_fuses_the_dense_twin(model: OnnxModel) -> None:
    """The comparison is with the best that OpenVINO makes of dense attention: no softmax of its own, nor products."""
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    mask = np.ones((2, 64), np.int64)
    mask[1, 40:] = 0
    ids = np.random.default_rng(0).integers(4, 100, mask.shape)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}
    core = openvino.Core()
    read = core.read_model(dense_twin(model, for_openvino=True))
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = [node.get_rt_info()["layerType"].value for node in compiled.get_runtime_model().get_ops()]
    assert "Softmax" not in kinds
    assert "MatMul" not in kinds
    assert kinds.count("FullyConnected") == 6 * len(model.layers)
    found = compiled(inputs)[0]
    expected = onnxruntime.InferenceSession(dense_twin(model)).run(None, inputs)[0]
    np.testing.assert_allclose(found[mask == 1], expected[mask == 1], atol=1e-4)


def test_every_engine_gets_a_row_a_size(model: OnnxModel) -> None:
    rows = bench(model, batches=[1, 2], seq_lens=[32, 64], runtimes=["onnxruntime"], threads=1, seconds=0.01).rows
    assert len(rows) == 2 * 2 * 2
    for each in rows:
        assert each.turns >= 5
        assert each.latency_p90_ms >= each.latency_ms > 0
        assert each.cpu_ms > 0
        assert each.tokens_per_second == pytest.approx(each.batch * each.seq_len / each.latency_ms * 1e3)
        assert each.cosine_min == pytest.approx(1.0)
    dense = [each for each in rows if each.backend == DENSE]
    assert all(each.faster_than_dense == each.faster_than_dense_cpu == 1.0 for each in dense)


@pytest.mark.native
def test_engines_and_precisions_stand_side_by_side(everything: BenchResult) -> None:
    arithmetics = {each.precision for each in everything.rows if each.runtime == "openvino"}
    assert {"fp32", "int8-all"} <= arithmetics
    names = [f"{DENSE}", f"{DENSE}, int8-all"] + [f"{DENSE}, OpenVINO {name}" for name in sorted(arithmetics)]
    names += ["MRA, function body", "MRA, function body, int8-all"]
    names += [f"MRA, OpenVINO {name}" for name in sorted(arithmetics)]
    for size in (64, 256):
        assert sorted(each.backend for each in everything.rows if each.seq_len == size) == sorted(names)
    for each in everything.rows:
        assert each.cosine_mean is not None
        assert each.cosine_min is not None
        if each.precision == "fp32":
            assert each.cosine_min > 1 - 1e-10
        else:
            # The random weights are small beside the residual, which hides what int8 loses.
            assert 0.9 < each.cosine_min <= each.cosine_mean < 1 - 1e-9
    said = r"int8 on the built-in texts: cosine with fp32 [01]\.\d{5} on average, [01]\.\d{5} at least; within the limits\."
    assert sum(re.fullmatch(said, note) is not None for note in everything.notes) == 1


@pytest.mark.native
def test_the_budget_of_each_length_is_told(everything: BenchResult) -> None:
    budgets = {(each.attention, each.seq_len): (each.blocks_per_row, each.blocks) for each in everything.rows}
    assert budgets == {(DENSE, 64): (None, None), (DENSE, 256): (None, None), ("MRA", 64): (2, 2), ("MRA", 256): (4, 8)}
    assert sum(note.startswith("at 64 tokens the budget is all the blocks there are") for note in everything.notes) == 1


def test_a_file_of_int8_is_held_against_itself(model: OnnxModel, tmp_path: Path) -> None:
    ranges = {linear.source: np.full(linear.in_features, 4, np.float32) for linear in linears_of(model)}
    written = quantize(model, ranges, tmp_path / "model.onnx")
    result = bench(written, batches=[1], seq_lens=[32], runtimes=["onnxruntime"], threads=1, seconds=0.01)
    assert [(each.backend, each.cosine_min) for each in result.rows] == [
        (f"{DENSE}, int8", None), ("MRA, function body, int8", None)
    ]  # fmt: skip
    assert "all is held against dense attention in int8" in result.notes[0]
    with pytest.raises(InputError, match="is int8 already"):
        bench(written, batches=[1], seq_lens=[32], int8=Int8Request())


def test_ratios_are_of_the_same_turn_and_losses_of_the_same_attention(
    model: OnnxModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = {
        DENSE: [[1.0, 0.0]],
        f"{DENSE}, bf16": [[1.0, 1.0]],
        "MRA": [[0.0, 2.0]],
        "MRA, int8": [[3.0, 4.0]],
    }
    turns = {
        DENSE: [Turn(10, 10), Turn(30, 20), Turn(20, 30)],
        f"{DENSE}, bf16": [Turn(10, 5), Turn(30, 10), Turn(20, 5)],
        "MRA": [Turn(5, 10), Turn(30, 10), Turn(4, 10)],
        "MRA, int8": [Turn(1, 1), Turn(3, 2), Turn(2, 3)],
    }
    monkeypatch.setattr(
        bench_module, "take_turns", lambda runs, seconds, at_least: {name: turns[name] for name in runs}
    )

    def engine(name: str) -> Engine:
        outputs = {"sentence_embedding": np.array(vectors[name], np.float32)}
        attention, _, precision = name.partition(", ")
        return Engine(
            name, "onnxruntime", precision or "fp32", attention, lambda _: Bound(lambda: None, lambda: outputs)
        )

    rows = time_engines([engine(name) for name in vectors], text_feed(model, 2, 64), model, seconds=0)
    assert [each.faster_than_dense for each in rows] == pytest.approx([1, 1, 2, 10])
    assert [each.faster_than_dense_cpu for each in rows] == pytest.approx([1, 2, 2, 10])
    assert [each.cosine_mean for each in rows] == pytest.approx([1, 0.5**0.5, 1, 0.8])
    assert [each.latency_ms for each in rows] == [20, 20, 5, 2]
    assert rows[3].tokens_per_second == pytest.approx(2 * 64 / 2e-3)


def test_the_fastest_is_named_with_what_it_loses() -> None:
    rows = [
        row(DENSE, 1.0), row("MRA, native operator", 1.2), row("MRA, OpenVINO int8", 3.7, precision="int8", cosine=0.999),
        row(DENSE, 1.0, size=32), row("MRA, native operator", 1.3, size=32),
    ]  # fmt: skip
    assert [each.backend for each in fastest(rows)] == ["MRA, OpenVINO int8", "MRA, native operator"]
    assert describe_fastest(rows) == (
        "FASTEST in processor time: MRA, OpenVINO int8 at 1 x 64, 3.70x, which loses: cosine with its fp32 0.99900 on average, "
        "0.99800 at least; MRA, native operator at 1 x 32, 1.30x, which loses nothing."
    )
    unknown = [
        row(f"{DENSE}, int8", 1.0, precision="int8", cosine=None),
        row("MRA, bf16", 2.0, precision="bf16", cosine=None),
    ]
    assert describe_fastest(unknown).endswith(
        "MRA, bf16, 2.00x, what it loses is not known, since its fp32 did not run."
    )


def test_a_table_fits_a_page_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{DENSE}, OpenVINO int8-all+bf16"
    print_bench(BenchResult([row(DENSE, 1.0), row(name, 0.0001, precision="int8-all+bf16", cosine=None)], ["a note"]))
    lines = capsys.readouterr().out.splitlines()
    assert "dense, OpenVINO int8-all+bf16 100000.0 200000.0        1  0.00x 0.00x       -" in [
        line.rstrip() for line in lines
    ]
    assert "note: a note" in lines
    assert lines[-1].startswith("FASTEST in processor time: dense attention, 1.00x, which loses nothing")


def test_what_is_missing_is_left_out_with_a_note_unless_asked_for(
    model: OnnxModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(bench_engines.importlib.util, "find_spec", lambda name: None)
    assert usable_runtimes([], notes) == ("onnxruntime",)
    assert "pip install 'mra-export[openvino]'" in notes[0]
    assert usable_runtimes(["openvino", "openvino"], notes) == ("openvino",)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DependencyError, match="OpenVINO is not installed"):
        bench(model, batches=[1], seq_lens=[32], runtimes=["openvino"])


def test_without_the_extension_openvino_runs_dense_attention_only(
    model: OnnxModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    monkeypatch.setattr(libraries, "library_dirs", lambda: [tmp_path])
    result = bench(model, batches=[1], seq_lens=[32], threads=1, seconds=0.01)
    assert {each.attention for each in result.rows if each.runtime == "openvino"} == {DENSE}
    assert any("libmra_openvino.so was not found" in note and "MRA" in note for note in result.notes)
    with pytest.raises(DependencyError, match=r"libmra_openvino\.so was not found"):
        bench(model, batches=[1], seq_lens=[32], runtimes=["openvino"])


@pytest.mark.native
def test_the_native_attention_is_no_finer_than_what_is_around_it(
    model: OnnxModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    library = find_library("onnxruntime")
    if library is None or find_library("openvino") is None:
        pytest.skip("a native library is not built: `mra-export build onnxruntime openvino`")
    sessions: list[Any] = []
    compiled: list[Any] = []
    session_options, compile_model = bench_engines.session_options, bench_engines.compile_model

    def options(library: Path | None, **settings: Any) -> Any:
        sessions.append((library is not None, settings["entries"].get("mra.accuracy")))
        return session_options(library, **settings)

    def compiling(core: Any, read: Any, arithmetic: str, **settings: Any) -> Any:
        nodes = (node.get_attributes() for node in read.get_ops())
        compiled.append((arithmetic, {each["accuracy"] for each in nodes if "accuracy" in each}))
        return compile_model(core, read, arithmetic, **settings)

    monkeypatch.setattr(bench_engines, "session_options", options)
    monkeypatch.setattr(bench_engines, "compile_model", compiling)
    files = {"fp32": model, "int8": model}
    open_engines(files, dense=False, runtimes=["onnxruntime", "openvino"], library=library, threads=1)
    assert sessions == [(False, None), (True, "fp32"), (False, None), (True, "bf16")]
    assert compiled[0] == ("fp32", {"fp32"})
    assert len(compiled) >= 2
    for arithmetic, accuracies in compiled[1:]:
        assert accuracies == {"bf16"}, arithmetic


def test_a_processor_without_bf16_is_told_so(model: OnnxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")

    class Old:
        """A core as on such a processor."""

        def __init__(self, core: Any) -> None:
            self.core = core

        def __getattr__(self, name: str) -> Any:
            return getattr(self.core, name)

        def get_property(self, device: str, name: str) -> list[str]:
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return ["FP32", "INT8"]

    open_core = bench_engines.open_core
    monkeypatch.setattr(bench_engines, "open_core", lambda library, threads: Old(open_core(library, threads=threads)))
    notes: list[str] = []
    for _ in range(2):
        engines = open_engines({"fp32": model}, dense=True, runtimes=["openvino"], notes=notes)
        assert [each.backend for each in engines] == [f"{DENSE}, OpenVINO fp32"]
    assert notes == ["bf16 is left out: this processor has no instructions for it, and OpenVINO would run fp32."]


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(DENSE, 1.0), row("MRA, OpenVINO int8", 3.7, precision="int8"), row("MRA, x", 2.0, precision="int4")]
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        path = tmp_path / f"plot{suffix}"
        check_plot(path)
        write_plot(path, {"batch 1": rows, "batch 2": rows}, title="a model")
        assert path.read_bytes().startswith(start)
    shown = (tmp_path / "plot.svg").read_text()
    assert all(text in shown for text in ("MRA, OpenVINO int8", "batch 2", "a model"))
    with pytest.raises(InputError, match=r"plot\.txt must end with one of \.png, \.svg, \.pdf"):
        check_plot(tmp_path / "plot.txt")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DependencyError, match=r"needs matplotlib.*pip install matplotlib"):
        check_plot(tmp_path / "plot.png")


def test_bad_requests_end_before_anything_is_timed(
    tiny_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    existing = tmp_path / "there.png"
    existing.write_bytes(b"mine")
    for arguments, message in (
        (["--seq-len", "1:64:300"], "max_position_embeddings=256"),
        (["--plot", existing], "already exists"),
        (["--plot", tmp_path / "plot.gif"], "must end with one of"),
        (["--calibrate", existing], "--calibrate is for --int8"),
    ):
        assert run("bench", tiny_export, *arguments) == 2
        assert message in capsys.readouterr().err
    assert existing.read_bytes() == b"mine"


def test_half_types_are_refused_on_a_cpu(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "o", dtype="fp16").model
    with pytest.raises(InputError, match="is of type fp16; on a CPU only fp32 is compared"):
        bench(read_onnx(path), batches=[1], seq_lens=[32])


def test_the_command(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "plot.png"
    arguments: list[Any] = ["--seq-len", "16:32:32", "--threads", "1", "--runtime", "onnxruntime", "--plot", plot]
    assert run("bench", tiny_checkpoint, *arguments, "--json", "-q") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ok"] is True
    assert result["outputs"] == [str(plot)]
    assert {each["seq_len"] for each in result["rows"]} == {16, 32}
    assert [(each["batch"], each["seq_len"]) for each in result["fastest"]] == [(1, 16), (1, 32)]
    assert {each["backend"] for each in result["fastest"]} <= {each["backend"] for each in result["rows"]}
    assert plot.read_bytes().startswith(b"\x89PNG")
