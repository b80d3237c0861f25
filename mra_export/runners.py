"""One interface to every way of running the model: PyTorch, the specification's operator, ONNX Runtime, onnx's evaluator."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.dtypes import dtype_of_onnx, onnx_type
from mra_export.errors import InputError
from mra_export.families._base import read_options
from mra_export.families._registry import families
from mra_export.optional import require_onnxruntime
from mra_export.trace import LayerTrace, Trace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from mra_export.checkpoint.load import Checkpoint
    from mra_export.checkpoint.pooling import Pooling
    from mra_export.families._base import Family, OnnxLayer
    from mra_export.trace import Array, Inputs

__all__ = [
    "OnnxModel",
    "OnnxReferenceRunner",
    "OnnxRuntimeRunner",
    "SpecificationRunner",
    "TransformersRunner",
    "layer_constants",
    "read_onnx",
    "vocabulary",
]


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

    def run_operator(self, attributes: Any, tensors: Sequence[Array], mask: Array) -> Array | None:
        return None

    def _forward(self, inputs: Inputs, extra: dict[str, Any], layers: list[LayerTrace] | None) -> dict[str, Array]:
        import torch

        from mra_export.checkpoint.pooling import pool

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
    """The unmodified transformers model, made to run as its family says; float32, on the GPU if torch has one.

    Attributes:
        notes: what was found out about the model while it ran.
    """

    def __init__(self, checkpoint: Checkpoint, pooling: Pooling, *, kernel_sources: Path | None = None) -> None:
        import torch
        import transformers

        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = checkpoint.model if device == "cpu" else copy.deepcopy(checkpoint.model).to(device)
        super().__init__(checkpoint, model, pooling)
        self._setup = checkpoint.family.transformers_setup(checkpoint.config, device, kernel_sources)
        self.notes: list[str] = []
        with self._setup.kernels() as kernels:
            self._setup.probe(self.model)
        self.name = f"PyTorch, transformers {transformers.__version__}" + (f" ({kernels} kernels)" if kernels else "")

    def _run(self, inputs: Inputs, layers: list[LayerTrace] | None) -> dict[str, Array]:
        with self._setup.kernels():
            if self._setup.one_by_one:
                return self._run_one_by_one(inputs, layers)
            mask = inputs["attention_mask"]
            with self._setup.mended(self.model, mask.reshape(-1, mask.shape[-1])):
                outputs = self._forward(inputs, {}, layers)
            if self._setup.unmended is not None and not self.notes and not mask.all():
                self.notes.append(
                    self._setup.unmended(self._difference(outputs, self._forward(inputs, {}, None), mask))
                )
            return outputs

    def _difference(self, expected: dict[str, Array], actual: dict[str, Array], mask: Array) -> float:
        """Largest relative error of an output at tokens."""
        found = 0.0
        for name, want in expected.items():
            keep = mask != 0 if name in self.checkpoint.task.outputs and self.checkpoint.task.per_token else ...
            norm = float(np.linalg.norm(want[keep].astype(np.float64)))
            found = max(
                found, float(np.linalg.norm(actual[name][keep].astype(np.float64) - want[keep])) / (norm or 1.0)
            )
        return found

    def _run_one_by_one(self, inputs: Inputs, layers: list[LayerTrace] | None) -> dict[str, Array]:
        """Each example alone, at the length that the family fills it to."""
        flat = {name: value.reshape(-1, value.shape[-1]) for name, value in inputs.items()}
        rows, seq_len = flat["input_ids"].shape
        length = self._setup.filled_length(seq_len)
        is_choice = self.checkpoint.task.name == "multiple-choice"
        tokens = self.checkpoint.task.outputs if self.checkpoint.task.per_token else ()
        results, traces = [], []
        for row in range(rows):
            one = {name: np.pad(value[row : row + 1], ((0, 0), (0, length - seq_len))) for name, value in flat.items()}
            extra = self._setup.arguments(one, length)
            if is_choice:
                one = {name: value[:, None] for name, value in one.items()}
            seen: list[LayerTrace] | None = None if layers is None else []
            with self._setup.mended(self.model, one["attention_mask"].reshape(1, length)):
                outputs = self._forward(one, extra, seen)
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


class SpecificationRunner(_TorchRunner):
    """The transformers model with the specification's operator as its attention; float32, batches as they are.

    Attributes:
        selections: per layer the discrete choice that its attention is to take, as `parity.Judge.operator` returns it (for MRA
            the selected blocks, bool [batch, num_heads, blocks, blocks]), or None.
    """

    def __init__(self, checkpoint: Checkpoint, pooling: Pooling) -> None:
        from mra_export.checkpoint.load import share_weights

        super().__init__(checkpoint, share_weights(checkpoint.model), pooling)
        self.name = "specification"
        self.selections: list[Any] | None = None
        self._mask: torch.Tensor | None = None
        self._layers: list[LayerTrace] | None = None
        checkpoint.family.replace_attention(self.model, self._attend)

    def _attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *constants: torch.Tensor
    ) -> torch.Tensor:
        assert self._mask is not None
        family = self.checkpoint.family
        choice = self.selections[layer] if self.selections is not None else None
        tensors = (query, key, value, *constants)
        context = family.attend(family.attributes(self.checkpoint.config), tensors, self._mask, choice)
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
        family: what is particular to its kind of model.
        layers: its attention layers, in order.
        inputs: names.
        outputs: names.
        dtype: type of the operator's tensors, one of fp32, fp16, bf16.
        task: as the exporter noted it, or None.
        opset: of the standard operators.
        functions: the function bodies in the file (`onnx.FunctionProto`).
        metadata: what else the exporter noted.
    """

    path: Path
    family: Family
    layers: list[OnnxLayer]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dtype: str
    task: str | None
    opset: int
    functions: list[Any]
    metadata: dict[str, str]

    @property
    def nodes(self) -> list[Any]:
        """The custom nodes that compute the attention (`onnx.NodeProto`); none where standard operators do."""
        return [layer.node for layer in self.layers if layer.node is not None]

    @property
    def attributes(self) -> list[Any]:
        """Of each layer."""
        return [layer.attributes for layer in self.layers]

    @property
    def options(self) -> dict[str, Any]:
        """The family's options with which it was exported."""
        noted = {
            name: self.metadata[f"option.{name}"] for name in self.family.options if f"option.{name}" in self.metadata
        }
        return read_options(self.family, noted)


