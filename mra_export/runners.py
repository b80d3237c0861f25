"""One interface to every way of running the model: PyTorch, the specification's operator, ONNX Runtime, onnx's evaluator."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mra_export.errors import DependencyError, InputError
from mra_export.op_spec import BLOCK_SIZE, INPUTS, OP_VERSION, OUTPUTS, Mra2AttentionAttributes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from mra_export.checkpoint import Checkpoint
    from mra_export.export import Pooling
    from mra_export.hf_kernels import KernelSource

__all__ = [
    "Array",
    "Inputs",
    "LayerTrace",
    "OnnxModel",
    "OnnxReferenceRunner",
    "OnnxRuntimeRunner",
    "Runner",
    "SpecificationRunner",
    "Trace",
    "TransformersRunner",
    "operator_model",
    "read_onnx",
]

Array = np.ndarray[Any, Any]
Inputs = dict[str, Array]
"""`input_ids`, `attention_mask` and where the model has types `token_type_ids`, int64 [batch, seq_len]; multiple choice has
[batch, choices, seq_len]."""


@dataclass(frozen=True)
class LayerTrace:
    """What went into one attention node and came out; float32 [batch, seq_len, hidden_size] each."""

    query: Array
    key: Array
    value: Array
    context: Array


@dataclass(frozen=True)
class Trace:
    """The outputs of a run by name, float32, and what its attention layers saw."""

    outputs: dict[str, Array]
    layers: list[LayerTrace]


class Runner(Protocol):
    """A way of running the model."""

    name: str

    def run(self, inputs: Inputs) -> dict[str, Array]:
        """The outputs by name."""

    def trace(self, inputs: Inputs) -> Trace:
        """The outputs and what the attention layers saw."""

    def run_operator(self, attributes: Mra2AttentionAttributes, tensors: Sequence[Array], mask: Array) -> Array | None:
        """The operator alone on query, key, value [batch, seq_len, hidden_size]; None where that cannot be had."""


class _TorchRunner:
    """What the two PyTorch runners share: outputs as the exported model names them, layers seen through hooks."""

    def __init__(self, checkpoint: Checkpoint, model: Any, pooling: Pooling) -> None:
        self.checkpoint = checkpoint
        self.model = model
        self.pooling = pooling

    def run(self, inputs: Inputs) -> dict[str, Array]:
        return self._run(inputs, None)

    def trace(self, inputs: Inputs) -> Trace:
        layers: list[LayerTrace] = []
        outputs = self._run(inputs, layers)
        return Trace(outputs, layers)

    def _run(self, inputs: Inputs, layers: list[LayerTrace] | None) -> dict[str, Array]:
        raise NotImplementedError

    def run_operator(self, attributes: Mra2AttentionAttributes, tensors: Sequence[Array], mask: Array) -> Array | None:
        return None

    def _forward(self, inputs: Inputs, extra: dict[str, Any], layers: list[LayerTrace] | None) -> dict[str, Array]:
        import torch

        from mra_export.export import pool

        device = self.model.device
        tensors = {name: torch.from_numpy(value).to(device) for name, value in inputs.items()}
        extra = {name: value.to(device) for name, value in extra.items()}
        with torch.no_grad(), _watch(self.checkpoint.family.attention_modules(self.model), layers):
            result = self.model(**tensors, **extra)
            outputs = {name: result[name].float() for name in self.checkpoint.task.outputs}
            if self.pooling.mode != "none":
                outputs["sentence_embedding"] = pool(
                    outputs["last_hidden_state"], tensors["attention_mask"], self.pooling
                )
        return {name: value.cpu().numpy() for name, value in outputs.items()}


class TransformersRunner(_TorchRunner):
    """The unmodified transformers model with its kernels supplied; float32, on the GPU if torch has one.

    It runs example by example, since transformers gives heads another example's mask in a padded batch, on lengths filled to
    a multiple of 32 that its top-k accepts.
    """

    def __init__(self, checkpoint: Checkpoint, pooling: Pooling, *, kernel_sources: Path | None = None) -> None:
        import torch
        import transformers

        from mra_export import hf_kernels

        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = checkpoint.model if device == "cpu" else copy.deepcopy(checkpoint.model).to(device)
        super().__init__(checkpoint, model, pooling)
        self.kernel_sources = kernel_sources
        with self._kernels() as source:
            hf_kernels.probe_attention(self.model)
        self.name = f"PyTorch, transformers {transformers.__version__} ({source.name} kernels)"

    def _kernels(self) -> contextlib.AbstractContextManager[KernelSource]:
        from mra_export import hf_kernels

        return hf_kernels.installed(str(self.model.device), sources=self.kernel_sources)

    def _run(self, inputs: Inputs, layers: list[LayerTrace] | None) -> dict[str, Array]:
        flat = {name: value.reshape(-1, value.shape[-1]) for name, value in inputs.items()}
        rows, seq_len = flat["input_ids"].shape
        attributes = self.checkpoint.family.attributes(self.checkpoint.config)
        blocks = -(-seq_len // BLOCK_SIZE)
        while blocks * blocks < attributes.num_blocks:
            blocks += 1
        length = blocks * BLOCK_SIZE
        is_choice = self.checkpoint.task.name == "multiple-choice"
        results, traces = [], []
        with self._kernels():
            for row in range(rows):
                one = {
                    name: np.pad(value[row : row + 1], ((0, 0), (0, length - seq_len))) for name, value in flat.items()
                }
                extra = self._extra(one, length)
                if is_choice:
                    one = {name: value[:, None] for name, value in one.items()}
                seen: list[LayerTrace] | None = None if layers is None else []
                with self._mended_mask(one["attention_mask"].reshape(1, length)):
                    outputs = self._forward(one, extra, seen)
                tokens = self.checkpoint.task.outputs if self.checkpoint.task.per_token else ()
                results.append({name: v[:, :seq_len] if name in tokens else v for name, v in outputs.items()})
                traces.append(seen)
        if layers is not None:
            for per_layer in zip(*(t or [] for t in traces), strict=True):
                fields = ("query", "key", "value", "context")
                stacked = [np.concatenate([getattr(layer, f)[:, :seq_len] for layer in per_layer]) for f in fields]
                layers.append(LayerTrace(*stacked))
        merged = {name: np.concatenate([r[name] for r in results]) for name in results[0]}
        if is_choice:
            merged["logits"] = merged["logits"].reshape(inputs["input_ids"].shape[:2])
        return merged

    def _extra(self, one: Inputs, length: int) -> dict[str, Any]:
        """Arguments that spare transformers its buffers, which end at max_position_embeddings."""
        import torch

        positions = torch.arange(length).clamp(max=self.checkpoint.config.max_position_embeddings - 1) + 2
        extra: dict[str, Any] = {"position_ids": positions[None]}
        if "token_type_ids" not in one:
            extra["token_type_ids"] = torch.zeros((1, length), dtype=torch.int64)
        return extra

    @contextlib.contextmanager
    def _mended_mask(self, mask: Array) -> Iterator[None]:
        """Gives transformers 4 the additive mask that its attention expects.

        There `MraSelfAttention` undoes -10000 of an additive mask, but the model adds the lowest float: a padded token gets
        the weight -2**31 instead of 0. transformers 5 has this mended.
        """
        import torch
        import transformers

        if int(transformers.__version__.split(".")[0]) >= 5:
            yield
            return
        additive = (torch.from_numpy(mask).float().to(self.model.device) - 1.0)[:, None, None, :] * 10000.0
        base = self.model.base_model
        base.get_extended_attention_mask = lambda *args, **kwargs: additive
        try:
            yield
        finally:
            del base.get_extended_attention_mask


class SpecificationRunner(_TorchRunner):
    """The transformers model with the specification's operator as its attention; float32, batches as they are.

    Attributes:
        selections: per layer bool [batch, num_heads, blocks, blocks] to be used for the selection, or None.
    """

    def __init__(self, checkpoint: Checkpoint, pooling: Pooling) -> None:
        from mra_export.export import share_weights

        super().__init__(checkpoint, share_weights(checkpoint.model), pooling)
        self.name = "specification"
        self.selections: list[torch.Tensor] | None = None
        self._mask: torch.Tensor | None = None
        self._layers: list[LayerTrace] | None = None
        checkpoint.family.replace_attention(self.model, self._attend)

    def _attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        from mra_export.reference import mra2_attention

        assert self._mask is not None
        attributes = self.checkpoint.family.attributes(self.checkpoint.config)
        selected = self.selections[layer] if self.selections is not None else None
        context = mra2_attention(query, key, value, self._mask, attributes, selected=selected)
        if self._layers is not None:
            self._layers.append(LayerTrace(*(t.float().numpy() for t in (query, key, value, context))))
        return context

    def _run(self, inputs: Inputs, layers: list[LayerTrace] | None) -> dict[str, Array]:
        import torch

        mask = torch.from_numpy(inputs["attention_mask"])
        self._mask = mask.reshape(-1, mask.shape[-1])
        self._layers = layers
        try:
            return self._forward(inputs, {}, None)
        finally:
            self._mask = self._layers = None


@contextlib.contextmanager
def _watch(modules: list[tuple[str, Any]], layers: list[LayerTrace] | None) -> Iterator[None]:
    """Appends to `layers` what transformers' attention modules see; does nothing if it is None."""
    if layers is None:
        yield
        return
    handles = []
    for _, module in modules:
        seen: dict[str, Array] = {}

        def keep(name: str, seen: dict[str, Array] = seen) -> Any:
            return lambda _module, _args, out: seen.__setitem__(name, out.float().cpu().numpy())

        def finish(_module: Any, _args: Any, out: Any, seen: dict[str, Array] = seen) -> None:
            layers.append(LayerTrace(seen["query"], seen["key"], seen["value"], out[0].float().cpu().numpy()))

        handles += [getattr(module, name).register_forward_hook(keep(name)) for name in ("query", "key", "value")]
        handles.append(module.register_forward_hook(finish))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class OnnxModel:
    """An exported file, read without its weights.

    Attributes:
        path: the file.
        nodes: the attention nodes, in order (`onnx.NodeProto`).
        attributes: of the nodes.
        inputs: names.
        outputs: names.
        dtype: type of the operator's tensors, one of fp32, fp16, bf16.
        task: as the exporter noted it, or None.
        opset: of the standard operators.
        functions: the function bodies in the file (`onnx.FunctionProto`).
    """

    path: Path
    nodes: list[Any]
    attributes: list[Mra2AttentionAttributes]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dtype: str
    task: str | None
    opset: int
    functions: list[Any]


