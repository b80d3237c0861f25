"""The exported file in OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.openvino.core import compile_model, open_core
from mra_export.runners.traced import operator_feeds, operator_model, operator_note, split_trace, traceable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mra_export.export.onnx_model import OnnxModel
    from mra_export.trace import Array, Inputs, Trace

__all__ = ["OpenVinoRunner"]


class OpenVinoRunner:
    """An exported file in OpenVINO on the CPU, with the native operator."""

    def __init__(
        self, model: OnnxModel, *, library: Path | None, precision: str = "fp32", file: Path | None = None
    ) -> None:
        """Args:
        model: the .onnx file.
        library: the extension library; None where the file needs none.
        precision: of the arithmetic, "fp32" or "bf16".
        file: the .xml file that was made of it, to be run in its place where the layers need not be seen.
        """
        self.model = model
        self.precision = precision
        self.file = file or model.path
        shown = f"{model.precision} + {precision}" if model.precision == "int8" else precision
        self.name = f"{self.file.name} {shown}, OpenVINO{operator_note('native operator', model)}"
        self._core = open_core(library)
        self._compiled: Any = None
        self._traced: Any = None

    def run(self, inputs: Inputs) -> dict[str, Array]:
        """The outputs by name."""
        if self._compiled is None:
            self._compiled = compile_model(self._core, self.file, self.precision)
        found = _by_name(self._compiled, inputs)
        return {name: found[name] for name in self.model.outputs}

    def trace(self, inputs: Inputs) -> Trace:
        """The outputs and what the attention layers saw."""
        if self._traced is None:
            with traceable(self.model) as path:
                self._traced = compile_model(self._core, path, self.precision)
        return split_trace(self.model, _by_name(self._traced, inputs))

    def run_operator(self, attributes: Any, tensors: Sequence[Array], mask: Array) -> Array | None:
        """The operator alone on query, key, value; see `Runner`."""
        model = operator_model(self.model, attributes, tensors, "fp32")
        if model is None:
            return None
        compiled = compile_model(self._core, self._core.read_model(model.SerializeToString()), "fp32")
        found = compiled(operator_feeds(tensors, mask, np.float32))
        return np.asarray(next(iter(found.values())), np.float32)


def _by_name(compiled: Any, inputs: Inputs) -> dict[str, Array]:
    names = [name for value in compiled.inputs for name in value.names if name in inputs]
    found = compiled({name: inputs[name] for name in names}, share_inputs=True)
    # What OpenVINO has merged has several names.
    return {name: np.array(found[output], np.float32) for output in compiled.outputs for name in output.names}
