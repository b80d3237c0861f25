"""`mra-export bundle`, and `check` of a bundle."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundle_support import (
    FILES,
    Parts,
    native,
    run,
)
from checkpoints import save_checkpoint

from mra_export.bundle.manifest import MANIFEST_FILE, Bundle
from mra_export.errors import DependencyError
from mra_export.export.onnx_model import MODEL_FILE, read_onnx


@pytest.mark.native
@pytest.mark.slow
def test_the_commands(parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = native(parts)
    output = tmp_path / "b"
    code, made = run(
        "bundle", parts.onnx, "-o", output, "--engine", parts.engines[0], "--engine", parts.engines[1],
        "--plugin-lib", parts.plugin, "--plugin-lib", library, capsys=capsys,
    )  # fmt: skip
    assert (code, made["ok"], made["command"], made["outputs"]) == (0, True, "bundle", [str(output)]), made.get("error")
    assert sorted(made["files"]) == FILES
    assert [variant["backend"] for variant in made["variants"]] == ["onnxruntime", "rtx", "tensorrt"]
    assert all(c["ok"] for c in made["comparisons"])
    assert [c["reference"].startswith("specification") for c in made["comparisons"]] == [True, False, True]

    code, checked = run("check", output, "--max-seq-len", 64, "--report", tmp_path / "r.html", capsys=capsys)
    assert (code, checked["ok"], checked["manifest_sha256"]) == (0, True, made["manifest_sha256"])
    assert "specification, operator by operator" in (tmp_path / "r.html").read_text()
    assert [c["ok"] for c in checked["comparisons"]] == [True, True, True, None, None]  # engines need a GPU
    assert len(checked["parity"]) == 3
    code, checked = run("check", parts.checkpoint, output, "--max-seq-len", 64, capsys=capsys)
    assert (code, checked["ok"]) == (0, True)
    assert len([c for c in checked["comparisons"] if c["ok"]]) == 5  # the fifth is of texts, from end to end

    (output / "NOTICE").unlink()
    for arguments in (["check", output], ["check", parts.checkpoint, output]):
        code, failed = run(*arguments, capsys=capsys)
        assert (code, failed["ok"]) == (2, False)
        assert f"{output / 'NOTICE'} is missing" in failed["error"]
    (output / MANIFEST_FILE).unlink()
    code, failed = run("check", output, capsys=capsys)
    assert code == 2
    assert f"{output / MANIFEST_FILE} is missing" in failed["error"]


@pytest.mark.slow
def test_the_words_for_people(parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mra_export.cli import main

    for arguments in (
        ["bundle", parts.onnx, "-o", tmp_path / "b", "--no-check"],
        ["check", tmp_path / "b", "--max-seq-len", 40],
    ):
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        assert stop.value.code == 0
    said = capsys.readouterr().out
    assert f"  next: mra-export check {tmp_path / 'b'}\n" in said
    assert "RECORDED nothing: the bundle was written without a check." in said
    assert f"VERIFIED {tmp_path / 'b'}: feature-extraction, ONNX Runtime fp32" in said


@pytest.mark.parametrize("option", [("--task", "fill-mask"), ("--plugin-lib", "x.so"), ("--kernel-sources", "x")])
def test_options_that_a_bundle_alone_has_no_use_for(
    option: tuple[str, str], whole: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    code, failed = run("check", whole.path, *option, capsys=capsys)
    assert code == 2
    assert failed["error"].startswith(f"{option[0]} cannot be used with {whole.path} alone")


def test_the_check_uses_the_bundles_own_library(
    parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "libmra_onnxruntime.so").write_bytes(b"no library")
    made = parts.bundle(tmp_path / "b", engines=(), library=tmp_path / "libmra_onnxruntime.so")
    for arguments in (["check", made.path], ["check", parts.checkpoint, made.path]):
        code, failed = run(*arguments, "--max-seq-len", 40, capsys=capsys)
        assert code == 2
        assert f"{made.library} is not the operator library" in failed["error"]


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("damage", [0.0, 0.1])
def test_engines_are_run_where_there_is_a_gpu(
    damage: float, parts: Parts, whole: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime in the place of what only a GPU runs; one of the two engines is for another GPU."""
    from mra_export.engine.runner import EngineRunner
    from mra_export.runners.onnxruntime import OnnxRuntimeRunner

    native(parts)

    class Activated:
        def infer(self, feed: dict[str, Any]) -> dict[str, Any]:
            values = OnnxRuntimeRunner(read_onnx(whole.model_file)).run(feed)
            return {name: value * (1 + damage) for name, value in values.items()}

        def deactivate(self) -> None:
            pass

    def enter(runner: EngineRunner) -> EngineRunner:
        if runner.manifest.gpu == "NVIDIA L4":
            raise DependencyError("It needs a GPU of compute capability 8.9 exactly; this one has 9.0.")
        runner._runner = Activated()
        return runner

    monkeypatch.setattr("mra_export.pipeline.check_engines.missing_for_engine", lambda: None)
    monkeypatch.setattr(EngineRunner, "__enter__", enter)
    for arguments in (["check", whole.path], ["check", parts.checkpoint, whole.path]):
        code, made = run(*arguments, "--max-seq-len", 64, capsys=capsys)
        engines = {c["candidate"].split()[0]: c for c in made["comparisons"] if ".engine" in c["candidate"]}
        assert code == (3 if damage else 0)
        assert engines["fast.engine"]["ok"] is (damage == 0)
        assert engines["other.engine"]["ok"] is None
        assert "8.9 exactly; this one has 9.0" in engines["other.engine"]["notes"][0]


def break_operator(source: Path) -> None:
    """The function body's result times 1.01."""
    model = onnx.load(source / MODEL_FILE)
    body = model.functions[0]
    body.node[-1].output[0] = "almost"
    factor = onnx.numpy_helper.from_array(np.array(1.01, np.float32), "factor")
    body.node.append(onnx.helper.make_node("Constant", [], ["factor"], value=factor))
    body.node.append(onnx.helper.make_node("Mul", ["almost", "factor"], [body.output[0]]))
    onnx.save(model, source / MODEL_FILE)


@pytest.mark.native
@pytest.mark.slow
def test_an_operator_that_is_not_the_specifications(
    parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(parts.onnx, tmp_path / "onnx"))
    break_operator(source)
    code, failed = run("bundle", source, "-o", tmp_path / "b", "--plugin-lib", native(parts), capsys=capsys)
    assert (code, failed["ok"]) == (3, False)
    assert "the difference is in layer.0" in failed["error"]
    assert [c["ok"] for c in failed["comparisons"]] == [False, False, True]  # the native operator is right
    assert not (tmp_path / "b").exists()
    assert run("bundle", source, "-o", tmp_path / "b", "--no-check", capsys=capsys)[0] == 0
    code, failed = run("check", tmp_path / "b", "--max-seq-len", 40, capsys=capsys)
    assert (code, failed["ok"]) == (3, False)


@pytest.mark.native
def test_weights_of_another_checkpoint(parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = save_checkpoint(tmp_path / "other", seed=1)
    made = parts.bundle(tmp_path / "b", engines=())
    assert run("check", other, made.path, "--max-seq-len", 40, capsys=capsys)[0] == 3
    assert run("check", made.path, "--max-seq-len", 40, capsys=capsys)[0] == 0  # that needs the checkpoint to be seen
