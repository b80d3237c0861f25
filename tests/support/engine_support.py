"""What the tests of engines share: building, the command line, and ONNX Runtime in the place of a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from checkpoints import save_checkpoint

from mra_export.checkpoint.load import load_checkpoint
from mra_export.export.exporter import export_onnx
from mra_export.export.onnx_model import read_onnx
from mra_export.pipeline import build_engine as engine_module
from mra_export.pipeline.build_engine import EngineResult, build_engine

CLASSES = {
    "feature-extraction": "MraModel",
    "fill-mask": "MraForMaskedLM",
    "text-classification": "MraForSequenceClassification",
    "multiple-choice": "MraForMultipleChoice",
    "token-classification": "MraForTokenClassification",
    "question-answering": "MraForQuestionAnswering",
}


TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}


def build(onnx_file: Path, output: Path, plugin: Path, **options: Any) -> EngineResult:
    return build_engine(onnx_file, output, backend="rtx", library=plugin, **options)


def half_export(folder: Path) -> Path:
    checkpoint = load_checkpoint(save_checkpoint(folder / "checkpoint"))
    return export_onnx(checkpoint, folder / "half", dtype="fp16").model


def run(*arguments: Any) -> tuple[int, str, str]:
    """The command line in this process: exit code, standard output, standard error."""
    import contextlib
    import io

    from mra_export.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


def assert_message(text: str, pattern: str) -> None:
    import re

    assert re.search(pattern, " ".join(text.split())), text
    assert "Traceback" not in text


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