def read_onnx(path: Path) -> OnnxModel:
    """Reads what an exported file says of itself.

    Args:
        path: an .onnx file.

    Raises:
        InputError: it cannot be read, or is not a file of this tool.
    """
    import onnx

    from mra_export.op_spec import ATTRIBUTES, OP_DOMAIN, OP_TYPE

    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    try:
        model = onnx.load(str(path), load_external_data=False)
        graph = model.graph
        if not graph.node:
            raise ValueError("it has no graph")
    except Exception as error:
        raise InputError(f"{path} is not a readable ONNX file: {str(error).splitlines()[0]}") from error
    nodes = [n for n in graph.node if (n.domain, n.op_type) == (OP_DOMAIN, OP_TYPE)]
    names = tuple(i.name for i in graph.input)
    if not nodes or not {"input_ids", "attention_mask"} <= set(names):
        raise InputError(
            f"{path} has no {OP_DOMAIN}::{OP_TYPE} node or lacks the inputs input_ids and attention_mask, "
            "so it was not written by this tool. Export the checkpoint with `mra-export onnx`."
        )
    values = [{a.name: onnx.helper.get_attribute_value(a) for a in n.attribute} for n in nodes]
    try:
        attributes = [Mra2AttentionAttributes(**{k: v[k] for k in ATTRIBUTES}) for v in values]
    except KeyError as error:
        raise InputError(f"{path}: a {OP_TYPE} node has no attribute {error}. Export it again.") from error
    _check_external_data(path, model)
    metadata = {p.key: p.value for p in model.metadata_props}
    types = {
        onnx.TensorProto.FLOAT: "fp32",
        onnx.TensorProto.FLOAT16: "fp16",
        onnx.TensorProto.BFLOAT16: "bf16",
    }
    found = [types[i.data_type] for i in graph.initializer if i.data_type in types]
    return OnnxModel(
        path=path,
        nodes=nodes,
        attributes=attributes,
        inputs=names,
        outputs=tuple(o.name for o in graph.output),
        dtype=found[0] if found else "fp32",
        task=metadata.get("task"),
        opset=next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0),
        functions=list(model.functions),
    )


