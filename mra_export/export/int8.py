"""Linear layers in int8: one file of standard QuantizeLinear and DequantizeLinear nodes that every engine runs.

The rules are those under which ONNX Runtime, OpenVINO and TensorRT all take their integer kernels: activations with zero point 0
and one scale a tensor, weights with one scale an output column, query, key and value as one product and a Split, so that each
QuantizeLinear has exactly one DequantizeLinear. Biases, the residual, the normalization and the attention stay in float.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.errors import InputError
from mra_export.export.onnx_model import OnnxModel, read_onnx, save_program

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    import onnx_ir as ir

    from mra_export.families._base import Family

__all__ = [
    "RANGE_PREFIX",
    "SWITCHES",
    "Int8Request",
    "Linear",
    "check_family",
    "check_quantizable",
    "is_int8",
    "linears_of",
    "quantize",
    "with_ranges",
    "with_switches",
]

Array = np.ndarray[Any, Any]

RANGE_PREFIX = "range:"
"""Of the outputs that `with_ranges` adds."""
SWITCHES = "int8_layers"
"""The input that `with_switches` adds."""
_MODULE = re.compile(r"\b(layer\.\d+\..+)\.MatMul(_\d+)?$")
"""In the name of a product of the encoder: its module, as transformers names it. Constants do not tell: equal ones are one."""
_LEAST_RANGE = 1e-5
"""Below it a number counts as this large: a scale of 0 would divide by it."""


@dataclass(frozen=True)
class Int8Request:
    """How a file is to be quantized.

    Attributes:
        texts: from which the ranges are measured; None for those that come with this package.
        every_layer: whether the layers that lose most become int8 too.
    """

    texts: tuple[str, ...] | None = None
    every_layer: bool = False


@dataclass(frozen=True)
class Linear:
    """Linear layers that read the same tensor and become one product.

    Attributes:
        names: of the modules, as `layer.0.attention.self.query`.
        source: name of the tensor that they read.
        in_features: numbers that each reads.
        out_features: numbers that all of them together write.
    """

    names: tuple[str, ...]
    source: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class _Group:
    """A `Linear` in the graph: the products, and the additions of their biases, in the same order."""

    linear: Linear
    source: ir.Value
    products: tuple[ir.Node, ...]
    additions: tuple[ir.Node, ...]

    @property
    def weight(self) -> Array:
        """float32 [in_features, out_features]."""
        return np.concatenate([_constant(node.inputs[1]) for node in self.products], axis=1)

    @property
    def bias(self) -> Array:
        """float32 [out_features]."""
        return np.concatenate([_constant(node.inputs[_bias_place(node)]) for node in self.additions])


def is_int8(model: OnnxModel) -> bool:
    """Whether `quantize` wrote a file."""
    return model.precision == "int8"


def check_family(family: Family) -> None:
    """Refuses a family whose linear layers are not known.

    Raises:
        InputError: it is one.
    """
    if family.second_feed_forward is None:
        raise InputError(f"--int8 knows no linear layers of {family.title}. Leave it out.")


def check_quantizable(model: OnnxModel) -> None:
    """Refuses a file of which `quantize` can make nothing.

    Raises:
        InputError: the file is not float32, is int8 already, or has no linear layers that are known here.
    """
    if model.dtype != "fp32":
        raise InputError(
            f"{model.path} is {model.dtype}, and int8 is made of fp32. Export the checkpoint with --dtype fp32."
        )
    if is_int8(model):
        raise InputError(f"{model.path} is int8 already. Give the float32 export, or the checkpoint.")
    check_family(model.family)
    if not linears_of(model):
        raise InputError(f"{model.path} has no linear layers in an encoder. Export the checkpoint again.")


def linears_of(model: OnnxModel) -> list[Linear]:
    """The linear layers of an export's encoder, in order."""
    import onnx_ir as ir

    return [group.linear for group in _groups(ir.load(model.path).graph)]


