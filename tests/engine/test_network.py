"""What of a parsed network is counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mra_export.engine.network import check_quantized
from mra_export.errors import MraExportError


def network(*types: str) -> Any:
    made = SimpleNamespace(dtype=SimpleNamespace(name="INT8"))
    layers = [SimpleNamespace(type=SimpleNamespace(name=name), get_output=lambda _: made) for name in types]
    return SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__)


def test_every_quantization_of_the_file_is_a_layer() -> None:
    nodes = [SimpleNamespace(op_type=name) for name in ("QuantizeLinear", "MatMul", "QuantizeLinear")]
    model: Any = SimpleNamespace(path="model.onnx", proto=SimpleNamespace(graph=SimpleNamespace(node=nodes)))
    backend: Any = SimpleNamespace(title="TensorRT")
    check_quantized(backend, network("QUANTIZE", "MATRIX_MULTIPLY", "QUANTIZE"), model)
    with pytest.raises(MraExportError, match=r"parsed model\.onnx into 1 quantizations to int8, but it has 2"):
        check_quantized(backend, network("QUANTIZE", "MATRIX_MULTIPLY"), model)
