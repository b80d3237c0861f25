"""Checkpoint -> ONNX directory, with the attention of each layer as its family exports it."""

from __future__ import annotations

import ast
import copy
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.checkpoint.files import SIDE_FILES
from mra_export.checkpoint.load import Checkpoint, input_names, share_weights
from mra_export.checkpoint.pooling import POOLINGS, Pooling, pool, pooling_of
from mra_export.dtypes import DTYPES
from mra_export.errors import InputError, MraExportError
from mra_export.export.onnx_model import MODEL_FILE, save_program
from mra_export.export.opset17 import to_opset_17
from mra_export.outputs import staged_directory
from mra_export.quiet import quiet_exporter
from mra_export.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir
    import torch
    from torch import Tensor, nn


__all__ = ["DEFAULT_OPSET", "ExportResult", "export_onnx"]

DEFAULT_OPSET = 20
"""Of most families; see `Family.default_opset`."""
OLDEST_EXPORTED_OPSET = 18
"""The oldest that torch's exporter writes; `to_opset_17` goes on from there."""
MAX_OPSET = 25
"""The newest to which torch's exporter brings all operators of these models (26 leaves Gelu behind)."""


@dataclass(frozen=True)
class ExportResult:
    """What `export_onnx` wrote.

    Attributes:
        directory: the ONNX directory.
        model: the model file.
        task: its task.
        dtype: type of weights and activations, one of `DTYPES`.
        opset: of the standard operators.
        attention_nodes: number of attention layers.
        inputs: names.
        outputs: names.
        size_bytes: of the model file and its external data.
    """

    directory: Path
    model: Path
    task: str
    dtype: str
    opset: int
    attention_nodes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    size_bytes: int


def export_onnx(
    checkpoint: Checkpoint,
    output: Path,
    *,
    dtype: str = "fp32",
    opset: int | None = None,
    pooling: Pooling | None = None,
    force: bool = False,
    finish: Callable[[Path], None] | None = None,
) -> ExportResult:
    """Writes the ONNX directory of a checkpoint.

    Args:
        checkpoint: the model.
        output: the directory to write.
        dtype: one of `DTYPES`; inputs are int64 and outputs float32 with each of them.
        opset: of the standard operators, None for the family's default.
        pooling: None to go by the checkpoint's sentence-transformers files.
        force: whether an existing output is replaced.
        finish: called with the directory before it gets its name; if it raises, nothing is left behind.

    Returns:
        What was written.

    Raises:
        InputError: an option or the output path is wrong.
    """
    import onnx
    import torch

    newest = min(onnx.defs.onnx_opset_version(), MAX_OPSET)
    oldest = checkpoint.family.min_opset
    opset = checkpoint.family.default_opset if opset is None else opset
    if not oldest <= opset <= newest:
        raise InputError(f"opset={opset} must be between {oldest} and {newest} with the versions installed here.")
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}.")
    if pooling is None:
        pooling = pooling_of(checkpoint.directory) if checkpoint.task.name == "feature-extraction" else Pooling()
    if pooling.mode not in POOLINGS:
        raise InputError(f"pooling={pooling.mode!r} must be one of {', '.join(POOLINGS)}.")
    if pooling.mode != "none" and checkpoint.task.name != "feature-extraction":
        raise InputError(f"pooling={pooling.mode} needs the task feature-extraction; this is {checkpoint.task.name}.")
    if pooling.normalize and pooling.mode == "none":
        raise InputError("--normalize scales a sentence embedding: it needs --pooling cls or mean.")

    inputs = input_names(checkpoint.config)
    outputs = checkpoint.task.outputs + (("sentence_embedding",) if pooling.mode != "none" else ())
    torch_dtype = getattr(torch, DTYPES[dtype].torch)
    with staged_directory(output, force=force) as stage:
        program = _trace(checkpoint, inputs, outputs, torch_dtype, opset, pooling)
        nodes = _finish_model(program, checkpoint, opset, dtype)
        (stage / MODEL_FILE).parent.mkdir()
        save_program(program, stage / MODEL_FILE)
        del program
        onnx.checker.check_model(str(stage / MODEL_FILE), full_check=True)
        _copy_side_files(checkpoint, stage, pooling)
        if finish is not None:
            finish(stage)
        size = sum(file.stat().st_size for file in (stage / "onnx").iterdir())
    return ExportResult(output, output / MODEL_FILE, checkpoint.task.name, dtype, opset, nodes, inputs, outputs, size)


def _trace(
    checkpoint: Checkpoint,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    dtype: torch.dtype,
    opset: int,
    pooling: Pooling,
) -> onnx_ir.Model:
    """Runs torch's exporter over the model with each attention replaced by a node of its family's operator."""
    import torch

    module = _wrapped(checkpoint, outputs, dtype, pooling)
    leading = {0: "batch", 1: "choices", 2: "sequence"} if checkpoint.task.name == "multiple-choice" else None
    axes = leading or {0: "batch", 1: "sequence"}
    longest = checkpoint.family.max_seq_len(checkpoint.config)
    limits = {"sequence": {"max": longest}}
    dims = {axis: torch.export.Dim(name, **limits.get(name, {})) for axis, name in axes.items()}
    # Sizes other than 0 and 1, which the exporter takes for constants, and different from each other.
    shape = [{"batch": 2, "choices": 3, "sequence": min(40, longest)}[n] for n in axes.values()]
    example = tuple(
        torch.ones(shape, dtype=torch.int64) if name == "attention_mask" else torch.zeros(shape, dtype=torch.int64)
        for name in inputs
    )
    with quiet_exporter():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            dynamic_shapes=tuple(dims for _ in inputs),
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=max(opset, OLDEST_EXPORTED_OPSET),
            verbose=False,
        )
    if program is None:
        raise MraExportError("torch.onnx.export returned nothing.")
    return program.model