def with_ranges(model: OnnxModel, target: Path) -> Path:
    """Writes a file with one more output for each `Linear`: how large each number that it reads gets.

    Args:
        model: a float32 export.
        target: the file to write.

    Returns:
        `target`, whose outputs `RANGE_PREFIX` + `Linear.source` are float32 [in_features].
    """
    import onnx_ir as ir

    program = ir.load(model.path)
    leading = ir.Value(name="range_axes", const_value=ir.tensor(np.array([0, 1], np.int64), name="range_axes"))
    program.graph.register_initializer(leading)
    for group in _groups(program.graph):
        absolute = ir.node("Abs", [group.source])
        largest = ir.node("ReduceMax", [absolute.outputs[0], leading], {"keepdims": 0})
        absolute.outputs[0].name = f"{RANGE_PREFIX}{group.linear.source}:abs"
        largest.outputs[0].name = RANGE_PREFIX + group.linear.source
        largest.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        largest.outputs[0].shape = ir.Shape([group.linear.in_features])
        program.graph.extend([absolute, largest])
        program.graph.outputs.append(largest.outputs[0])
    save_program(program, target)
    return target


def quantize(
    model: OnnxModel,
    ranges: Mapping[str, Array],
    target: Path,
    *,
    smoothing: float | None = None,
    float_layers: Collection[str] = (),
    noted: Mapping[str, str] = {},
) -> OnnxModel:
    """Writes an export with the linear layers of its encoder in int8; the same input gives the same bytes.

    Args:
        model: a float32 export.
        ranges: `Linear.source` -> the largest absolute value of each number that was seen there, float32 [in_features].
        target: the file to write.
        smoothing: how much of the range of what a layer reads is moved into its weights, number by number: the migration strength
            of SmoothQuant (Xiao et al. 2022, arXiv 2211.10438), between 0 and 1; None to move nothing.
        float_layers: of `Linear.names`, what stays in float; a name stands for all that share its product.
        noted: further metadata of the file.

    Returns:
        The written file.

    Raises:
        InputError: as by `check_quantizable`; or a name is unknown.
    """
    import onnx
    import onnx_ir as ir

    check_quantizable(model)
    program = ir.load(model.path)
    groups = _groups(program.graph)
    known = [name for group in groups for name in group.linear.names]
    if unknown := sorted(set(float_layers) - set(known)):
        raise InputError(f"{model.path} has no linear layer {unknown[0]}, but {', '.join(known[:6])} and so on.")
    chosen = [group for group in groups if not set(group.linear.names) & set(float_layers)]
    for group, seen, divide in _smoothed(program.graph, groups, chosen, ranges, model, smoothing):
        _to_int8(program.graph, group, seen, divide)
    program.metadata_props["precision"] = "int8"
    program.metadata_props["int8.smoothing"] = "none" if smoothing is None else f"{smoothing:g}"
    program.metadata_props["int8.float_layers"] = " ".join(name for name in known if name in set(float_layers))
    program.metadata_props.update(noted)
    save_program(program, target)
    onnx.checker.check_model(str(target), full_check=True)
    return read_onnx(target)


def with_switches(
    model: OnnxModel, ranges: Mapping[str, Array], target: Path, *, smoothing: float | None = None
) -> OnnxModel:
    """Writes a file in which each linear layer computes in int8 or in float as its input says: many settings, one file.

    It rounds to int8 and back as `quantize` does, and multiplies in float, which is the same but for the rounding of sums.

    Args:
        model: a float32 export.
        ranges: as for `quantize`.
        target: the file to write.
        smoothing: as for `quantize`.

    Returns:
        The written file, with the further input `SWITCHES`, bool [number of linears_of(model)].
    """
    import onnx_ir as ir

    program = ir.load(model.path)
    groups = _groups(program.graph)
    count = len(groups)
    switches = ir.Value(name=SWITCHES, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([count]))
    program.graph.inputs.append(switches)
    for index, (group, seen, divide) in enumerate(_smoothed(program.graph, groups, groups, ranges, model, smoothing)):
        _to_int8(program.graph, group, seen, divide, (switches, index))
    save_program(program, target)
    return read_onnx(target)