def read_onnx(path: Path) -> OnnxModel:
    """Reads what an exported file says of itself.

    Args:
        path: an .onnx file.

    Raises:
        InputError: it cannot be read, or is not a file of this tool.
    """
    import onnx

    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    try:
        model = onnx.load(str(path), load_external_data=False)
        graph = model.graph
        if not graph.node:
            raise ValueError("it has no graph")
    except Exception as error:
        raise InputError(f"{path} is not a readable ONNX file: {str(error).splitlines()[0]}") from error
    metadata = {p.key: p.value for p in model.metadata_props}
    known = families()
    family = known.get(metadata.get("family", ""), next(iter(known.values())))
    try:
        layers = family.layers(model)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    names = tuple(i.name for i in graph.input)
    if not layers or not {"input_ids", "attention_mask"} <= set(names):
        raise InputError(
            f"{path} has no {'::'.join(family.operator)} node or lacks the inputs input_ids and attention_mask, "
            "so it was not written by this tool. Export the checkpoint with `mra-export onnx`."
        )
    _check_external_data(path, model)
    found = next(filter(None, (dtype_of_onnx(i.data_type) for i in graph.initializer)), "fp32")
    return OnnxModel(
        path=path,
        family=family,
        layers=layers,
        inputs=names,
        outputs=tuple(o.name for o in graph.output),
        dtype=found,
        task=metadata.get("task"),
        opset=next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0),
        functions=list(model.functions),
        metadata=metadata,
    )


def vocabulary(model: OnnxModel) -> int | None:
    """How many ids a file takes: the rows of the table that its ids look up, whatever that is called; None if none is found."""
    import onnx

    graph = onnx.load(str(model.path), load_external_data=False).graph
    rows = {table.name: int(table.dims[0]) for table in graph.initializer if len(table.dims) == 2}
    ids = {"input_ids"}
    for node in graph.node:
        if node.op_type in ("Cast", "Identity", "Reshape") and node.input[0] in ids:
            ids.update(node.output)
        if node.op_type == "Gather" and node.input[1] in ids and node.input[0] in rows:
            return rows[node.input[0]]
    return None


