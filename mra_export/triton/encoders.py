"""The models of a repository that run the network: the ONNX file, and engines by precision and GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.dtypes import DTYPES, onnx_type
from mra_export.engine.ranges import Range, check_ranges, ranges_of
from mra_export.errors import InputError
from mra_export.export.onnx_model import OnnxModel, read_onnx
from mra_export.native.libraries import LIBRARY_FILES
from mra_export.triton.configs import VERSION, Encoder, Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mra_export.bundle.manifest import Bundle, Variant
    from mra_export.triton.settings import TritonSettings

__all__ = ["encoders_of", "profile_of"]


def encoders_of(bundle: Bundle, settings: TritonSettings) -> tuple[list[tuple[Encoder, dict[str, Path]]], list[str]]:
    """The models with the files of their version's folder, the ONNX file first; and what was left out, and why."""
    notes: list[str] = []
    model = read_onnx(bundle.model_file)
    inputs, outputs = _tensors(model)
    found = [_onnx_encoder(bundle, model, settings, inputs, outputs)]
    engines = []
    for variant in bundle.engines:
        if variant.backend == "rtx":
            notes.append(
                f"{variant.file.name} is for TensorRT-RTX, which Triton's tensorrt backend does not load: it is not in the "
                "repository. Build an engine with --backend tensorrt on the GPU that serves."
            )
        else:
            engines.append(variant)
    # One that is version compatible runs in newer ones too.
    versions = sorted({str(engine.backend_version) for engine in engines if not engine.version_compatible})
    if len(versions) > 1:
        raise InputError(
            f"{', '.join(engine.file.name for engine in engines)} were built with different TensorRTs "
            f"({', '.join(versions)}), and a server has one. Build them with the same, or with --version-compatible."
        )
    groups = _groups(engines)
    for group in groups:
        precision = group[0].precision
        name = f"{settings.name}_trt_{precision}"
        if sum(other[0].precision == precision for other in groups) > 1:
            sizes = profile_of(group[0], inputs)
            name += f"_{sizes['batch'].max}x{sizes['sequence'].max}"
        found.append(_engine_encoder(name, group, bundle.length_step, settings, inputs, outputs))
    names = [encoder.name for encoder, _ in found]
    if len(set(names)) < len(names):
        raise InputError(f"The engines give models of the same name: {', '.join(names)}. Leave one of the engines out.")
    return found, notes