def _smoothed(
    graph: ir.Graph,
    groups: Sequence[_Group],
    chosen: Sequence[_Group],
    ranges: Mapping[str, Array],
    model: OnnxModel,
    smoothing: float | None,
) -> list[tuple[_Group, Array, Array | None]]:
    """Moves ranges of what the chosen groups read into their weights.

    Returns:
        Each chosen group, the ranges of what it then reads, and what that is still to be multiplied with; None for nothing.
    """
    foldable = {addition.outputs[0] for group in groups for addition in group.additions}
    remaining: list[tuple[_Group, Array, Array | None]] = []
    for group in chosen:
        seen = np.maximum(ranges[group.linear.source].astype(np.float64), _LEAST_RANGE)
        if smoothing is None:
            remaining.append((group, seen, None))
            continue
        factor = _smoothing(seen, group.weight, smoothing)
        _scale(graph, group.products, factor[:, None])
        values = _values_of(group.source, model)
        if values in foldable:
            _scale_output(graph, values.producer(), 1 / factor)
            remaining.append((group, seen / factor, None))
        else:
            remaining.append((group, seen / factor, 1 / factor))
    return remaining


def _groups(graph: ir.Graph) -> list[_Group]:
    """The products of the encoder with weights and biases, by what they read."""
    found: dict[ir.Value, list[tuple[str, ir.Node, ir.Node]]] = {}
    for node in graph:
        if node.op_type != "MatMul" or node.inputs[1] is None or node.inputs[1].const_value is None:
            continue
        users = [use.node for use in node.outputs[0].uses()]
        if len(users) != 1 or users[0].op_type != "Add" or node.outputs[0].is_graph_output():
            continue
        module = _MODULE.search(str(node.name)) if _bias_place(users[0]) is not None else None
        source = node.inputs[0]
        if module is not None and source is not None and len(node.inputs[1].shape or ()) == 2:
            found.setdefault(source, []).append((module[1], node, users[0]))
    groups = []
    for source, members in found.items():
        names, products, additions = zip(*members, strict=True)
        sizes = [products[0].inputs[1].shape[0], sum(node.inputs[1].shape[1] for node in products)]
        groups.append(_Group(Linear(names, str(source.name), *map(int, sizes)), source, products, additions))
    return groups


def _bias_place(addition: ir.Node) -> Any:
    """Which input of an Add is the constant; None where none is."""
    return next(
        (i for i, value in enumerate(addition.inputs) if value is not None and value.const_value is not None), None
    )


def _constant(value: ir.Value | None) -> Array:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _replace_constant(graph: ir.Graph, node: ir.Node, place: int, array: Array) -> None:
    """Gives a node another constant, and leaves those who share the old one alone."""
    import onnx_ir as ir

    old = node.inputs[place]
    assert old is not None
    name = old.name if len(old.uses()) == 1 else f"{node.name}.constant"
    if len(old.uses()) == 1:
        del graph.initializers[str(old.name)]
    new = ir.Value(name=name, const_value=ir.tensor(array.astype(np.float32), name=name))
    graph.register_initializer(new)
    node.replace_input_with(place, new)


def _smoothing(seen: Array, weight: Array, strength: float) -> Array:
    """What each number that a layer reads is divided by, and its weights multiplied with; float64 [in_features], about 1."""
    columns = np.maximum(np.abs(weight).max(axis=1).astype(np.float64), _LEAST_RANGE)
    factor = seen**strength / columns ** (1 - strength)
    return np.asarray(factor / np.exp(np.log(factor).mean()))


def _values_of(source: ir.Value, model: OnnxModel) -> Any:
    """The values of the attention that wrote a tensor, where scaling them scales it; else None."""
    node = source.producer()
    is_attention = node is not None and (node.domain, node.op_type) == model.family.operator
    return node.inputs[2] if node is not None and is_attention and model.family.is_linear_in_values else None