def _check_external_data(path: Path, proto: Any) -> None:
    """Refuses a file whose weights beside it are missing or cut off; the parser's word for that names no file."""
    for initializer in proto.graph.initializer:
        entries = {entry.key: entry.value for entry in initializer.external_data}
        if "location" not in entries:
            continue
        data = path.parent / entries["location"]
        if not data.is_file():
            raise InputError(
                f"{path} needs {data.name} beside it, which is not there. Keep the exported directory together."
            )
        end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
        if data.stat().st_size < end:
            raise InputError(
                f"{data} has {data.stat().st_size} bytes, but {initializer.name} reaches to byte {end}: it was cut off. "
                "Copy it again."
            )


def operator_model(
    attributes: Mra2AttentionAttributes,
    hidden_size: int,
    dtype: str = "fp32",
    opset: int = 20,
    functions: list[Any] | None = None,
) -> Any:
    """An ONNX model of the one node, with its function body.

    Args:
        attributes: the node's.
        hidden_size: last dimension of query, key and value.
        dtype: of query, key, value and context; one of fp32, fp16, bf16.
        opset: of the function body.
        functions: instead of our function body, those of a file that is to be examined.

    Returns:
        `onnx.ModelProto`; inputs and output are named as in `op_spec`, batch and sequence are dynamic.
    """
    from onnx import TensorProto, helper

    from mra_export.function_body import function_body
    from mra_export.op_spec import OP_DOMAIN, OP_TYPE

    kind = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[dtype]
    shape: list[str | int | None] = ["batch", "sequence", hidden_size]
    node = helper.make_node(
        OP_TYPE, list(INPUTS), list(OUTPUTS), name=OP_TYPE, domain=OP_DOMAIN, **attributes.as_dict()
    )
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name in INPUTS[:3]]
    inputs.append(helper.make_tensor_value_info(INPUTS[3], TensorProto.INT32, shape[:2]))
    outputs = [helper.make_tensor_value_info(OUTPUTS[0], kind, shape)]
    graph = helper.make_graph([node], OP_TYPE, inputs, outputs)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(OP_DOMAIN, OP_VERSION)]
    bodies = [function_body(opset)] if functions is None else functions
    return helper.make_model(graph, opset_imports=opsets, functions=bodies, ir_version=10)


