"""ONNX file -> TensorRT engine and its manifest, with proof that the operator and the precision are in it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import threading
import time
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export import __version__
from mra_export.dtypes import DTYPES
from mra_export.engine_runner import LAYER_TENSORS, layer_output
from mra_export.engine_source import Range, ranges_of, shapes_of
from mra_export.errors import DependencyError, InputError, MraExportError
from mra_export.export.onnx_model import OnnxModel, read_onnx
from mra_export.libraries import tensorrt_library
from mra_export.manifest import FORMAT, Manifest, manifest_path, write_manifest
from mra_export.outputs import check_target, file_sha256, staged_file
from mra_export.parity.comparison import as_json
from mra_export.pipeline.source import check_dtype, in_dtype
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


__all__ = ["EngineResult", "build_engine"]

PORTABLE_COMPUTE_CAPABILITY = "8.0"
"""The oldest GPUs of an engine that is not for one GPU: Ampere."""


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
    check_dtype(source, dtype)
    dims = source.input_axes
    ranges = ranges_of(source, dims, batch, seq_len, choices)
    opened = open_backend(select_backend(backend))
    gpus = find_gpus()
    _check_options(opened, version_compatible, timing_cache, strip_weights)
    plugin = load_plugin(opened, tensorrt_library(library)) if source.family.plugin else None
    if embed_plugin and plugin is None:
        raise InputError(f"--embed-plugin: an engine of {source.family.title} needs no plugin. Leave it out.")
    notes: list[str] = []
    if gpus and plugin and plugin.architectures and not covers(plugin.architectures, gpus[0].compute_capability):
        raise DependencyError(
            f"{plugin.path} was compiled for the GPU architectures {plugin.architectures}, and {gpus[0].name} has compute "
            f"capability {gpus[0].compute_capability}. Run `mra-export build` on this machine."
        )

    with in_dtype(source, dtype, prove=prove, progress=progress) as (model, comparison):
        if comparison is not None:
            parity = [*(parity or []), as_json(comparison)]
            error = comparison.metrics["relative_error"]
            notes.append(f"converted from fp32; relative error {error:.1e} against the float32 file.")
        progress(f"{opened.title}: parsing {onnx_file}")
        opened.logger.messages.clear()
        builder, network, parser = _parse(opened, _prepare(model, layer_outputs), model)
    _check_plugin_layers(opened, network, model)
    tensor_types = _check_types(opened, network, model.dtype)
    _allow_decomposition(opened, network)
    shapes = {name: shapes_of(dims[name], ranges) for name in model.inputs}
    progress(f"{opened.title}: building {output.name}, {model.dtype}, {len(model.layers)} attention layers")
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
            plugin_name=source.family.plugin or "",
            plugin_version=plugin.version if plugin else "",
            plugin_sha256=plugin.sha256 if plugin else "",
            plugin_embedded=embed_plugin,
            plugin_architectures=plugin.architectures if plugin else "",
            plugin_layers=len(model.nodes),
            precision=model.dtype,
            precision_proof=proof,
            tensor_types=dict(tensor_types),
            weights_stripped=strip_weights,
            task=model.task,
            inputs=first,
            outputs=[network.get_output(i).name for i in range(network.num_outputs)],
            onnx_sha256=file_sha256(*source.files),
            onnx_dtype=source.dtype,
            attributes=model.distinct_attributes,
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


def _check_plugin_layers(backend: Backend, network: Any, model: OnnxModel) -> None:
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


def _check_types(backend: Backend, network: Any, dtype: str) -> Counter[str]:
    """Proves the precision of a strongly typed network, and counts its types.

    Matrix products and attention, which are nearly all of the work, must have the type asked for in every float tensor;
    inputs are int64 and outputs float32 with each type.
    """
    wanted = DTYPES[dtype].tensorrt
    floats = {names.tensorrt for names in DTYPES.values()}
    types: Counter[str] = Counter()
    wrong = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        outputs = [layer.get_output(i).dtype.name for i in range(layer.num_outputs)]
        types.update(outputs)
        if layer.type.name in ("MATRIX_MULTIPLY", "PLUGIN_V3", "ATTENTION_INPUT", "ATTENTION_OUTPUT"):
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


def _allow_decomposition(backend: Backend, network: Any) -> None:
    """Lets TensorRT compute attention by matrix products and a softmax where it has no kernel for it.

    It has none for float32 and for some head sizes, and the build would fail. Where it has one, it is used.
    """
    output_layer = getattr(backend.module, "IAttentionOutputLayer", None)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if output_layer is not None and layer.type.name == "ATTENTION_OUTPUT":
            layer.__class__ = output_layer  # the way to a layer's own members: the parser's come as their base class
            layer.attention.decomposable = True


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
            if any("exceeding workspace limit" in text for _, text in backend.logger.messages):
                largest = shapes["input_ids"]["max"]
                raise InputError(
                    f"The largest input, {'x'.join(map(str, largest))} tokens, needs more workspace than {backend.title} gives. "
                    "Lower the largest --batch or --seq-len."
                ) from error
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
    types: Counter[str] = Counter()
    for layer in json.loads(text).get("Layers", []):
        for tensor in layer.get("Outputs", []) if isinstance(layer, dict) else []:
            shown = str(tensor.get("Format/Datatype", tensor.get("Datatype", "")))
            types.update(kind for kind, names in DTYPES.items() if re.search(names.inspected, shown, re.IGNORECASE))
    if not types:
        return "names no types"
    if not types[model.dtype]:
        raise InputError(
            f"The engine inspector shows no {model.dtype} tensor but {_counted(types)}: this is no {model.dtype} engine."
        )
    return _counted(types)


def _pooling(model: OnnxModel) -> dict[str, Any] | None:
    """How the file pools, by the sentence-transformers files beside it."""
    from mra_export.checkpoint.pooling import pooling_of

    if "sentence_embedding" not in model.outputs:
        return None
    with contextlib.suppress(InputError):
        pooling = pooling_of(model.directory)
        if pooling.mode != "none":
            return asdict(pooling)
    return None


def _versions(backend: Backend, plugin: PluginInfo | None) -> dict[str, str | None]:
    import importlib.metadata

    versions: dict[str, str | None] = {}
    for name in ("onnx", "polygraphy", "torch", "transformers"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    if plugin is not None:
        cuda = f"{plugin.cuda_runtime // 1000}.{plugin.cuda_runtime % 1000 // 10}"
        versions = {"plugin_tensorrt_headers": plugin.tensorrt_headers, "plugin_cuda_runtime": cuda, **versions}
    return {backend.name: backend.version, **versions}
