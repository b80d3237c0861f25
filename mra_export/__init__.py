"""Exports MRA encoders and their siblings to ONNX, TensorRT and OpenVINO, and proves that they compute what PyTorch computes.

What the commands do is here as functions; each is imported when it is first asked for, so that `import mra_export` costs nothing.
docs/python.md has an example of each.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mra_export.version import __version__

if TYPE_CHECKING:
    from mra_export.bundle.verify import verify_bundle
    from mra_export.checkpoint.load import load_checkpoint
    from mra_export.embedding.run import embed
    from mra_export.errors import DependencyError, InputError, MraExportError, ParityError
    from mra_export.export.exporter import export_onnx
    from mra_export.export.int8 import Int8Request
    from mra_export.native.libraries import onnxruntime_library
    from mra_export.pipeline.build_engine import build_engine
    from mra_export.pipeline.check import check
    from mra_export.pipeline.convert_dense import from_dense
    from mra_export.pipeline.create_bundle import create_bundle
    from mra_export.pipeline.export_openvino import export_openvino
    from mra_export.pipeline.source import ExportRequest

__all__ = [
    "DependencyError",
    "ExportRequest",
    "InputError",
    "Int8Request",
    "MraExportError",
    "ParityError",
    "__version__",
    "build_engine",
    "check",
    "create_bundle",
    "embed",
    "export_onnx",
    "export_openvino",
    "from_dense",
    "load_checkpoint",
    "onnxruntime_library",
    "verify_bundle",
]

_HOMES = {
    "DependencyError": "errors",
    "ExportRequest": "pipeline.source",
    "InputError": "errors",
    "Int8Request": "export.int8",
    "MraExportError": "errors",
    "ParityError": "errors",
    "build_engine": "pipeline.build_engine",
    "check": "pipeline.check",
    "create_bundle": "pipeline.create_bundle",
    "embed": "embedding.run",
    "export_onnx": "export.exporter",
    "export_openvino": "pipeline.export_openvino",
    "from_dense": "pipeline.convert_dense",
    "load_checkpoint": "checkpoint.load",
    "onnxruntime_library": "native.libraries",
    "verify_bundle": "bundle.verify",
}
"""Public name -> its module."""


def __getattr__(name: str) -> Any:
    """A public name, from the module that has it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
