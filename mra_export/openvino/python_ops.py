"""The native operators as nodes in Python, for an OpenVINO that no extension was built for and where no compiler can build one.

The nodes call C functions of the ONNX Runtime library (`plugins/onnxruntime/attention_call.cc`), which knows no runtime's release.
The kernels are those of the extension and so are the numbers; threads are started for each call, beside those of OpenVINO.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from mra_export.errors import InputError
from mra_export.families._registry import families
from mra_export.operators.limits import HEAD_DIM_MULTIPLE
from mra_export.optional import require

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from mra_export.families._base import Family

__all__ = ["add_operators"]

_TYPES = {"f32": 0, "f16": 1, "bf16": 2}
"""OpenVINO's element type -> `DType` of kernels/common/call.h."""
_C_TYPES = {int: ctypes.c_int64, float: ctypes.c_float}
_MESSAGE_SIZE = 512


def add_operators(core: Any, library: Path, *, threads: int = 0) -> None:
    """Gives an `openvino.Core` every native operator, for ONNX files and for OpenVINO's own.

    Args:
        core: the core.
        library: libmra_onnxruntime.so.
        threads: of each call, 0 for one on each processor.

    Raises:
        InputError: the library cannot be loaded, or is of another version of this package.
    """
    openvino = require("openvino", "OpenVINO is not installed.")
    onnx_frontend = require("openvino.frontend.onnx", "OpenVINO has no frontend for ONNX.")
    try:
        native = ctypes.CDLL(str(library.resolve()))
    except OSError as error:
        raise InputError(f"{library} cannot be loaded: {error}.") from error
    for family in {family.operator: family for family in families().values() if family.operator_attributes}.values():
        domain, kind = family.operator
        try:
            function = native[f"mra_call_{kind}"]
        except AttributeError as error:
            raise InputError(
                f"{library} is of another version of mra-export: it has no function mra_call_{kind}. Run `mra-export build`."
            ) from error
        node = _node_class(openvino, family, function, threads)
        core.add_extension(node)
        core.add_extension(onnx_frontend.ConversionExtension(kind, domain, _reader(node, family)))


def _reader(node: Any, family: Family) -> Callable[[Any], Any]:
    """What makes a node of one in an ONNX file."""

    def read(context: Any) -> Any:
        inputs = [context.get_input(index) for index in range(context.get_input_size())]
        return node(inputs, {name: context.get_attribute(name) for name in family.operator_attributes}).outputs()

    return read


def _params_class(family: Family) -> type[ctypes.Structure]:
    """The operator's params struct (kernels/OPERATOR/OPERATOR.h), field by field."""

    fields: list[tuple[str, Any]] = [(name, ctypes.c_void_p) for name in (*family.operator_inputs, "context")]
    fields += [(name, ctypes.c_int64) for name in ("batch", "seq_len", "hidden_size")]
    fields.append(("dtype", ctypes.c_int32))
    fields += [(name, _C_TYPES[kind]) for name, kind in family.operator_attributes.items()]

    class Params(ctypes.Structure):
        _fields_ = fields

    return Params


def _node_class(openvino: Any, family: Family, function: Any, threads: int) -> Any:
    domain, kind = family.operator
    params_class = _params_class(family)
    type_info = openvino.DiscreteTypeInfo(kind, domain)
    defaults = {name: value() for name, value in family.operator_attributes.items()} | {"accuracy": "fp32"}

    class Node(openvino.Op):  # type: ignore[misc]  # the base comes from a module that is imported late
        def __init__(self, inputs: Any = None, attributes: Mapping[str, Any] | None = None) -> None:
            self.attributes = defaults | dict(attributes or {})
            super().__init__(self, inputs)

        def get_type_info(self) -> Any:
            return type_info

        def validate_and_infer_types(self) -> None:
            # No example, of the smallest head: a bad attribute fails where the model is read.
            hidden_size = self.attributes["num_heads"] * HEAD_DIM_MULTIPLE
            self.call((0, 1, hidden_size), "f32", {})
            self.set_output_type(0, self.get_input_element_type(0), self.get_input_partial_shape(0))

        def clone_with_new_inputs(self, inputs: Any) -> Any:
            return Node(inputs, self.attributes)

        def visit_attributes(self, visitor: Any) -> bool:
            visitor.on_attributes(self.attributes)
            return True

        def has_evaluate(self) -> bool:
            return True

        def evaluate(self, outputs: Any, inputs: Any) -> bool:
            names = _checked(family, family.attributes_from(self.attributes), inputs)
            outputs[0].shape = inputs[0].shape
            arrays = {name: tensor.data for name, tensor in zip(names, inputs, strict=True)} | {
                "context": outputs[0].data
            }
            self.call(inputs[0].shape, _type(inputs[0]), {name: array.ctypes.data for name, array in arrays.items()})
            return True

        def call(self, shape: Sequence[int], element_type: str, addresses: Mapping[str, int]) -> None:
            sizes = dict(zip(("batch", "seq_len", "hidden_size"), shape, strict=True))
            attributes = {name: self.attributes[name] for name in family.operator_attributes}
            params = params_class(**addresses, **sizes, dtype=_TYPES[element_type], **attributes)
            message = ctypes.create_string_buffer(_MESSAGE_SIZE)
            accuracy, size = str(self.attributes["accuracy"]).encode(), ctypes.c_size_t(_MESSAGE_SIZE)
            if not function(ctypes.byref(params), accuracy, ctypes.c_size_t(threads), message, size):
                raise ValueError(f"{kind}: {message.value.decode(errors='replace')}")

    return Node


def _checked(family: Family, attributes: Any, inputs: Any) -> tuple[str, ...]:
    """The names of a call's inputs, of which the native code sees addresses only.

    Raises:
        ValueError: their number, a shape or a type is wrong.
    """
    kind, query = family.operator[1], inputs[0]
    shape = tuple(query.shape)
    if len(shape) != 3 or _type(query) not in _TYPES:
        raise ValueError(
            f"{kind}: query is {_type(query)}{list(shape)}; it must be {', '.join(_TYPES)} of 3 dimensions."
        )
    dims_of: dict[str, tuple[int, ...]] = dict.fromkeys(("query", "key", "value"), shape)
    dims_of["attention_mask"] = shape[:2]
    dims_of |= family.constant_shapes(attributes, shape[2] // max(attributes.num_heads, 1))
    if len(inputs) != len(dims_of):
        raise ValueError(f"{kind}: it has {len(inputs)} inputs; by its attributes it must have {len(dims_of)}.")
    for (name, dims), tensor in zip(dims_of.items(), inputs, strict=True):
        element_type = "i32" if name in family.operator_integers else _type(query)
        if tuple(tensor.shape) != dims or _type(tensor) != element_type:
            raise ValueError(
                f"{kind}: {name} is {_type(tensor)}{list(tensor.shape)}; by query and the attributes it must be "
                f"{element_type}{list(dims)}."
            )
    return tuple(dims_of)


def _type(tensor: Any) -> str:
    return str(tensor.element_type.to_string())
