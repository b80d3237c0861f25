"""ONNX file -> TensorRT engine and its manifest, with proof that the operator and the precision are in it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import tempfile
import threading
import time
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export import __version__
from mra_export.engine_runner import LAYER_TENSORS, layer_output
from mra_export.errors import DependencyError, InputError, MraExportError, ParityError
from mra_export.libraries import tensorrt_library
from mra_export.manifest import FORMAT, Manifest, file_sha256, manifest_path, write_manifest
from mra_export.op_spec import OP_DOMAIN, OP_TYPE, OP_VERSION
from mra_export.outputs import check_target, staged_file
from mra_export.parity import Comparison, as_json
from mra_export.runners import OnnxModel, read_onnx
from mra_export.tensorrt_backend import (
    Backend,
    PluginInfo,
    covers,
    find_gpus,
    load_plugin,
    open_backend,
    select_backend,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mra_export.export import Pooling

__all__ = [
    "RANGES",
    "EngineResult",
    "Range",
    "build_engine",
    "check_ranges",
    "exported",
    "find_onnx",
    "parse_range",
    "position_limit",
]

RANGES = ("batch", "seq_len", "choices")
"""The arguments of `build_engine` that are a `Range`."""
DEFAULT_BATCH = (1, 8, 32)
DEFAULT_CHOICES = (1, 4, 8)
DEFAULT_OPT_SEQ_LEN = 128
PORTABLE_COMPUTE_CAPABILITY = "8.0"
"""The oldest GPUs of an engine that is not for one GPU: Ampere."""


@dataclass(frozen=True)
class Range:
    """Sizes of one axis: the least, the one to be fast at, the largest."""

    min: int
    opt: int
    max: int

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


@dataclass(frozen=True)
class EngineResult:
    """What `build_engine` wrote.

    Attributes:
        engine: the engine file.
        manifest_path: the manifest beside it.
        manifest: its contents.
        backend: name and version.
        profiles: axis -> min, opt and max.
        seconds: that the builder took.
        notes: what a person should know.
    """

    engine: Path
    manifest_path: Path
    manifest: Manifest
    backend: str
    profiles: dict[str, dict[str, int]]
    seconds: float
    notes: tuple[str, ...]


def parse_range(text: str, name: str) -> Range:
    """The sizes of an axis from "MIN:OPT:MAX", or one number for all three.

    Args:
        text: as the user gives it.
        name: of the option, for messages.

    Raises:
        InputError: it is not that, or not 1 <= MIN <= OPT <= MAX.
    """
    parts = text.split(":")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise InputError(f"{name}={text} must be MIN:OPT:MAX, for example 1:8:32, or one number for all three.")
    low, best, high = numbers
    if low < 1:
        raise InputError(f"{name}={text}: the least size is {low}, but must be at least 1.")
    if not low <= best <= high:
        raise InputError(f"{name}={text} must not decrease: MIN <= OPT <= MAX.")
    return Range(low, best, high)


def position_limit(model: OnnxModel) -> int | None:
    """The longest sequence that a model takes, in tokens; None where that cannot be seen.

    It is max_position_embeddings of the config.json that lies beside the file or above its folder, and what the table of
    positions in the file holds; the smaller one where both are known.
    """
    import onnx

    limits = []
    for folder in (model.path.parent.parent, model.path.parent):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            value = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")
            if isinstance(value, int):
                limits.append(value)
    graph = onnx.load(str(model.path), load_external_data=False).graph
    for initializer in graph.initializer:
        if initializer.name.endswith("position_embeddings.weight") and len(initializer.dims) == 2:
            limits.append(int(initializer.dims[0]) - 2)  # MraEmbeddings counts positions from 2
    return min(limits) if limits else None


def check_ranges(ranges: dict[str, Range], limit: int | None) -> None:
    """Refuses ranges that a model cannot run.

    Args:
        ranges: axis -> sizes.
        limit: the longest sequence, None where it is not known.

    Raises:
        InputError: a sequence would be longer than `limit`.
    """
    seq_len = ranges["sequence"]
    if limit is not None and seq_len.max > limit:
        raise InputError(
            f"--seq-len={seq_len}: the longest sequence is {seq_len.max}, but the model has max_position_embeddings={limit}. "
            f"Give at most {limit}."
        )


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


@contextlib.contextmanager
def exported(
    source: str,
    output: Path,
    *,
    task: str = "auto",
    random_init: int | None = None,
    dtype: str | None = None,
    opset: int | None = None,
    pooling: Callable[[Path], Pooling | None] | None = None,
    check: bool = True,
    backend: str = "auto",
    library: Path | None = None,
    comparisons: list[Comparison] | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Path]:
    """The ONNX file that `build_engine` shall read: that of `source`, or one exported from it for as long as the block runs.

    Args:
        source: an .onnx file, a directory that holds one, or a checkpoint; a hub id too.
        output: the engine that is to be written.
        task: of a checkpoint, as are `random_init`, `opset` and `pooling`.
        random_init: as for `load_checkpoint`.
        dtype: of the export, default fp32.
        opset: as for `export_onnx`.
        pooling: gives that of `export_onnx` for the checkpoint's directory; None leaves it to the checkpoint.
        check: whether an export is compared with the checkpoint.
        backend: as for `build_engine`; what it needs is looked for before the export begins.
        library: as for `build_engine`.
        comparisons: takes the comparisons.
        force: whether existing outputs are replaced.
        progress: called with a line before each step.

    Raises:
        InputError: the source, the output or an option is wrong.
        ParityError: the export is not the checkpoint's model.
        DependencyError: the backend or the plugin is missing.
    """
    path = Path(source)
    if path.is_file() and path.suffix != ".json" and path.suffix != ".onnx":
        raise InputError(f"{path} is neither an .onnx file nor a directory.")
    onnx_file = find_onnx(path) if random_init is None else None
    # An engine may lie in the directory of its ONNX file, and be replaced there.
    for target in (output, manifest_path(output)):
        check_target(target, force=force, sources=[onnx_file or path])
    select_backend(backend)
    tensorrt_library(library)
    if onnx_file is not None:
        options = {"--opset": opset, "--pooling or --normalize": pooling}
        given = [name for name, value in options.items() if value is not None] + ["--task"] * (task != "auto")
        if given:
            raise InputError(f"{', '.join(given)} is for a checkpoint, but {path} is already exported: leave it out.")
        yield onnx_file
        return
    if path.suffix == ".onnx":
        raise InputError(f"{path} does not exist.")

    from mra_export.checkpoint import load_checkpoint
    from mra_export.export import DEFAULT_OPSET, MODEL_FILE, export_onnx

    progress(f"loading {source}")
    checkpoint = load_checkpoint(source, task=task, random_init=random_init)

    def prove(stage: Path) -> None:
        from mra_export.check import check as compare
        from mra_export.libraries import find_library

        found = compare(checkpoint, [stage / MODEL_FILE], library=find_library("onnxruntime"), progress=progress)
        if comparisons is not None:
            comparisons.extend(found)
        failed = [c for c in found if c.ok is False]
        if failed:
            text = "; ".join(
                f"{c.candidate} is not {c.reference}: {' '.join(c.notes) or 'see the numbers'}" for c in failed
            )
            raise ParityError(f"FAILED {text}\nNothing was written; --no-check builds the engine nevertheless.")

    with tempfile.TemporaryDirectory(prefix="mra-export-") as folder:
        progress(f"exporting {type(checkpoint.model).__name__}")
        yield export_onnx(
            checkpoint,
            Path(folder) / "onnx",
            dtype=dtype or "fp32",
            opset=DEFAULT_OPSET if opset is None else opset,
            pooling=pooling(checkpoint.directory) if pooling is not None else None,
            finish=prove if check else None,
        ).model


def build_engine(
    onnx_file: Path,
    output: Path,
    *,
    dtype: str | None = None,
    backend: str = "auto",
    library: Path | None = None,
    batch: Range | None = None,
    seq_len: Range | None = None,
    choices: Range | None = None,
    timing_cache: Path | None = None,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    strip_weights: bool = False,
    embed_plugin: bool = False,
    layer_outputs: bool = False,
    parity: list[dict[str, Any]] | None = None,
    prove: bool = True,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> EngineResult:
    """Writes an engine and its manifest; both appear, or neither.

    Args:
        onnx_file: as `export_onnx` writes it.
        output: the engine file; the manifest is beside it, with .json appended.
        dtype: fp32, fp16 or bf16; None for that of the file. The engine is strongly typed: its types are those of the file,
            and a float32 file is converted where another type is asked for.
        backend: "auto", "tensorrt" or "rtx".
        library: the plugin library, None to have it found.
        batch: sizes, default 1:8:32.
        seq_len: sizes in tokens, default 1:128:(the model's maximum).
        choices: sizes, for multiple choice only, default 1:4:8.
        timing_cache: a file that is read if it exists, and written.
        version_compatible: whether newer versions of the backend are to run the engine.
        hardware_compatible: whether other GPUs are to run it, from Ampere on. TensorRT-RTX's engines always do.
        strip_weights: whether weights are left out, to be put back by refitting from the ONNX file.
        embed_plugin: whether the engine carries the plugin library.
        layer_outputs: whether each attention layer's query, key, value and context become outputs, for `check`.
        parity: comparisons of the ONNX file, for the manifest.
        prove: whether a converted file is compared with its source.
        force: whether existing outputs are replaced.
        progress: called with a line before each step.

    Raises:
        ParityError: a converted file is not the same model.
        InputError: the file, a range, the plugin or the output is wrong; or the types are not those asked for.
        DependencyError: no backend, no plugin or no GPU where one is needed.
        MraExportError: the builder failed on a network that it had accepted.
    """
    for target in (output, manifest_path(output)):
        check_target(target, force=force, sources=[onnx_file])
    source = read_onnx(onnx_file)
    if dtype not in (None, source.dtype) and source.dtype != "fp32":
        raise InputError(
            f"{onnx_file} is {source.dtype}, and what was rounded once cannot become {dtype}. Export it again with "
            f"`mra-export onnx CHECKPOINT --dtype {dtype}`, or give the checkpoint to `mra-export trt --dtype {dtype}`."
        )
    dims = _dims(source)
    ranges = _ranges(source, dims, batch, seq_len, choices)
    opened = open_backend(select_backend(backend))
    gpus = find_gpus()
    _check_options(opened, version_compatible, timing_cache, strip_weights)
    plugin = load_plugin(opened, tensorrt_library(library))
    notes: list[str] = []
    if gpus and plugin.architectures and not covers(plugin.architectures, gpus[0].compute_capability):
        raise DependencyError(
            f"{plugin.path} was compiled for the GPU architectures {plugin.architectures}, and {gpus[0].name} has compute "
            f"capability {gpus[0].compute_capability}. Run `mra-export build` on this machine."
        )

    with _in_dtype(source, dtype, prove=prove, progress=progress) as (model, comparison):
        if comparison is not None:
            parity = [*(parity or []), as_json(comparison)]
            error = comparison.metrics["relative_error"]
            notes.append(f"converted from fp32; relative error {error:.1e} against the float32 file.")
        progress(f"{opened.title}: parsing {onnx_file}")
        opened.logger.messages.clear()
        builder, network, parser = _parse(opened, _prepare(model, layer_outputs), model)
    _check_plugin_layers(opened, network, model)
    tensor_types = _check_types(opened, network, model.dtype)
    shapes = {name: _shapes(dims[name], ranges) for name in model.inputs}
    progress(f"{opened.title}: building {output.name}, {model.dtype}, {len(model.nodes)} attention layers")
    started = time.monotonic()
    serialized = _build(
        opened, builder, network, parser, shapes,
        timing_cache=timing_cache,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        strip_weights=strip_weights,
        plugin=plugin if embed_plugin else None,
        tf32=model.dtype != "fp32",
        progress=progress,
    )  # fmt: skip
    seconds = time.monotonic() - started
    proof = f"types of the parsed, strongly typed network: {_counted(tensor_types)}"
    if gpus and not strip_weights:
        proof += f"; engine inspector: {_inspect(opened, serialized, model)}"

    portable = opened.name == "rtx" or hardware_compatible
    if opened.name == "rtx" and hardware_compatible:
        notes.append("engines of TensorRT-RTX run on every GPU from Ampere on; --hardware-compatible changes nothing.")
    first = {name: {kind: list(shape) for kind, shape in shapes[name].items()} for name in shapes}
    with _staged_pair(output, force=force) as (stage, manifest_stage):
        stage.write_bytes(serialized)
        manifest = Manifest(
            format=FORMAT,
            mra_export=__version__,
            backend=opened.name,
            backend_version=opened.version,
            version_compatible=version_compatible,
            compute_capability=PORTABLE_COMPUTE_CAPABILITY if portable else gpus[0].compute_capability,
            hardware_compatible=portable,
            gpu="ahead of time" if opened.name == "rtx" else gpus[0].name,
            engine_bytes=stage.stat().st_size,
            engine_sha256=file_sha256(stage),
            plugin_name=OP_TYPE,
            plugin_version=plugin.version,
            plugin_sha256=plugin.sha256,
            plugin_embedded=embed_plugin,
            plugin_architectures=plugin.architectures,
            plugin_layers=len(model.nodes),
            precision=model.dtype,
            precision_proof=proof,
            tensor_types=dict(tensor_types),
            weights_stripped=strip_weights,
            task=model.task,
            inputs=first,
            outputs=[network.get_output(i).name for i in range(network.num_outputs)],
            onnx_sha256=_onnx_sha256(source),
            onnx_dtype=source.dtype,
            attributes=_attributes(model),
            pooling=_pooling(source),
            parity=parity,
            versions=_versions(opened, plugin),
        )
        write_manifest(manifest, manifest_stage)
    profiles = {axis: asdict(sizes) for axis, sizes in ranges.items()}
    return EngineResult(output, manifest_path(output), manifest, opened.title, profiles, seconds, tuple(notes))


def _check_options(backend: Backend, version_compatible: bool, timing_cache: Path | None, strip_weights: bool) -> None:
    """Refuses options that the backend or this machine does not have."""
    if version_compatible and backend.name == "rtx":
        raise InputError(
            "--version-compatible needs the lean runtime of a full TensorRT; TensorRT-RTX has none. Leave it out."
        )
    if timing_cache is not None and backend.name == "rtx":
        raise InputError(
            "--timing-cache is for TensorRT; TensorRT-RTX has none, since it times nothing ahead of time. Leave it out."
        )
    if strip_weights and not find_gpus():
        raise DependencyError(
            "--strip-weights needs a GPU: the builder compiles kernels for it to tell which weights can be put back. "
            "Run this on a machine with one, or leave the option out."
        )


@contextlib.contextmanager
def _in_dtype(
    source: OnnxModel, dtype: str | None, *, prove: bool, progress: Callable[[str], None]
) -> Iterator[tuple[OnnxModel, Comparison | None]]:
    """The file in the type asked for, and how it compares with its source where it had to be converted."""
    if dtype in (None, source.dtype):
        yield source, None
        return
    from mra_export.half import compare_with_source, convert

    with tempfile.TemporaryDirectory(prefix="mra-export-") as folder:
        progress(f"converting {source.path} to {dtype}")
        converted = convert(source, str(dtype), Path(folder) / source.path.name)
        comparison = compare_with_source(source, converted, progress) if prove else None
        if comparison is not None and not comparison.ok:
            error = comparison.metrics["relative_error"]
            limit = comparison.tolerance["relative_error"]
            raise ParityError(
                f"FAILED {source.path} in {dtype} is not the float32 file: relative error {error:.1e} (limit {limit:g}). Nothing "
                "was written; try --bf16, or export the checkpoint in that type, which is compared layer by layer."
            )
        yield converted, comparison


@contextlib.contextmanager
def _staged_pair(output: Path, *, force: bool) -> Iterator[tuple[Path, Path]]:
    """The paths to write an engine and its manifest to; both get their names when the block ends, or neither does."""
    is_named = False
    try:
        with staged_file(manifest_path(output), force=force) as manifest_stage:
            with staged_file(output, force=force) as stage:
                yield stage, manifest_stage
            is_named = True
    except BaseException:
        if is_named:  # an engine without its manifest is of no use, and could be taken for whole
            output.unlink(missing_ok=True)
        raise


def _prepare(model: OnnxModel, layer_outputs: bool) -> bytes:
    """The file as TensorRT's parser gets it.

    The parser prefers a function body to a plugin, silently: the bodies go, and the nodes name the plugin.
    """
    import onnx

    proto = onnx.load(str(model.path), load_external_data=False)
    del proto.functions[:]
    shown = []
    for node in proto.graph.node:
        if (node.domain, node.op_type) != (OP_DOMAIN, OP_TYPE):
            continue
        named = {attribute.name for attribute in node.attribute}
        for name, value in (("plugin_version", str(OP_VERSION)), ("plugin_namespace", "")):
            if name not in named:
                node.attribute.append(onnx.helper.make_attribute(name, value))
        if layer_outputs:
            shown.append(node)
    for node in shown:
        for tensor, name in zip(LAYER_TENSORS, (*list(node.input)[:3], node.output[0]), strict=True):
            output = layer_output(node.name, tensor)
            proto.graph.node.append(onnx.helper.make_node("Cast", [name], [output], to=onnx.TensorProto.FLOAT))
            proto.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    return proto.SerializeToString()


def _dims(model: OnnxModel) -> dict[str, list[int | str]]:
    """The axes of the inputs: name -> a number or the axis' name for each."""
    import onnx

    return {
        value.name: [
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in value.type.tensor_type.shape.dim
        ]
        for value in onnx.load(str(model.path), load_external_data=False).graph.input
    }


def _ranges(
    model: OnnxModel,
    dims: dict[str, list[int | str]],
    batch: Range | None,
    seq_len: Range | None,
    choices: Range | None,
) -> dict[str, Range]:
    """Axis -> sizes, by the options and defaults."""
    limit = position_limit(model)
    axes = {axis for shape in dims.values() for axis in shape if isinstance(axis, str)}
    unknown = sorted(axes - {"batch", "sequence", "choices"})
    if unknown:
        raise InputError(
            f"{model.path} has inputs of the variable axes {', '.join(map(repr, unknown))}; known are batch, choices and "
            "sequence. Export the checkpoint again with `mra-export onnx`."
        )
    if choices is not None and "choices" not in axes:
        raise InputError(f"--choices={choices} is for multiple choice; {model.path} is {model.task or 'another task'}.")
    if seq_len is None:
        if limit is None:
            raise InputError(f"{model.path} does not say how long its sequences may be. Add --seq-len MIN:OPT:MAX.")
        seq_len = Range(1, min(DEFAULT_OPT_SEQ_LEN, limit), limit)
    ranges = {
        "batch": batch or Range(*DEFAULT_BATCH),
        "sequence": seq_len,
        "choices": choices or Range(*DEFAULT_CHOICES),
    }
    check_ranges(ranges, limit)
    return {axis: sizes for axis, sizes in ranges.items() if axis in axes}


def _shapes(axes: list[int | str], ranges: dict[str, Range]) -> dict[str, tuple[int, ...]]:
    return {
        kind: tuple(axis if isinstance(axis, int) else getattr(ranges[axis], kind) for axis in axes)
        for kind in ("min", "opt", "max")
    }


def _parse(backend: Backend, proto: bytes, model: OnnxModel) -> tuple[Any, Any, Any]:
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
    if not parser.parse(proto, str(model.path)):
        found = [parser.get_error(i) for i in range(parser.num_errors)]
        # Why our plugin refuses a node, only its own log lines say.
        reasons = [text for kind, text in backend.logger.messages if "ERROR" in kind and text.startswith(OP_TYPE)]
        reasons += [f"{e.node_name() or e.node_operator() or 'model'}: {e.desc()}" for e in found]
        raise InputError(
            f"{model.path} was refused by the parser of {backend.title}: {' / '.join(dict.fromkeys(reasons)) or backend.errors()}. "
            "Export the checkpoint again with `mra-export onnx`; if it stays so, --opset 20 is the opset that is tested."
        )
    return builder, network, parser


def _check_plugin_layers(backend: Backend, network: Any, model: OnnxModel) -> None:
    """Every attention node has to be one layer of our plugin: a parser that finds none may put something else there."""
    kind = backend.module.LayerType.PLUGIN_V3
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    plugins = [layer.name for layer in layers if layer.type == kind]
    missing = [node.name for node in model.nodes if node.name not in plugins]
    if missing or len(plugins) != len(model.nodes):
        raise MraExportError(
            f"{backend.title} parsed {model.path} into {len(plugins)} plugin layers, but it has {len(model.nodes)} attention "
            f"nodes{f' (not there: {chr(44).join(missing[:3])})' if missing else ''}: the engine would not be the model."
        )


def _check_types(backend: Backend, network: Any, dtype: str) -> Counter[str]:
    """Proves the precision of a strongly typed network, and counts its types.

    Matrix products and attention, which are nearly all of the work, must have the type asked for in every float tensor;
    inputs are int64 and outputs float32 with each type.
    """
    trt = backend.module
    wanted = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}[dtype]
    floats = {"FLOAT", "HALF", "BF16"}
    types: Counter[str] = Counter()
    wrong = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        outputs = [layer.get_output(i).dtype.name for i in range(layer.num_outputs)]
        types.update(outputs)
        if layer.type in (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.PLUGIN_V3):
            inputs = [tensor.dtype.name for i in range(layer.num_inputs) if (tensor := layer.get_input(i)) is not None]
            seen = {name for name in (*inputs, *outputs) if name in floats}
            if seen != {wanted}:
                wrong.append(f"{layer.name} ({', '.join(sorted(seen))})")
    if wrong:
        raise InputError(
            f"This is no {dtype} network: {len(wrong)} layers compute in another type, for example {', '.join(wrong[:3])}. "
            f"Export the checkpoint again with --dtype {dtype}."
        )
    return types


