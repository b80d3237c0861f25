"""ONNX file -> TensorRT engine and its manifest, with proof that the operator and the precision are in it."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.checkpoint.files import read_json
from mra_export.checkpoint.layout import transformer_folder
from mra_export.engine.backend import Backend, open_backend, select_backend
from mra_export.engine.builder import build, inspect_engine
from mra_export.engine.gpu import covers, find_gpus
from mra_export.engine.manifest import FORMAT, Manifest, manifest_path, write_manifest
from mra_export.engine.network import (
    allow_decomposition,
    check_plugin_layers,
    check_quantized,
    check_types,
    counted,
    parse,
    prepare,
)
from mra_export.engine.plugin import PluginInfo, load_plugin
from mra_export.engine.ranges import Range, ranges_of, shapes_of
from mra_export.errors import DependencyError, InputError
from mra_export.families._registry import families
from mra_export.native.libraries import find_library, tensorrt_library
from mra_export.outputs import check_target, file_sha256, staged_file
from mra_export.parity.comparison import Comparison, as_json
from mra_export.parity.range import recorded
from mra_export.pipeline.source import (
    ExportRequest,
    Proof,
    check_dtype,
    check_int8,
    find_exported,
    in_dtype,
    in_int8,
    open_source,
)
from mra_export.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mra_export.export.onnx_model import OnnxModel

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
    source: str | Path,
    output: Path,
    *,
    request: ExportRequest = ExportRequest(),  # noqa: B008  (frozen)
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
    prove: bool = True,
    comparisons: list[Comparison] | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> EngineResult:
    """Writes an engine and its manifest; both appear, or neither.

    Args:
        source: an .onnx file, a directory that holds one, or a checkpoint that is exported first; a hub id too.
        output: the engine file; the manifest is beside it, with .json appended.
        request: how a checkpoint is exported.
        dtype: fp32, fp16 or bf16; None for that of the file, or fp32. The engine is strongly typed: its types are those of the
            file, and a float32 file is converted where another type is asked for, or quantized where `request` has int8.
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
        prove: whether what is exported or converted is compared with its source, and the tensors of a float16 file with the range
            of that type.
        comparisons: takes the comparisons of an export with its checkpoint, and that of the range.
        force: whether existing outputs are replaced.
        progress: called with a line before each step.

    Raises:
        ParityError: an exported or a converted file is not the same model, or float16 does not hold its tensors.
        InputError: the source, a range, the plugin or the output is wrong; or the types are not those asked for.
        DependencyError: no backend, no plugin or no GPU where one is needed.
        MraExportError: the builder failed on a network that it had accepted.
    """
    request = replace(request, dtype=dtype)
    check_int8(request)
    dtype = None if request.int8 is not None else dtype  # fp32 is what is not int8
    file = find_exported(source, request)
    # An engine may lie in the directory of its ONNX file, and be replaced there.
    for target in (output, manifest_path(output)):
        check_target(target, force=force, sources=[file or Path(source)])
    select_backend(backend)
    if file is None and _may_need_plugin(Path(source)):  # exporting takes time
        tensorrt_library(library)
    made = comparisons if comparisons is not None else []
    proof = Proof(find_library("onnxruntime"), made, "builds the engine") if prove else None
    notes: list[str] = []
    opening = open_source(source, request, proof=proof, notes=notes, progress=progress)
    with opening as exported:
        check_dtype(exported, dtype)
        dims = exported.input_axes
        ranges = ranges_of(exported, dims, batch, seq_len, choices)
        opened = open_backend(select_backend(backend))
        gpus = find_gpus()
        _check_options(opened, version_compatible, timing_cache, strip_weights)
        name = exported.family.plugin
        plugin = load_plugin(opened, tensorrt_library(library), name) if name else None
        if embed_plugin and plugin is None:
            raise InputError(f"--embed-plugin: an engine of {exported.family.title} needs no plugin. Leave it out.")
        if gpus and plugin and plugin.architectures and not covers(plugin.architectures, gpus[0].compute_capability):
            raise DependencyError(
                f"{plugin.path} was compiled for the GPU architectures {plugin.architectures}, and {gpus[0].name} has compute "
                f"capability {gpus[0].compute_capability}. Run `mra-export build` on this machine."
            )

        with contextlib.ExitStack() as stack:
            quantized = stack.enter_context(
                in_int8(
                    exported,
                    request.int8 if file is not None else None,  # a checkpoint's export is int8 already
                    proof=proof,
                    notes=notes,
                    progress=progress,
                )
            )
            model, comparison = stack.enter_context(in_dtype(quantized, dtype, proof=proof, progress=progress))
            parity = [as_json(each) for each in made if not each.ranges]  # which has a place of its own
            if comparison is not None:
                parity.append(as_json(comparison))
                error = comparison.metrics["relative_error"]
                notes.append(f"converted from fp32; relative error {error:.1e} against the float32 file.")
            progress(f"{opened.title}: parsing {exported.path}")
            opened.logger.messages.clear()
            builder, network, parser = parse(opened, prepare(model, layer_outputs), model)
        check_plugin_layers(opened, network, model)
        tensor_types = check_types(opened, network, model.dtype, model.outputs)
        check_quantized(opened, network, model)
        allow_decomposition(opened, network)
        shapes = {name: shapes_of(dims[name], ranges) for name in model.inputs}
        progress(f"{opened.title}: building {output.name}, {model.precision}, {len(model.layers)} attention layers")
        started = time.monotonic()
        serialized = build(
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
        precision_proof = f"types of the parsed, strongly typed network: {counted(tensor_types)}"
        if gpus and not strip_weights:
            precision_proof += f"; engine inspector: {inspect_engine(opened, serialized, model)}"

        portable = opened.name == "rtx" or hardware_compatible
        if opened.name == "rtx" and hardware_compatible:
            notes.append(
                "engines of TensorRT-RTX run on every GPU from Ampere on; --hardware-compatible changes nothing."
            )
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
                plugin_name=name or "",
                plugin_version=plugin.version if plugin else "",
                plugin_sha256=plugin.sha256 if plugin else "",
                plugin_embedded=embed_plugin,
                plugin_architectures=plugin.architectures if plugin else "",
                plugin_layers=len(model.nodes),
                precision=model.precision,
                precision_proof=precision_proof,
                tensor_types=dict(tensor_types),
                weights_stripped=strip_weights,
                task=model.task,
                inputs=first,
                outputs=[network.get_output(i).name for i in range(network.num_outputs)],
                onnx_sha256=file_sha256(*exported.files),
                onnx_dtype=exported.dtype,
                attributes=model.stated_attributes,
                pooling=_pooling(exported),
                parity=parity or None,
                range=recorded(made),
                versions=_versions(opened, plugin),
            )
            write_manifest(manifest, manifest_stage)
        profiles = {axis: asdict(sizes) for axis, sizes in ranges.items()}
        return EngineResult(output, manifest_path(output), manifest, opened.title, profiles, seconds, tuple(notes))


def _may_need_plugin(source: Path) -> bool:
    """Whether an engine of a checkpoint needs the plugin; true where that is not known yet."""
    with contextlib.suppress(InputError):
        path = source if source.suffix == ".json" else transformer_folder(source) / "config.json"
        family = families().get(str(read_json(path).get("model_type")))
        return family is None or family.plugin is not None
    return True


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


def _pooling(model: OnnxModel) -> dict[str, Any] | None:
    """How the file pools, by the sentence-transformers files beside it."""
    from mra_export.checkpoint.modules import as_pooling
    from mra_export.checkpoint.text import read_contract

    if "sentence_embedding" not in model.outputs:
        return None
    with contextlib.suppress(InputError):
        if modules := read_contract(model.directory).modules:
            return as_pooling(modules)
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