def _scale(graph: ir.Graph, products: Iterable[ir.Node], factor: Array) -> None:
    for node in products:
        _replace_constant(graph, node, 1, _constant(node.inputs[1]) * factor)


def _scale_output(graph: ir.Graph, addition: ir.Node, factor: Array) -> None:
    """Multiplies what a linear layer writes, number by number."""
    place = _bias_place(addition)
    product: Any = addition.inputs[1 - place]
    _scale(graph, [product.producer()], factor[None, :])
    _replace_constant(graph, addition, place, _constant(addition.inputs[place]) * factor)


def _to_int8(
    graph: ir.Graph, group: _Group, seen: Array, divide: Array | None, switch: tuple[ir.Value, int] | None = None
) -> None:
    """Puts a product of int8 in the place of a group's products; with a switch, one of int8 or float."""
    import onnx_ir as ir

    name = group.linear.names[0] if len(group.products) == 1 else group.linear.names[0].rpartition(".")[0] + ".qkv"
    made: list[ir.Node] = []

    def constant(suffix: str, array: Array) -> ir.Value:
        value = ir.Value(name=f"{name}.{suffix}", const_value=ir.tensor(array, name=f"{name}.{suffix}"))
        graph.register_initializer(value)
        return value

    def add(op_type: str, inputs: list[ir.Value], suffix: str, **attributes: int) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=f"{name}.{op_type}_{suffix}")
        node.outputs[0].name = f"{name}.{suffix}"
        made.append(node)
        return node.outputs[0]

    weight, bias = group.weight, group.bias
    columns = np.maximum(np.abs(weight).max(axis=0), np.float32(1e-30)) / np.float32(127)
    scale = constant("input_scale", np.asarray(seen.max() / 127, np.float32))
    zero = constant("input_zero_point", np.zeros((), np.int8))
    source = group.source
    if divide is not None:
        source = add("Mul", [source, constant("smoothing", divide.astype(np.float32))], "smoothed")
    read = add("DequantizeLinear", [add("QuantizeLinear", [source, scale, zero], "input_int8"), scale, zero], "input")
    whole = np.clip(np.rint(weight / columns), -127, 127).astype(np.int8)
    if switch is None:
        stored = [constant("weight_int8", whole), constant("weight_scale", columns)]
        stored.append(constant("weight_zero_point", np.zeros(len(columns), np.int8)))
        product = add("MatMul", [read, add("DequantizeLinear", stored, "weight", axis=1)], "product")
    else:
        is_on = add("Gather", [switch[0], constant("number", np.array(switch[1], np.int64))], "is_int8")
        rounded = add("MatMul", [read, constant("weight_rounded", whole * columns)], "product_rounded")
        product = add("MatMul", [source, constant("weight", weight)], "product_float")
        product = add("Where", [is_on, rounded, product], "product")
    total = ir.node("Add", [product, constant("bias", bias)], name=f"{name}.Add")
    made.append(total)
    written = [addition.outputs[0] for addition in group.additions]
    results = [total.outputs[0]]
    if len(written) > 1:
        results[0].name = f"{name}.output"
        sizes = constant("sizes", np.array([_constant(node.inputs[1]).shape[1] for node in group.products], np.int64))
        split = ir.node("Split", [results[0], sizes], {"axis": -1}, num_outputs=len(written), name=f"{name}.Split")
        made.append(split)
        results = list(split.outputs)
    graph.insert_before(group.products[0], made)
    for old, new in zip(written, results, strict=True):
        new.type, new.shape, new.name = old.type, old.shape, old.name  # families know layers by the names of values
        ir.convenience.replace_all_uses_with(old, new)
    constants = {
        v
        for node in (*group.products, *group.additions)
        for v in node.inputs
        if v is not None and v.const_value is not None
    }
    graph.remove([*group.additions, *group.products], safe=True)
    for value in constants:
        if not value.uses():
            del graph.initializers[str(value.name)]