def _counted(types: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in types.most_common())


def _build(
    backend: Backend,
    builder: Any,
    network: Any,
    parser: Any,
    shapes: dict[str, dict[str, tuple[int, ...]]],
    *,
    timing_cache: Path | None,
    version_compatible: bool,
    hardware_compatible: bool,
    strip_weights: bool,
    plugin: PluginInfo | None,
    tf32: bool,
    progress: Callable[[str], None],
) -> bytes:
    """The serialized engine, by polygraphy's loaders."""
    from polygraphy.backend.trt import CreateConfig, Profile, engine_bytes_from_network
    from polygraphy.exception import PolygraphyException

    trt = backend.module
    profile = Profile()
    for name, shape in shapes.items():
        profile.add(name, min=shape["min"], opt=shape["opt"], max=shape["max"])
    options: dict[str, Any] = {}
    if hardware_compatible and backend.name == "tensorrt":
        options["hardware_compatibility_level"] = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if timing_cache is not None and timing_cache.exists():
        options["load_timing_cache"] = str(timing_cache)

    def configure(builder: Any, network: Any) -> Any:
        config = create(builder, network)
        if not tf32 and hasattr(trt.BuilderFlag, "TF32"):
            # fp32 means fp32: TF32 keeps 10 bits of the mantissa.
            config.clear_flag(trt.BuilderFlag.TF32)
        if plugin is not None:
            config.plugins_to_serialize = [str(plugin.path)]
        return config

    backend.logger.messages.clear()
    with _monitor(trt, progress) as monitor, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # polygraphy's, of what it does for all versions
        create = CreateConfig(
            profiles=[profile],
            version_compatible=version_compatible,
            strip_plan=strip_weights,
            progress_monitor=monitor,
            **options,
        )
        try:
            return bytes(
                engine_bytes_from_network(
                    (builder, network, parser),
                    config=configure,
                    save_timing_cache=str(timing_cache) if timing_cache is not None else None,
                )
            )
        except OSError as error:
            raise InputError(f"{timing_cache} could not be read or written: {error.strerror or error}.") from error
        except PolygraphyException as error:
            if monitor.is_cancelled:
                raise KeyboardInterrupt from error
            said = backend.errors() or str(error).splitlines()[0]
            raise MraExportError(
                f"{backend.title} could not build the engine: {said} "
                "If it ran out of memory, lower the largest --batch or --seq-len."
            ) from error


