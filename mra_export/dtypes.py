"""The types that weights and activations may have, and what each library calls them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DTYPES", "MASKED", "DType", "dtype_of_onnx", "onnx_type"]


@dataclass(frozen=True)
class DType:
    """Names of one type.

    Attributes:
        onnx: of `onnx.TensorProto` and `onnx_ir.DataType`.
        torch: of torch, and of numpy where that has it.
        tensorrt: of `tensorrt.DataType`.
        inspected: a pattern for what TensorRT's engine inspector writes.
        triton: in Triton's model configuration.
    """

    onnx: str
    torch: str
    tensorrt: str
    inspected: str
    triton: str


DTYPES = {
    "fp32": DType("FLOAT", "float32", "FLOAT", r"\b(FP32|Float32|Float)\b", "TYPE_FP32"),
    "fp16": DType("FLOAT16", "float16", "HALF", r"\b(FP16|Float16|Half)\b", "TYPE_FP16"),
    "bf16": DType("BFLOAT16", "bfloat16", "BF16", r"\b(BF16|BFloat16)\b", "TYPE_BF16"),
}
"""By the name that the command line gives them."""


def onnx_type(dtype: str) -> int:
    """The number of one of `DTYPES` in `onnx.TensorProto`."""
    from onnx import TensorProto

    return TensorProto.DataType.Value(DTYPES[dtype].onnx)


def dtype_of_onnx(number: int) -> str | None:
    """Which of `DTYPES` a number of `onnx.TensorProto` is, None for another type."""
    return next((name for name in DTYPES if onnx_type(name) == number), None)


MASKED = {"fp32": -1.7014117331926443e38, "fp16": -32752.0, "bf16": -1.6947656946257677e38}
"""What is added to a logit whose key has no weight, by type: half of the lowest number. With all of it the sum with a negative
logit would be infinite in float16, and a row of such sums NaN; and ONNX Runtime's Attention writes 0 for such a row."""