class OnnxRuntimeRunner:
    """The exported file in an ONNX Runtime session on the CPU: the function body, or with `library` the native operator."""

    def __init__(self, model: OnnxModel, *, library: Path | None = None, threads: int = 0) -> None:
        self.model = model
        self.library = library
        self.threads = threads
        how = "native operator" if library else "function body"
        self.name = f"{model.path.name} {model.dtype}, ONNX Runtime ({how})"
        self._session: Any = None
        self._traced: Any = None

    def run(self, inputs: Inputs) -> dict[str, Array]:
        """The outputs by name."""
        if self._session is None:
            self._session = self._load(str(self.model.path))
        return _by_name(self._session, inputs)

    def trace(self, inputs: Inputs) -> Trace:
        """The outputs and what the attention layers saw."""
        if self._traced is None:
            with _traceable(self.model) as path:
                self._traced = self._load(str(path))
        return _split_trace(self.model, _by_name(self._traced, inputs))

    def run_operator(self, attributes: Mra2AttentionAttributes, tensors: Sequence[Array], mask: Array) -> Array | None:
        """The operator alone on query, key, value; see `Runner`."""
        dtype = "fp16" if self.model.dtype == "fp16" else "fp32"
        model = operator_model(attributes, tensors[0].shape[2], dtype, self.model.opset, self.model.functions)
        session = self._load(model.SerializeToString())
        kind = np.float16 if dtype == "fp16" else np.float32
        feeds = {name: t.astype(kind) for name, t in zip(INPUTS, tensors, strict=False)}
        return session.run(None, {**feeds, INPUTS[3]: mask.astype(np.int32)})[0].astype(np.float32)

    def _load(self, model: str | bytes) -> Any:
        try:
            import onnxruntime
        except ImportError as error:
            raise DependencyError(
                "ONNX Runtime is not installed. Install it with `pip install onnxruntime` (or onnxruntime-gpu)."
            ) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.threads
        if self.library is not None:
            try:
                options.register_custom_ops_library(str(self.library))
            except Exception as error:
                raise InputError(
                    f"{self.library} is not the operator library for this ONNX Runtime: {str(error).splitlines()[0]} "
                    "Build it with `mra-export build`."
                ) from error
        try:
            return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise InputError(f"ONNX Runtime refused {self.model.path}: {str(error).splitlines()[0]}") from error


