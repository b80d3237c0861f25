"""Checkpoint -> ONNX directory, with the attention of each layer as its family exports it."""

from __future__ import annotations

import ast
import copy
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.checkpoint.files import side_files
from mra_export.checkpoint.layout import MODULES_FILE, sentence_root
from mra_export.checkpoint.load import Checkpoint, input_names, share_weights
from mra_export.checkpoint.module_files import write_modules
from mra_export.checkpoint.module_torch import as_torch
from mra_export.checkpoint.modules import width_of
from mra_export.checkpoint.text import TextContract, read_contract, write_length_file
from mra_export.checkpoint.text_ids import write_tokenizer
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
        notes: what a person should know of the checkpoint's settings, one sentence each.
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
    notes: tuple[str, ...] = ()


def export_onnx(
    checkpoint: Checkpoint,
    output: Path,
    *,
    dtype: str = "fp32",
    opset: int | None = None,
    pooling: str | None = None,
    normalize: bool | None = None,
    force: bool = False,
    finish: Callable[[Path], None] | None = None,
) -> ExportResult:
    """Writes the ONNX directory of a checkpoint.

    Args:
        checkpoint: the model.
        output: the directory to write.
        dtype: one of `DTYPES`; inputs are int64 and outputs float32 with each of them.
        opset: of the standard operators, None for the family's default.
        pooling: "none" or one of `POOLING_MODES` in place of the checkpoint's; what follows it stays. None for its own.
        normalize: whether the vector is scaled to length 1; None for the checkpoint's own.
        force: whether an existing output is replaced.
        finish: called with the directory before it gets its name; if it raises, nothing is left behind.

    Returns:
        What was written.

    Raises:
        InputError: an option or the output path is wrong, or a setting of the checkpoint cannot be honoured.
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
    is_encoder = checkpoint.task.name == "feature-extraction"
    if not is_encoder and (pooling not in (None, "none") or normalize):
        raise InputError(
            f"pooling={pooling}, normalize={normalize} needs the task feature-extraction; this is {checkpoint.task.name}."
        )
    contract = read_contract(checkpoint.directory, pooling=pooling, normalize=normalize, embedding=is_encoder)
    width_of(contract.modules, checkpoint.config.hidden_size)

    inputs = input_names(checkpoint.config)
    outputs = checkpoint.task.outputs + (("sentence_embedding",) if contract.modules else ())
    torch_dtype = getattr(torch, DTYPES[dtype].torch)
    with staged_directory(output, force=force) as stage:
        program = _trace(checkpoint, inputs, outputs, torch_dtype, opset, contract)
        nodes = _finish_model(program, checkpoint, opset, dtype, contract)
        (stage / MODEL_FILE).parent.mkdir()
        save_program(program, stage / MODEL_FILE)
        del program
        onnx.checker.check_model(str(stage / MODEL_FILE), full_check=True)
        notes = _copy_side_files(checkpoint, stage, contract)
        if finish is not None:
            finish(stage)
        size = sum(file.stat().st_size for file in (stage / "onnx").iterdir())
    every = (*checkpoint.notes, *contract.notes, *notes)
    return ExportResult(
        output, output / MODEL_FILE, checkpoint.task.name, dtype, opset, nodes, inputs, outputs, size, every
    )


def _trace(
    checkpoint: Checkpoint,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    dtype: torch.dtype,
    opset: int,
    contract: TextContract,
) -> onnx_ir.Model:
    """Runs torch's exporter over the model with each attention replaced by a node of its family's operator."""
    import torch

    module = _wrapped(checkpoint, outputs, dtype, contract)
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


def _wrapped(checkpoint: Checkpoint, outputs: tuple[str, ...], dtype: torch.dtype, contract: TextContract) -> nn.Module:
    """The model as the exporter sees it: int64 inputs, float32 outputs, the mask cast once for all layers."""
    import torch

    attributes = [each.as_dict() for each in checkpoint.family.layer_attributes(checkpoint.config)]
    operator = "::".join(checkpoint.family.operator)
    # Module.to changes the parameters in place: only a model of the same type may share them.
    model = share_weights(checkpoint.model) if dtype == torch.float32 else copy.deepcopy(checkpoint.model).to(dtype)
    shared: dict[str, Tensor] = {}

    def node(layer: int, query: Tensor, key: Tensor, value: Tensor, *constants: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            operator,
            (query, key, value, shared["attention_mask"], *constants),
            attrs=attributes[layer],
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
    chain = as_torch(contract.modules, sentence_root(checkpoint.directory)) if contract.modules else None

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.chain = chain  # float32, whatever the type of the model

        def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Any:
            shared["attention_mask"] = attention_mask.to(torch.int32).flatten(0, -2)
            extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            result = self.model(input_ids=input_ids, attention_mask=attention_mask, **extra)
            values = [result[name].float() for name in outputs if name != "sentence_embedding"]
            if self.chain is not None:
                values.append(self.chain(values[0], attention_mask))
            return tuple(values)

    return Wrapped().eval()


def _finish_model(model: onnx_ir.Model, checkpoint: Checkpoint, opset: int, dtype: str, contract: TextContract) -> int:
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
    model.metadata_props.update({name: str(value) for name, value in _served_facts(checkpoint).items()})
    model.metadata_props.update({f"option.{name}": str(value) for name, value in checkpoint.options.items()})
    asked = {"pooling": contract.pooling, "normalize": contract.normalize}  # `check` holds the file against the same
    model.metadata_props.update({name: str(value) for name, value in asked.items() if value is not None})
    checkpoint.family.lower(model, nodes, checkpoint.family.attributes(checkpoint.config), opset)
    if opset < OLDEST_EXPORTED_OPSET:
        to_opset_17(model)
    for function in checkpoint.family.functions(opset):
        converted = onnx_ir.serde.deserialize_function(function)
        model.functions[converted.identifier()] = converted
    # The oldest of the file's own format that goes with the opset: older runtimes refuse a newer one, whatever is in it.
    model.ir_version = find_min_ir_version_for([make_opsetid("", opset)])
    return count


def _served_facts(checkpoint: Checkpoint) -> dict[str, int]:
    """What a server holds against its own settings before it takes texts; it has no other way to know."""
    config, family = checkpoint.config, checkpoint.family
    return {
        "max_seq_len": family.max_seq_len(config),
        "vocab_size": config.vocab_size,
        "pad_token_id": config.pad_token_id if isinstance(config.pad_token_id, int) else 0,
        "length_step": family.length_step,
    }


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


def _copy_side_files(checkpoint: Checkpoint, stage: Path, contract: TextContract) -> list[str]:
    """Puts beside the model what stock clients look for: configuration, tokenizer, sentence-transformers' files."""
    root = sentence_root(checkpoint.directory)
    files = {"config.json": checkpoint.directory / "config.json", **side_files(checkpoint.directory)}
    for name, path in files.items():
        (stage / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, stage / name)
    (stage / MODULES_FILE).unlink(missing_ok=True)
    for name in ("1_Pooling", "2_Normalize"):
        if (stage / name).is_dir():
            shutil.rmtree(stage / name)
    write_length_file(checkpoint.directory, stage, sys.maxsize)
    if contract.modules:
        write_modules(contract.modules, root, stage, checkpoint.config.hidden_size)
    positions = checkpoint.family.max_seq_len(checkpoint.config)
    return [*_unused(root, checkpoint.task.name), *write_tokenizer(checkpoint.directory, stage, contract, positions)]


def _unused(root: Path, task: str) -> list[str]:
    """Says that an export gives no embeddings where sentence-transformers would."""
    if task == "feature-extraction" or not (root / MODULES_FILE).is_file():
        return []
    return [f"{root / MODULES_FILE} is for embeddings, and {task} gives none: --task feature-extraction does."]