@contextlib.contextmanager
def _monitor(trt: Any, progress: Callable[[str], None]) -> Iterator[Any]:
    """A progress monitor for the builder, which Ctrl-C stops.

    An exception must not pass through the builder, so that Ctrl-C is only noted while it runs.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base comes from a module that is chosen at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.is_cancelled = False
            self._steps: dict[str, int] = {}
            self._shown = time.monotonic()

        def phase_start(self, phase: str, parent: str | None, num_steps: int) -> None:
            self._steps[phase] = num_steps

        def step_complete(self, phase: str, step: int) -> bool:
            now = time.monotonic()
            if now - self._shown >= 1.0:
                self._shown = now
                progress(f"{phase}: {step + 1} of {self._steps.get(phase, 0)}")
            return not self.is_cancelled

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

    monitor = Monitor()
    if threading.current_thread() is not threading.main_thread():
        yield monitor
        return

    def note(*_: Any) -> None:
        monitor.is_cancelled = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield monitor
    finally:
        signal.signal(signal.SIGINT, before)
    if monitor.is_cancelled:
        raise KeyboardInterrupt


def _inspect(backend: Backend, serialized: bytes, model: OnnxModel) -> str:
    """What the engine inspector says of the built engine's types; this needs a GPU.

    Raises:
        InputError: the engine inspector shows no tensor of the type of the network.
        MraExportError: the engine cannot be loaded again.
    """
    trt = backend.module
    runtime = trt.Runtime(backend.logger)
    with contextlib.suppress(AttributeError):
        runtime.engine_host_code_allowed = True  # an engine that carries a plugin
    backend.logger.messages.clear()
    engine = runtime.deserialize_cuda_engine(serialized)
    if engine is None:
        if backend.name == "rtx":  # the engine is for every GPU it supports, which need not be the one that is here
            return f"not loaded on this GPU ({backend.errors() or 'no reason given'})"
        raise MraExportError(f"{backend.title} could not load the engine that it built. {backend.errors()}".strip())
    return _inspected_types(
        engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON), model
    )


def _inspected_types(text: str, model: OnnxModel) -> str:
    """The types in the engine inspector's JSON, counted over the tensors that its layers write."""
    words = {"fp32": r"\b(FP32|Float32|Float)\b", "fp16": r"\b(FP16|Float16|Half)\b", "bf16": r"\b(BF16|BFloat16)\b"}
    types: Counter[str] = Counter()
    for layer in json.loads(text).get("Layers", []):
        for tensor in layer.get("Outputs", []) if isinstance(layer, dict) else []:
            shown = str(tensor.get("Format/Datatype", tensor.get("Datatype", "")))
            types.update(kind for kind, pattern in words.items() if re.search(pattern, shown, re.IGNORECASE))
    if not types:
        return "names no types"
    if not types[model.dtype]:
        raise InputError(
            f"The engine inspector shows no {model.dtype} tensor but {_counted(types)}: this is no {model.dtype} engine."
        )
    return _counted(types)


