"""What is read from the builder's own report of an engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mra_export.engine.builder import inspected_types
from mra_export.errors import InputError
from mra_export.export.onnx_model import read_onnx


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
@pytest.mark.slow
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
