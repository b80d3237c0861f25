"""The exported file in onnx's own evaluator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.runners.traced import operator_feeds, operator_model, operator_note, split_trace, traceable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mra_export.export.onnx_model import OnnxModel
    from mra_export.trace import Array, Inputs, Trace

__all__ = ["OnnxReferenceRunner"]


class OnnxReferenceRunner:
    """The exported file in onnx's own ReferenceEvaluator: slow, but it has every type, bfloat16 included."""

    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self.name = f"{model.path.name} {model.dtype}, onnx ReferenceEvaluator{operator_note('function body', model)}"
        self._evaluator: Any = None

    def run(self, inputs: Inputs) -> dict[str, Array]:
        """The outputs by name."""
        return self.trace(inputs).outputs

    def trace(self, inputs: Inputs) -> Trace:
        """The outputs and what the attention layers saw."""
        import onnx
        from onnx.reference import ReferenceEvaluator

        if self._evaluator is None:
            with traceable(self.model) as path:
                self._evaluator = ReferenceEvaluator(onnx.load(str(path)), new_ops=_float32_accumulation())
        with np.errstate(all="ignore"):
            values = self._evaluator.run(None, {name: inputs[name] for name in self.model.inputs})
        named = dict(zip(self._evaluator.output_names, (v.astype(np.float32) for v in values), strict=True))
        return split_trace(self.model, named)

    def run_operator(self, attributes: Any, tensors: Sequence[Array], mask: Array) -> Array | None:
        """The operator alone on query, key, value; see `Runner`."""
        from onnx.reference import ReferenceEvaluator

        model = operator_model(self.model, attributes, tensors, "fp32")
        if model is None:
            return None
        evaluator = ReferenceEvaluator(model)
        with np.errstate(all="ignore"):
            context: list[Array] = evaluator.run(None, operator_feeds(tensors, mask, np.float32))  # type: ignore[assignment]
        return context[0]


def _float32_accumulation() -> list[Any]:
    """Operators that accumulate in float32, as every runtime does for half types and `stash_type` asks for.

    onnx's own accumulate in the type itself, which for bfloat16 costs ten times the error.
    """
    import torch
    from onnx.reference.op_run import OpRun

    class MatMul(OpRun):
        op_domain = ""

        def _run(self, a: Array, b: Array) -> tuple[Array]:
            wide = (torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)) for x in (a, b))
            return (torch.matmul(*wide).numpy().astype(a.dtype),)

    class LayerNormalization(OpRun):
        op_domain = ""

        def _run(
            self, x: Array, scale: Array, bias: Array, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
        ) -> tuple[Array]:
            wide = x.astype(np.float32)
            axes = tuple(range(axis % x.ndim, x.ndim))
            centred = wide - wide.mean(axes, keepdims=True)
            normal = centred / np.sqrt((centred**2).mean(axes, keepdims=True) + epsilon)
            return ((normal * scale.astype(np.float32) + bias.astype(np.float32)).astype(x.dtype),)

    return [MatMul, LayerNormalization]
