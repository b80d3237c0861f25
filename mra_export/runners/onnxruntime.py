"""The exported file in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.optional import require_onnxruntime
from mra_export.runners.session import open_session, runtime_errors, session_options
from mra_export.runners.traced import operator_feeds, operator_model, operator_note, split_trace, traceable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mra_export.export.onnx_model import OnnxModel
    from mra_export.trace import Array, Inputs, Trace

__all__ = ["OnnxRuntimeRunner"]


class OnnxRuntimeRunner:
    """The exported file in an ONNX Runtime session on the CPU: the function body, or with `library` the native operator."""

    def __init__(self, model: OnnxModel, *, library: Path | None = None, threads: int = 0) -> None:
        self.model = model
        self.library = library
        self.threads = threads
        note = operator_note("native operator" if library else "function body", model)
        self.name = f"{model.path.name} {model.precision}, ONNX Runtime{note}"
        self._session: Any = None
        self._traced: Any = None

    def run(self, inputs: Inputs) -> dict[str, Array]:
        """The outputs by name."""
        if self._session is None:
            self._session = self._load(str(self.model.path))
        return self._by_name(self._session, inputs)

    def trace(self, inputs: Inputs) -> Trace:
        """The outputs and what the attention layers saw."""
        if self._traced is None:
            with traceable(self.model) as path:
                self._traced = self._load(str(path))
        return split_trace(self.model, self._by_name(self._traced, inputs))

    def run_operator(self, attributes: Any, tensors: Sequence[Array], mask: Array) -> Array | None:
        """The operator alone on query, key, value; see `Runner`."""
        dtype = "fp16" if self.model.dtype == "fp16" else "fp32"
        model = operator_model(self.model, attributes, tensors, dtype)
        if model is None:
            return None
        session = self._load(model.SerializeToString())
        kind = np.float16 if dtype == "fp16" else np.float32
        with runtime_errors(str(self.model.path)):
            context = session.run(None, operator_feeds(tensors, mask, kind))[0]
        return np.asarray(context, np.float32)

    def _load(self, model: str | bytes) -> Any:
        require_onnxruntime(otherwise=" (or onnxruntime-gpu)")
        options = session_options(self.library, threads=self.threads)
        return open_session(model, options, shown=str(self.model.path))

    def _by_name(self, session: Any, inputs: Inputs) -> dict[str, Array]:
        wanted = [i.name for i in session.get_inputs()]
        with runtime_errors(str(self.model.path)):
            values = session.run(None, {name: inputs[name] for name in wanted})
        return dict(zip((o.name for o in session.get_outputs()), (v.astype(np.float32) for v in values), strict=True))