def layer_constants(model: OnnxModel) -> list[tuple[torch.Tensor, ...]]:
    """The further constant inputs of each attention node of a file, as `Family.judge` takes them."""
    import onnx
    import torch

    wanted = {name for node in model.nodes for name in list(node.input)[4:]}
    found = {}
    if wanted:
        for initializer in onnx.load(str(model.path)).graph.initializer:
            if initializer.name in wanted:
                found[initializer.name] = torch.from_numpy(onnx.numpy_helper.to_array(initializer).astype(np.float32))
    missing = sorted(wanted - set(found))
    if missing:
        raise InputError(
            f"{model.path}: the constant {missing[0]} of an attention node is not in the file. Export it again."
        )
    return [tuple(found[name] for name in list(node.input)[4:]) for node in model.nodes]


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


class OnnxRuntimeRunner:
    """The exported file in an ONNX Runtime session on the CPU: the function body, or with `library` the native operator."""

    def __init__(self, model: OnnxModel, *, library: Path | None = None, threads: int = 0) -> None:
        self.model = model
        self.library = library
        self.threads = threads
        how = _how("native operator" if library else "function body", model)
        self.name = f"{model.path.name} {model.dtype}, ONNX Runtime{how}"
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

    def run_operator(self, attributes: Any, tensors: Sequence[Array], mask: Array) -> Array | None:
        """The operator alone on query, key, value; see `Runner`."""
        dtype = "fp16" if self.model.dtype == "fp16" else "fp32"
        model = _operator_model(self.model, attributes, tensors, dtype)
        if model is None:
            return None
        session = self._load(model.SerializeToString())
        kind = np.float16 if dtype == "fp16" else np.float32
        return session.run(None, _operator_feeds(tensors, mask, kind))[0].astype(np.float32)

    def _load(self, model: str | bytes) -> Any:
        onnxruntime = require_onnxruntime(otherwise=" (or onnxruntime-gpu)")
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
        self.name = f"{model.path.name} {model.dtype}, onnx ReferenceEvaluator{_how('function body', model)}"
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

    def run_operator(self, attributes: Any, tensors: Sequence[Array], mask: Array) -> Array | None:
        """The operator alone on query, key, value; see `Runner`."""
        from onnx.reference import ReferenceEvaluator

        model = _operator_model(self.model, attributes, tensors, "fp32")
        if model is None:
            return None
        evaluator = ReferenceEvaluator(model)
        with np.errstate(all="ignore"):
            context: list[Array] = evaluator.run(None, _operator_feeds(tensors, mask, np.float32))  # type: ignore[assignment]
        return context[0]


def _operator_feeds(tensors: Sequence[Array], mask: Array, kind: Any) -> dict[str, Array]:
    """The inputs of `Family.operator_model` from query, key, value and the mask."""
    feeds = {name: tensor.astype(kind) for name, tensor in zip(("query", "key", "value"), tensors, strict=True)}
    return {**feeds, "attention_mask": mask.astype(np.int32)}


def _how(operator: str, model: OnnxModel) -> str:
    """How the custom operator is computed, for the name of a runner; nothing where the file has none."""
    return f" ({operator})" if model.nodes else ""


def _operator_model(model: OnnxModel, attributes: Any, tensors: Sequence[Array], dtype: str) -> Any:
    """The one node of a file's operator with the file's own function bodies, or None."""
    return model.family.operator_model(attributes, tensors[0].shape[2], dtype, model.opset, model.functions)


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
    layers = [LayerTrace(*(named[name] for name in _layer_values(layer))) for layer in model.layers]
    return Trace({name: named[name] for name in model.outputs}, layers)


def _layer_values(layer: OnnxLayer) -> tuple[str, ...]:
    return layer.query, layer.key, layer.value, layer.context


@contextlib.contextmanager
def _traceable(model: OnnxModel) -> Iterator[Path]:
    """A temporary copy of a model whose attention nodes' inputs and outputs are outputs of the graph."""
    import onnx

    proto = onnx.load(str(model.path), load_external_data=False)
    present = {o.name for o in proto.graph.output}
    for layer in model.layers:
        for name in _layer_values(layer):
            if name not in present:
                present.add(name)
                proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx_type(model.dtype), None))
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