def _wrapped(checkpoint: Checkpoint, outputs: tuple[str, ...], dtype: torch.dtype, pooling: Pooling) -> nn.Module:
    """The model as the exporter sees it: int64 inputs, float32 outputs, the mask cast once for all layers."""
    import torch

    attributes = checkpoint.family.attributes(checkpoint.config).as_dict()
    operator = "::".join(checkpoint.family.operator)
    # Module.to changes the parameters in place: only a model of the same type may share them.
    model = share_weights(checkpoint.model) if dtype == torch.float32 else copy.deepcopy(checkpoint.model).to(dtype)
    shared: dict[str, Tensor] = {}

    def node(_: int, query: Tensor, key: Tensor, value: Tensor, *constants: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            operator,
            (query, key, value, shared["attention_mask"], *constants),
            attrs=attributes,
            dtype=query.dtype,
            shape=query.shape,
            version=checkpoint.family.operator_version,
        )

    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            largest = float(checkpoint.model.state_dict()[name].abs().max())
            raise InputError(
                f"The weight {name} reaches {largest:g}, beyond what the type asked for can hold ({torch.finfo(dtype).max:g}). "
                "Export it with --bf16 or in fp32."
            )
    checkpoint.family.replace_attention(model, node)

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Any:
            shared["attention_mask"] = attention_mask.to(torch.int32).flatten(0, -2)
            extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            result = self.model(input_ids=input_ids, attention_mask=attention_mask, **extra)
            values = [result[name].float() for name in outputs if name != "sentence_embedding"]
            if pooling.mode != "none":
                values.append(pool(values[0], attention_mask, pooling))
            return tuple(values)

    return Wrapped().eval()


def _finish_model(model: onnx_ir.Model, checkpoint: Checkpoint, opset: int, dtype: str) -> int:
    """Names the attention nodes, has their family finish them, and drops whatever tells of this machine; counts them."""
    import onnx_ir
    from onnx.helper import find_min_ir_version_for, make_opsetid

    names = [name for name, _ in checkpoint.family.attention_modules(checkpoint.model)]
    nodes = [node for node in model.graph if (node.domain, node.op_type) == checkpoint.family.operator]
    if len(nodes) != len(names):
        raise MraExportError(f"The export has {len(nodes)} attention nodes for {len(names)} layers.")
    for node, name in zip(nodes, names, strict=True):
        node.name = f"{name}.{node.op_type}"
    count = len(nodes)
    _name_nodes(model.graph)
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    model.graph.name = checkpoint.config.model_type
    model.doc_string = None
    model.producer_name = "mra-export"
    model.producer_version = __version__
    model.metadata_props.clear()
    model.metadata_props.update({"task": checkpoint.task.name, "dtype": dtype, "family": checkpoint.family.model_type})
    model.metadata_props["max_seq_len"] = str(checkpoint.family.max_seq_len(checkpoint.config))
    model.metadata_props.update({f"option.{name}": str(value) for name, value in checkpoint.options.items()})
    checkpoint.family.lower(model, nodes, checkpoint.family.attributes(checkpoint.config), opset)
    if opset < OLDEST_EXPORTED_OPSET:
        to_opset_17(model)
    for function in checkpoint.family.functions(opset):
        converted = onnx_ir.serde.deserialize_function(function)
        model.functions[converted.identifier()] = converted
    # The oldest of the file's own format that goes with the opset: older runtimes refuse a newer one, whatever is in it.
    model.ir_version = find_min_ir_version_for([make_opsetid("", opset)])
    return count


def _name_nodes(graph: onnx_ir.Graph) -> None:
    """Names each node of a module by it, as in "encoder.layer.0.output.dense.MatMul": who finds one in a file knows where it is."""
    taken: Counter[str] = Counter()
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        path = scopes[-2].partition(".")[2] if len(scopes) > 1 else ""  # without that of `Wrapped.model`
        if not path or node.domain:  # attention nodes have their names
            continue
        name = f"{path}.{node.op_type}"
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"


def _copy_side_files(checkpoint: Checkpoint, stage: Path, pooling: Pooling) -> None:
    """Puts beside the model what stock clients look for: configuration, tokenizer, sentence-transformers' files."""
    for name in ("config.json", "README.md", *SIDE_FILES):
        if (checkpoint.directory / name).is_file():
            (stage / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(checkpoint.directory / name, stage / name)
    if pooling.mode == "none":
        for name in ("modules.json", "1_Pooling", "2_Normalize"):
            target = stage / name
            if target.is_dir():
                shutil.rmtree(target)
            target.unlink(missing_ok=True)
        return
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")] + [("2_Normalize", "Normalize")] * pooling.normalize
    listing = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    settings: dict[str, Any] = {"word_embedding_dimension": checkpoint.config.hidden_size}
    for key, mode in (("cls_token", "cls"), ("mean_tokens", "mean"), ("max_tokens", ""), ("mean_sqrt_len_tokens", "")):
        settings[f"pooling_mode_{key}"] = mode == pooling.mode
    (stage / "1_Pooling").mkdir(exist_ok=True)
    (stage / "1_Pooling" / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (stage / "modules.json").write_text(json.dumps(listing, indent=2) + "\n", encoding="utf-8")
    if not pooling.normalize and (stage / "2_Normalize").is_dir():
        shutil.rmtree(stage / "2_Normalize")
