"""Exported files in OpenVINO: the .onnx file, and the IR that was made of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.errors import InputError
from mra_export.openvino.core import compile_model, open_core, operator_library, operators_shown
from mra_export.openvino.ir import read_program
from mra_export.runners.traced import operator_feeds, operator_model, operator_note, split_trace, traceable
from mra_export.trace import LayerTrace, Trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mra_export.export.onnx_model import OnnxModel
    from mra_export.openvino.ir import IrModel
    from mra_export.trace import Array, Inputs

__all__ = ["IrRunner", "OpenVinoRunner"]


class OpenVinoRunner:
    """An exported file in OpenVINO on the CPU, with the native operator."""

    def __init__(self, model: OnnxModel, *, library: Path | None, precision: str = "fp32") -> None:
        """Args:
        model: the .onnx file.
        library: from `operator_library`; None where the file needs none.
        precision: of the arithmetic, "fp32" or "bf16".
        """
        self.model = model
        self.precision = precision
        shown = f"{model.precision} + {precision}" if model.precision == "int8" else precision
        how = operators_shown(library) if library is not None else ""
        self.name = f"{model.path.name} {shown}, OpenVINO{operator_note(how, model)}"
        self._core = open_core(library)
        self._compiled: Any = None
        self._traced: Any = None

    def run(self, inputs: Inputs) -> dict[str, Array]:
        """The outputs by name."""
        if self._compiled is None:
            self._compiled = compile_model(self._core, self.model.path, self.precision)
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
        return None if model is None else _run_node(self._core, model, tensors, mask)


class IrRunner:
    """A file of OpenVINO's own on the CPU, with the precision that it is meant for."""

    def __init__(self, model: IrModel, *, library: Path | None = None, threads: int = 0) -> None:
        """Args:
        model: the .xml file.
        library: as for `operator_library`, where one is needed.
        threads: 0 for OpenVINO's choice.
        """
        self.model = model
        self.library = library
        self.threads = threads
        used = None if model.portable else operator_library(library)
        how = "stock" if used is None else operators_shown(used)
        self.name = f"{model.path.name} {model.precision}, OpenVINO ({how})"
        self._core = open_core(used, threads=threads)
        self._compiled: Any = None
        self._traced: Any = None
        self._layers: list[list[int]] = []

    def run(self, inputs: Inputs) -> dict[str, Array]:
        """The outputs by name."""
        if self._compiled is None:
            self._compiled = self._compile(read_program(self._core, self.model))
        return self._outputs(_by_name(self._compiled, inputs))

    def trace(self, inputs: Inputs) -> Trace:
        """The outputs and what the attention layers saw.

        Raises:
            InputError: the file is portable, or is none of this tool: it has no node for each attention layer.
        """
        if self._traced is None:
            program = read_program(self._core, self.model)
            self._layers = self._show_layers(program)
            self._traced = self._compile(program)
        found = _in_order(self._traced, inputs)
        layers = [LayerTrace(*(found[place] for place in places)) for places in self._layers]
        return Trace(self._outputs(_by_place(self._traced, found)), layers)

    def run_operator(self, attributes: Any, tensors: Sequence[Array], mask: Array) -> Array | None:
        """The operator alone on query, key, value; see `Runner`."""
        family = self.model.family
        model = family.operator_model(attributes, tensors[0].shape[2], "fp32", family.default_opset, [])
        return None if model is None or self.model.portable else _run_node(self._core, model, tensors, mask)

    def _compile(self, program: Any) -> Any:
        return compile_model(self._core, program, self.model.dtype, threads=self.threads)

    def _outputs(self, named: dict[str, Array]) -> dict[str, Array]:
        missing = sorted(set(self.model.outputs) - set(named))
        if missing:
            raise InputError(f"{self.model.path} has no output {missing[0]}, which it says it has. Write it again.")
        return {name: named[name] for name in self.model.outputs}

    def _show_layers(self, program: Any) -> list[list[int]]:
        """Makes outputs of what goes into and out of attention; the places of query, key, value and context, layer by layer."""
        domain, kind = self.model.family.operator
        nodes = [
            node
            for node in program.get_ordered_ops()
            if (node.get_type_info().version_id, node.get_type_name()) == (domain, kind)
        ]
        if len(nodes) != len(self.model.attributes):
            raise InputError(
                f"{self.model.path} has {len(nodes)} nodes of {domain}::{kind} for {len(self.model.attributes)} attention "
                "layers. Write it again."
            )
        places: dict[tuple[str, int], int] = {}
        layers = []
        for node in nodes:
            values = [*(node.input_value(index) for index in range(3)), node.output(0)]
            keys = [(value.get_node().get_friendly_name(), value.get_index()) for value in values]
            for key, value in zip(keys, values, strict=True):
                if key not in places:
                    places[key] = len(program.outputs)
                    program.add_outputs([value])
            layers.append([places[key] for key in keys])
        return layers


def _run_node(core: Any, model: Any, tensors: Sequence[Array], mask: Array) -> Array:
    """An ONNX model of one attention node."""
    compiled = compile_model(core, core.read_model(model.SerializeToString()), "fp32")
    return _in_order(compiled, operator_feeds(tensors, mask, np.float32))[0]


def _by_name(compiled: Any, inputs: Inputs) -> dict[str, Array]:
    return _by_place(compiled, _in_order(compiled, inputs))


def _in_order(compiled: Any, inputs: Inputs) -> list[Array]:
    names = [name for value in compiled.inputs for name in value.names if name in inputs]
    found = compiled({name: inputs[name] for name in names}, share_inputs=True)
    return [np.array(found[index], np.float32) for index in range(len(compiled.outputs))]


def _by_place(compiled: Any, values: list[Array]) -> dict[str, Array]:
    # What OpenVINO has merged has several names.
    return {name: value for output, value in zip(compiled.outputs, values, strict=True) for name in output.names}