def _tensors(model: OnnxModel) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The inputs and outputs of the ONNX file, without the batch."""
    import onnx

    types = {
        **{onnx_type(name): names.triton for name, names in DTYPES.items()},
        onnx.TensorProto.INT64: "TYPE_INT64",
        onnx.TensorProto.INT32: "TYPE_INT32",
    }

    def tensors(values: Any) -> tuple[Tensor, ...]:
        made = []
        for value in values:
            kind = value.type.tensor_type
            dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in kind.shape.dim]
            if kind.elem_type not in types or not dims or dims[0] != "batch":
                raise InputError(
                    f"{model.path}: {value.name} has the axes {dims}, of which Triton needs the first to be the batch, or a type "
                    "that Triton does not have. Export the checkpoint again with `mra-export onnx`."
                )
            made.append(
                Tensor(value.name, types[kind.elem_type], tuple(d if isinstance(d, int) else -1 for d in dims[1:]))
            )
        return tuple(made)

    return tensors(model.proto.graph.input), tensors(model.proto.graph.output)


def _onnx_encoder(
    bundle: Bundle, model: OnnxModel, settings: TritonSettings, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]
) -> tuple[Encoder, dict[str, Path]]:
    gpu = settings.device == "gpu"
    if bundle.dtype == "bf16" and not gpu:
        raise InputError(
            "ONNX Runtime has no bfloat16 kernels for CPUs, so Triton could not run the ONNX file there. Add --triton-device "
            "gpu, or bundle an fp32 or fp16 export."
        )
    if gpu and bundle.library is not None and b"CUDAExecutionProvider" not in bundle.library.read_bytes():
        raise InputError(
            f"--triton-device=gpu, but {bundle.library.name} was built without CUDA kernels: every attention layer would "
            "leave the GPU. Build it with `cmake -DMRA_CUDA=ON`, give an engine, or leave --triton-device out."
        )
    if settings.library is not None and bundle.library is None:
        raise InputError(
            f"--triton-library={settings.library}, but the bundle has no {LIBRARY_FILES['onnxruntime']}: its model runs the "
            "function body. Run `mra-export build` first, or leave the option out."
        )
    ranges = ranges_of(model, model.input_axes, settings.batch, settings.seq_len, None)
    check_ranges({"sequence": ranges["sequence"]}, bundle.max_seq_len)
    name = f"{settings.name}_onnx"
    weights, *data = model.files
    files = {"model.onnx": weights, **{path.name: path for path in data}}
    op_library = None
    if bundle.library is not None:
        op_library = settings.library
        if op_library is None:
            files[LIBRARY_FILES["onnxruntime"]] = bundle.library
            # ONNX Runtime gives this to dlopen: with a slash in it, it is looked for from the working directory.
            op_library = f"{name}/{VERSION}/{LIBRARY_FILES['onnxruntime']}"
    step = bundle.length_step
    return Encoder(name, "onnxruntime", inputs, outputs, ranges, step, 1, gpu, {"": "model.onnx"}, op_library), files


def _groups(engines: Sequence[Variant]) -> list[list[Variant]]:
    """Engines that are one model: the same precision and sizes, for different GPUs, of which Triton takes the one that fits."""
    groups: dict[str, list[Variant]] = {}
    for engine in engines:
        groups.setdefault(json.dumps([engine.precision, engine.profiles], sort_keys=True), []).append(engine)
    for group in groups.values():
        seen: dict[tuple[str | None, bool | None], Variant] = {}
        for engine in group:
            # One that all newer GPUs may run is for those that have none of their own.
            key = (None, True) if engine.hardware_compatible else (engine.compute_capability, False)
            if key in seen:
                raise InputError(
                    f"{seen[key].file.name} and {engine.file.name} have the same precision and profile, and are for the same "
                    f"GPUs ({engine.compute_capability}): Triton could not choose. Leave one of them out."
                )
            seen[key] = engine
    return list(groups.values())


def profile_of(engine: Variant, inputs: tuple[Tensor, ...]) -> dict[str, Range]:
    """The sizes that an engine takes, by axis."""
    assert engine.profiles is not None
    shapes = engine.profiles["input_ids"]
    axes = ("batch", "choices", "sequence") if len(inputs[0].dims) == 2 else ("batch", "sequence")
    if any(len(shapes[key]) != len(axes) for key in ("min", "opt", "max")):
        raise InputError(f"{engine.file}: its profile {shapes} is not one of {', '.join(axes)}. Build it again.")
    return {axis: Range(*(shapes[key][i] for key in ("min", "opt", "max"))) for i, axis in enumerate(axes)}


def _engine_encoder(
    name: str,
    group: list[Variant],
    step: int,
    settings: TritonSettings,
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
) -> tuple[Encoder, dict[str, Path]]:
    first = group[0]
    profile = profile_of(first, inputs)
    if profile["batch"].min > 1:
        raise InputError(
            f"{first.file.name} takes batches of {profile['batch']}, but Triton sends single requests too. Build it with "
            f"--batch 1:{profile['batch'].opt}:{profile['batch'].max}."
        )
    ranges = dict(profile)
    for axis, option, asked in (("batch", "--batch", settings.batch), ("sequence", "--seq-len", settings.seq_len)):
        if asked is None:
            continue
        limit = profile[axis]
        if asked.max > limit.max or asked.min < limit.min:
            raise InputError(
                f"{option}={asked} is outside the profile {limit} of {first.file.name}. Stay within it, or build the engine "
                f"with {option} {asked}."
            )
        ranges[axis] = asked
    default = next((engine for engine in group if engine.hardware_compatible), first)
    files, names = {}, {}
    for engine in group:
        capability = "" if engine is default else str(engine.compute_capability)
        file = f"model_{capability}.plan" if capability else "model.plan"
        files[file], names[capability] = engine.file, file
        if engine.library is not None:
            files[LIBRARY_FILES["tensorrt"]] = engine.library
    encoder = Encoder(name, "tensorrt", inputs, outputs, ranges, step, profile["sequence"].min, True, names, None)
    return encoder, files
