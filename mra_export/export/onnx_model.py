"""An exported file, read once: what it says of itself, and what can be seen in its graph."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.checkpoint.json_files import refuse_pointer
from mra_export.dtypes import dtype_of_onnx
from mra_export.errors import InputError
from mra_export.families._base import Family, OnnxLayer, noted_options
from mra_export.families._registry import families

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir
    import torch


__all__ = [
    "MODEL_FILE",
    "OnnxModel",
    "beside_weights",
    "find_onnx",
    "layer_constants",
    "read_onnx",
    "save_program",
]


MODEL_FILE = Path("onnx") / "model.onnx"
EXTERNAL_DATA_THRESHOLD = 2_000_000_000
"""Bytes of weights from which they go to a file of their own: a protobuf message ends at 2 GiB."""


def find_onnx(source: Path) -> Path | None:
    """The ONNX file that a path names.

    Args:
        source: an .onnx file, or a directory with `onnx/model.onnx`, `model.onnx` or one other .onnx file.

    Returns:
        The file; None where a directory has none (it may be a checkpoint) or the path does not exist.

    Raises:
        InputError: the directory holds several and none is called model.onnx, or the file is of another kind.
    """
    if source.is_dir():
        found = sorted((*source.glob("*.onnx"), *source.glob("onnx/*.onnx")))
        preferred = [path for path in found if path.name == "model.onnx"] or found
        if len(preferred) > 1:
            raise InputError(
                f"{source} holds several ONNX files: {', '.join(p.name for p in preferred)}. Name one of them."
            )
        return preferred[0] if preferred else None
    if source.is_file() and source.suffix == ".onnx":
        return source
    return None


@dataclass(frozen=True)
class OnnxModel:
    """An exported file, read once.

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
        proto: the file as parsed (`onnx.ModelProto`), external data not loaded; not to be changed.
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
    proto: Any = field(repr=False)

    @property
    def precision(self) -> str:
        """What its linear layers compute in: fp32, fp16, bf16 or int8."""
        return self.metadata.get("precision", self.dtype)

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
        return noted_options(self.family, self.metadata)

    @property
    def stated_attributes(self) -> list[dict[str, Any]]:
        """The operator's attributes as manifests have them: one entry where all attention layers agree, else one for each."""
        found = [attributes.as_dict() for attributes in self.attributes]
        return found if any(each != found[0] for each in found) else found[:1]

    @property
    def files(self) -> list[Path]:
        """The files that the model is in: the .onnx file, then its external data by name."""
        entries = (entry for i in self.proto.graph.initializer for entry in i.external_data)
        names = {entry.value for entry in entries if entry.key == "location"}
        return [self.path, *(self.path.parent / name for name in sorted(names))]

    @property
    def directory(self) -> Path:
        """The exported directory, which has the configuration: that of the file, or for `MODEL_FILE` the one above it."""
        folder = self.path.parent
        return folder.parent if folder.name == MODEL_FILE.parent.name else folder

    @property
    def input_axes(self) -> dict[str, list[int | str]]:
        """The axes of the inputs: name -> a number or the axis' name for each."""
        return {
            value.name: [
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param
                for dim in value.type.tensor_type.shape.dim
            ]
            for value in self.proto.graph.input
        }

    @property
    def position_limit(self) -> int | None:
        """The longest sequence that the model takes, in tokens; None where that cannot be seen.

        It is what the config.json says that lies beside the file or above its folder, and what the exporter noted in the file
        or else the table of positions in it holds; the smaller one where both are known.
        """
        limits = []
        for folder in (self.path.parent.parent, self.path.parent):
            with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
                values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
                limits.append(self.family.max_seq_len(SimpleNamespace(**values)))
        if "max_seq_len" in self.metadata:
            return min([*limits, int(self.metadata["max_seq_len"])])
        for initializer in self.proto.graph.initializer:
            if initializer.name.endswith("position_embeddings.weight") and len(initializer.dims) == 2:
                limits.append(int(initializer.dims[0]) - self.family.first_position)
        return min(limits) if limits else None

    @property
    def vocabulary(self) -> int | None:
        """How many ids it takes: the rows of the table that its ids look up, whatever that is called; None if none is found."""
        graph = self.proto.graph
        rows = {table.name: int(table.dims[0]) for table in graph.initializer if len(table.dims) == 2}
        ids = {"input_ids"}
        for node in graph.node:
            if node.op_type in ("Cast", "Identity", "Reshape") and node.input[0] in ids:
                ids.update(node.output)
            if node.op_type == "Gather" and node.input[1] in ids and node.input[0] in rows:
                return rows[node.input[0]]
        return None


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
    refuse_pointer(path)
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
    return OnnxModel(
        path=path,
        family=family,
        layers=layers,
        inputs=names,
        outputs=tuple(o.name for o in graph.output),
        dtype=_dtype(graph),
        task=metadata.get("task"),
        opset=next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0),
        functions=list(model.functions),
        metadata=metadata,
        proto=model,
    )


def _dtype(graph: Any) -> str:
    """The type that most of the weights have: a half file keeps constants in float32, for what it computes in that."""
    sizes: Counter[str | None] = Counter()
    for initializer in graph.initializer:
        sizes[dtype_of_onnx(initializer.data_type)] += math.prod(initializer.dims)
    del sizes[None]
    return str(sizes.most_common(1)[0][0]) if sizes else "fp32"


def layer_constants(model: OnnxModel) -> list[tuple[torch.Tensor, ...]]:
    """The further constant inputs of each attention node of a file, as `Family.judge` takes them."""
    import onnx
    import torch

    wanted = {name for node in model.nodes for name in list(node.input)[4:]}
    found = {}
    for initializer in model.proto.graph.initializer:
        if initializer.name in wanted:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(initializer)  # external data is loaded into what is given
            values = onnx.numpy_helper.to_array(tensor, base_dir=str(model.path.parent))
            found[initializer.name] = torch.from_numpy(values.astype(np.float32))
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
        refuse_pointer(data)
        if data.stat().st_size < end:
            raise InputError(
                f"{data} has {data.stat().st_size} bytes, but {initializer.name} reaches to byte {end}: it was cut off. "
                "Copy it again."
            )


@contextlib.contextmanager
def beside_weights(model: OnnxModel, proto: Any) -> Iterator[Path]:
    """A temporary file with another graph over a file's own weights.

    Args:
        model: the file.
        proto: the graph (`onnx.ModelProto`), which may refer to the external data of `model`.

    Yields:
        The path, for as long as the block runs.
    """
    import onnx

    with tempfile.TemporaryDirectory(prefix="mra-export-") as folder:
        for data in model.files[1:]:
            # ONNX Runtime refuses external data outside the model's folder, symbolic links included.
            try:
                os.link(data.resolve(), Path(folder) / data.name)
            except OSError:
                shutil.copyfile(data, Path(folder) / data.name)
        path = Path(folder) / model.path.name
        onnx.save(proto, str(path))
        yield path


def save_program(model: onnx_ir.Model, path: Path) -> None:
    """Writes the model, with its weights in a file beside it if they do not fit into a protobuf message."""
    import onnx_ir

    onnx_ir.external_data.load_to_model(model)  # what lies beside another file would be referred to, and not be found
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    external = f"{path.name}_data" if weights > EXTERNAL_DATA_THRESHOLD else None
    onnx_ir.save(model, path, external_data=external)
