"""Exports MRA encoders (Zeng et al., 2022) to ONNX and TensorRT, and proves that they compute what PyTorch computes."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