def _onnx_sha256(model: OnnxModel) -> str:
    import onnx

    graph = onnx.load(str(model.path), load_external_data=False).graph
    names = {entry.value for i in graph.initializer for entry in i.external_data if entry.key == "location"}
    return file_sha256(model.path, *(model.path.parent / name for name in sorted(names)))


def _pooling(model: OnnxModel) -> dict[str, Any] | None:
    """How the file pools, by the sentence-transformers files beside it."""
    from mra_export.export import pooling_of

    if "sentence_embedding" not in model.outputs:
        return None
    with contextlib.suppress(InputError):
        pooling = pooling_of(model.path.parent.parent)
        if pooling.mode != "none":
            return asdict(pooling)
    return None


def _attributes(model: OnnxModel) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for attributes in model.attributes:
        if not found or found[-1] != attributes.as_dict():
            found.append(attributes.as_dict())
    return found


def _versions(backend: Backend, plugin: PluginInfo) -> dict[str, str | None]:
    import importlib.metadata

    versions: dict[str, str | None] = {}
    for name in ("onnx", "polygraphy", "torch", "transformers"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        backend.name: backend.version,
        "plugin_tensorrt_headers": plugin.tensorrt_headers,
        "plugin_cuda_runtime": f"{plugin.cuda_runtime // 1000}.{plugin.cuda_runtime % 1000 // 10}",
        **versions,
    }
