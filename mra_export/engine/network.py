"""ONNX file -> TensorRT network, with proof that the operator and the precision are in it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from mra_export.dtypes import DTYPES
from mra_export.engine.native_call import in_thread
from mra_export.engine.runner import LAYER_TENSORS, layer_output
from mra_export.errors import DependencyError, InputError, MraExportError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mra_export.engine.backend import Backend
    from mra_export.export.onnx_model import OnnxModel

__all__ = [
    "allow_decomposition",
    "check_plugin_layers",
    "check_quantized",
    "check_types",
    "counted",
    "parse",
    "prepare",
]


def prepare(model: OnnxModel, layer_outputs: bool) -> bytes:
    """The file as TensorRT's parser gets it.

    The parser prefers a function body to a plugin, silently: where there is a plugin the bodies go, and the nodes name it.
    """
    import onnx

    family = model.family
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    if family.plugin:
        del proto.functions[:]
    for node in proto.graph.node:
        if not family.plugin or (node.domain, node.op_type) != family.operator:
            continue
        named = {attribute.name for attribute in node.attribute}
        for name, value in (("plugin_version", str(family.operator_version)), ("plugin_namespace", "")):
            if name not in named:
                node.attribute.append(onnx.helper.make_attribute(name, value))
    for layer in model.layers if layer_outputs else []:
        for tensor, name in zip(LAYER_TENSORS, (layer.query, layer.key, layer.value, layer.context), strict=True):
            output = layer_output(layer.name, tensor)
            proto.graph.node.append(onnx.helper.make_node("Cast", [name], [output], to=onnx.TensorProto.FLOAT))
            proto.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    return proto.SerializeToString()


def parse(backend: Backend, proto: bytes, model: OnnxModel) -> tuple[Any, Any, Any]:
    """The builder, a strongly typed network of the file, and the parser, which owns its weights."""
    trt = backend.module
    try:
        builder = trt.Builder(backend.logger)
    except TypeError as error:  # pybind11's word for a null pointer
        raise DependencyError(f"{backend.title} could not start its builder. {backend.errors()}".strip()) from error
    # TensorRT 11 knows no other kind of network and may do without the flag.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, backend.logger)
    # The path is where external data lies.
    # It logs, in Python.
    if not in_thread(lambda: parser.parse(proto, str(model.path))):
        found = [parser.get_error(i) for i in range(parser.num_errors)]
        # Why our plugin refuses a node, only its own log lines say.
        plugin = model.family.plugin
        reasons = [
            text for kind, text in backend.logger.messages if plugin and "ERROR" in kind and text.startswith(plugin)
        ]
        reasons += [f"{e.node_name() or e.node_operator() or 'model'}: {e.desc()}" for e in found]
        raise InputError(
            f"{model.path} was refused by the parser of {backend.title}: {' / '.join(dict.fromkeys(reasons)) or backend.errors()}. "
            "Export the checkpoint again with `mra-export onnx`; if it stays so, --opset 20 is the opset that is tested."
        )
    return builder, network, parser


def check_plugin_layers(backend: Backend, network: Any, model: OnnxModel) -> None:
    """Every attention node has to be one layer of our plugin: a parser that finds none may put something else there.

    Attention of standard operators has no such node, and there must be no plugin layer.
    """
    kind = backend.module.LayerType.PLUGIN_V3
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    plugins = [layer.name for layer in layers if layer.type == kind]
    missing = [node.name for node in model.nodes if node.name not in plugins]
    if missing or len(plugins) != len(model.nodes):
        raise MraExportError(
            f"{backend.title} parsed {model.path} into {len(plugins)} plugin layers, but it has {len(model.nodes)} attention "
            f"nodes{f' (not there: {chr(44).join(missing[:3])})' if missing else ''}: the engine would not be the model."
        )


def check_types(backend: Backend, network: Any, dtype: str, outputs: Iterable[str]) -> Counter[str]:
    """Proves the precision of a strongly typed network, and counts its types.

    Matrix products and attention, which are nearly all of the work, must have the type asked for in every float tensor;
    inputs are int64 and outputs float32 with each type, and so is what is computed from outputs: pooling and what follows it.

    Args:
        backend: that parsed it.
        network: what it parsed.
        dtype: the type.
        outputs: names of the model's, without those of layers that are shown too.
    """
    wanted = DTYPES[dtype].tensorrt
    floats = {names.tensorrt for names in DTYPES.values()}
    types: Counter[str] = Counter()
    wrong = []
    after = set(outputs)  # and what is computed from them
    for index in range(network.num_layers):  # in topological order
        layer = network.get_layer(index)
        made = [layer.get_output(i).dtype.name for i in range(layer.num_outputs)]
        types.update(made)
        taken = {tensor.name for i in range(layer.num_inputs) if (tensor := layer.get_input(i)) is not None}
        if taken & after:
            after |= {layer.get_output(i).name for i in range(layer.num_outputs)}
        elif layer.type.name in ("MATRIX_MULTIPLY", "PLUGIN_V3", "ATTENTION_INPUT", "ATTENTION_OUTPUT"):
            inputs = [tensor.dtype.name for i in range(layer.num_inputs) if (tensor := layer.get_input(i)) is not None]
            seen = {name for name in (*inputs, *made) if name in floats}
            if seen != {wanted}:
                wrong.append(f"{layer.name} ({', '.join(sorted(seen))})")
    if wrong:
        raise InputError(
            f"This is no {dtype} network: {len(wrong)} layers compute in another type, for example {', '.join(wrong[:3])}. "
            f"Export the checkpoint again with --dtype {dtype}."
        )
    return types


def check_quantized(backend: Backend, network: Any, model: OnnxModel) -> None:
    """Every quantization of an int8 file has to be a layer: the products behind it compute in int8 by that alone.

    Args:
        backend: that parsed it.
        network: what it parsed.
        model: the file; one without int8 has no such layer.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    found = [layer for layer in layers if layer.type.name == "QUANTIZE" and layer.get_output(0).dtype.name == "INT8"]
    wanted = sum(node.op_type == "QuantizeLinear" for node in model.proto.graph.node)
    if len(found) != wanted:
        raise MraExportError(
            f"{backend.title} parsed {model.path} into {len(found)} quantizations to int8, but it has {wanted}: the engine would "
            "not be the model."
        )


def allow_decomposition(backend: Backend, network: Any) -> None:
    """Lets TensorRT compute attention by matrix products and a softmax where it has no kernel for it.

    It has none for float32 and for some head sizes, and the build would fail. Where it has one, it is used.
    """
    output_layer = getattr(backend.module, "IAttentionOutputLayer", None)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if output_layer is not None and layer.type.name == "ATTENTION_OUTPUT":
            layer.__class__ = output_layer  # the way to a layer's own members: the parser's come as their base class
            layer.attention.decomposable = True


def counted(types: Counter[str]) -> str:
    """Types and how many there are of each, for people."""
    return ", ".join(f"{count} {name}" for name, count in types.most_common())