class OnnxReferenceRunner:
    """The exported file in onnx's own ReferenceEvaluator: slow, but it has every type, bfloat16 included."""

    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self.name = f"{model.path.name} {model.dtype}, onnx ReferenceEvaluator (function body)"
        self._evaluator: Any = None

    def run(self, inputs: Inputs) -> dict[str, Array]:
        """The outputs by name."""
        return self.trace(inputs).outputs

    def trace(self, inputs: Inputs) -> Trace:
        """The outputs and what the attention layers saw."""
        import onnx
        from onnx.reference import ReferenceEvaluator

        if self._evaluator is None:
            with _traceable(self.model) as path:
                self._evaluator = ReferenceEvaluator(onnx.load(str(path)), new_ops=_float32_accumulation())
        with np.errstate(all="ignore"):
            values = self._evaluator.run(None, {name: inputs[name] for name in self.model.inputs})
        named = dict(zip(self._evaluator.output_names, (v.astype(np.float32) for v in values), strict=True))
        return _split_trace(self.model, named)

    def run_operator(self, attributes: Mra2AttentionAttributes, tensors: Sequence[Array], mask: Array) -> Array | None:
        """The operator alone on query, key, value; see `Runner`."""
        from onnx.reference import ReferenceEvaluator

        model = operator_model(attributes, tensors[0].shape[2], "fp32", self.model.opset, self.model.functions)
        evaluator = ReferenceEvaluator(model)
        with np.errstate(all="ignore"):
            feeds = {name: t.astype(np.float32) for name, t in zip(INPUTS, tensors, strict=False)}
            context: list[Array] = evaluator.run(None, {**feeds, INPUTS[3]: mask.astype(np.int32)})  # type: ignore[assignment]
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


def _by_name(session: Any, inputs: Inputs) -> dict[str, Array]:
    wanted = [i.name for i in session.get_inputs()]
    values = session.run(None, {name: inputs[name] for name in wanted})
    return dict(zip((o.name for o in session.get_outputs()), (v.astype(np.float32) for v in values), strict=True))


def _split_trace(model: OnnxModel, named: dict[str, Array]) -> Trace:
    layers = [LayerTrace(*(named[name] for name in (*list(node.input)[:3], node.output[0]))) for node in model.nodes]
    return Trace({name: named[name] for name in model.outputs}, layers)


@contextlib.contextmanager
def _traceable(model: OnnxModel) -> Iterator[Path]:
    """A temporary copy of a model whose attention nodes' inputs and outputs are outputs of the graph."""
    import onnx

    proto = onnx.load(str(model.path), load_external_data=False)
    kinds = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
    present = {o.name for o in proto.graph.output}
    for node in model.nodes:
        for name in (*list(node.input)[:3], node.output[0]):
            if name not in present:
                present.add(name)
                proto.graph.output.append(onnx.helper.make_tensor_value_info(name, kinds[model.dtype], None))
    with tempfile.TemporaryDirectory(prefix="mra-export-") as folder:
        for location in {
            entry.value for i in proto.graph.initializer for entry in i.external_data if entry.key == "location"
        }:
            # ONNX Runtime refuses external data outside the model's folder, symbolic links included.
            try:
                os.link((model.path.parent / location).resolve(), Path(folder) / location)
            except OSError:
                shutil.copyfile(model.path.parent / location, Path(folder) / location)
        path = Path(folder) / "traced.onnx"
        onnx.save(proto, str(path))
        yield path
