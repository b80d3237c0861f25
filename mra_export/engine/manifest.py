"""The manifest beside an engine: what the engine is, what it needs, and the check before anything loads it.

An engine is raw TensorRT: on another GPU, with another TensorRT or with another plugin it fails in a way that names none of
these, or ends the process. `plugins/serving/engine_manifest.h` does the same check in C++; tests hold the two together.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mra_export.engine.gpu import covers, parse_version
from mra_export.errors import DependencyError, InputError
from mra_export.families._registry import families
from mra_export.outputs import file_sha256
from mra_export.schema import TEXT, Int, Map, Or, check_texts, check_value

__all__ = ["FORMAT", "Manifest", "check_engine", "manifest_path", "read_manifest", "write_manifest"]

FORMAT = 1
"""Of the manifest; a reader refuses a newer one."""


@dataclass(frozen=True)
class Manifest:
    """What ENGINE.json holds. The fields that a check needs are strings, integers and booleans at the top level.

    Attributes:
        format: `FORMAT`.
        mra_export: version of this package.
        backend: "tensorrt" or "rtx".
        backend_version: of it.
        version_compatible: whether a newer backend may run the engine.
        compute_capability: of the GPU that the engine is for, as in "9.0".
        hardware_compatible: whether it is the least one, instead of the only one.
        gpu: name of the GPU on which it was built, or "ahead of time".
        engine_bytes: size of the engine file.
        engine_sha256: of the engine file.
        plugin_name: the operator; "" where the engine needs no plugin, as are the four fields after it but `plugin_embedded`.
        plugin_version: of it.
        plugin_sha256: of the library.
        plugin_embedded: whether the engine carries the library.
        plugin_architectures: for which it was compiled, as CMake lists them.
        plugin_layers: number of attention layers that the plugin computes.
        precision: fp32, fp16, bf16, or int8 where linear layers are in int8 and the rest in fp32.
        precision_proof: where that was seen.
        tensor_types: type -> number of tensors of the parsed network.
        weights_stripped: whether the weights are to be put back (refitted) before use.
        task: of the model, or None.
        inputs: name -> min, opt and max shape.
        outputs: names.
        onnx_sha256: of the ONNX file, followed by its external data.
        onnx_dtype: type of that file; other than `precision` where it was converted.
        attributes: of the operator, one entry where all attention layers agree, else one for each.
        pooling: of the output sentence_embedding: mode and normalize where they say it all, else modules, each with its kind; None
            without it or where that is not known.
        parity: comparisons of the ONNX file with the PyTorch model, or None where none was made.
        versions: name -> version of what took part.
        range: of a float16 engine the largest absolute values of its tensors in float32: "limit", "largest", "tensor" and "layers",
            each with "name", "tensor" and "largest"; None for other types, or where it was not measured.
    """

    format: int
    mra_export: str
    backend: str
    backend_version: str
    version_compatible: bool
    compute_capability: str
    hardware_compatible: bool
    gpu: str
    engine_bytes: int
    engine_sha256: str
    plugin_name: str
    plugin_version: str
    plugin_sha256: str
    plugin_embedded: bool
    plugin_architectures: str
    plugin_layers: int
    precision: str
    precision_proof: str
    tensor_types: dict[str, int]
    weights_stripped: bool
    task: str | None
    inputs: dict[str, dict[str, list[int]]]
    outputs: list[str]
    onnx_sha256: str
    onnx_dtype: str
    attributes: list[dict[str, Any]]
    pooling: dict[str, Any] | None
    parity: list[dict[str, Any]] | None
    versions: dict[str, str | None]
    range: dict[str, Any] | None = None


_SHAPE = [Int(0)]
_PLAIN = {"int": int, "bool": bool, "str": TEXT, "str | None": Or(TEXT), "list[str]": [TEXT]}
_KINDS: dict[str, Any] = {field.name: _PLAIN.get(str(field.type)) for field in fields(Manifest)} | {
    "tensor_types": Map(Int(0)),
    "inputs": Map({"min": _SHAPE, "opt": _SHAPE, "max": _SHAPE}),
    "attributes": [Map(float)],
    "pooling": Or(dict),
    "parity": Or([dict]),
    "versions": Map(Or(TEXT)),
    "range": Or(dict),
}
"""Of the fields of ENGINE.json, as `check_value` takes them."""


def manifest_path(engine: Path) -> Path:
    """Where the manifest of an engine is: model.engine -> model.engine.json."""
    return engine.with_name(f"{engine.name}.json")


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Writes a manifest as JSON."""
    path.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")


def read_manifest(engine: Path) -> Manifest:
    """The manifest of an engine.

    Args:
        engine: the engine file.

    Raises:
        InputError: there is none, or it is not one that this version reads.
    """
    path = manifest_path(engine)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{engine} has no manifest {path.name} beside it. Keep the two together, or build the engine with `mra-export trt`."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a readable manifest: {error}. Build the engine again.") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("format"), int):
        raise InputError(
            f"{path} is not a manifest of an engine: it has no format. Build the engine with `mra-export trt`."
        )
    if raw["format"] != FORMAT:
        raise InputError(
            f"{path} has format {raw['format']}, this mra-export reads {FORMAT}. Build the engine again, or take the "
            f"mra-export that wrote it ({raw.get('mra_export')})."
        )
    known = {"range": None} | {name: raw[name] for name in _KINDS if name in raw}
    check_value(known, _KINDS, "", lambda text: InputError(f"{path}{text}. Build the engine again."))
    check_texts(known, "", lambda text: InputError(f"{path}{text}. Build the engine again."))
    return Manifest(**known)


def check_engine(
    engine: Path,
    *,
    backend: str | None = None,
    backend_version: str | None = None,
    compute_capability: str | None = None,
    plugin: Path | None = None,
) -> Manifest:
    """Says before an engine is loaded whether it can be, so that a person reads a reason instead of a crash.

    Args:
        engine: the engine file; its manifest lies beside it.
        backend: what is to load it, "tensorrt" or "rtx"; None to leave that out.
        backend_version: its version; None to leave that out.
        compute_capability: of the GPU, as in "9.0"; None to leave that out.
        plugin: the plugin library; None to leave that out.

    Returns:
        The manifest.

    Raises:
        InputError: the engine is missing or damaged, or the manifest is not its own.
        DependencyError: the engine is whole, but for another backend, version, GPU or plugin.
    """
    if not engine.is_file():
        raise InputError(f"{engine} does not exist.")
    manifest = read_manifest(engine)
    size = engine.stat().st_size
    if size != manifest.engine_bytes:
        raise InputError(
            f"{engine} has {size} bytes, its manifest says {manifest.engine_bytes}: it was cut off or replaced. "
            "Copy it again, or build it again."
        )
    if file_sha256(engine) != manifest.engine_sha256:
        raise InputError(
            f"{engine} is not the file that its manifest describes: the SHA-256 differs. Copy it again, or build it again."
        )
    if backend is not None and backend != manifest.backend:
        raise DependencyError(
            f"{engine} was built by {_TITLES.get(manifest.backend, manifest.backend)}, which {_TITLES.get(backend, backend)} "
            f"cannot load. Build it with `mra-export trt --backend {backend}`."
        )
    if backend_version is not None and not _version_fits(manifest, backend_version):
        needed = "or newer" if manifest.version_compatible else "exactly"
        raise DependencyError(
            f"{engine} needs {_TITLES.get(manifest.backend, manifest.backend)} {manifest.backend_version} {needed}; "
            f"this is {backend_version}. Build the engine again with the version that runs it."
        )
    if compute_capability is not None:
        if not _gpu_fits(manifest, compute_capability):
            needed = "or newer" if manifest.hardware_compatible else "exactly"
            raise DependencyError(
                f"{engine} needs a GPU of compute capability {manifest.compute_capability} {needed} (built: {manifest.gpu}); "
                f"this one has {compute_capability}. Build the engine on this machine, or with --hardware-compatible."
            )
        if manifest.plugin_architectures and not covers(manifest.plugin_architectures, compute_capability):
            raise DependencyError(
                f"The plugin of {engine} was compiled for the GPU architectures {manifest.plugin_architectures}; this GPU "
                f"has compute capability {compute_capability}. Run `mra-export build` here and build the engine again."
            )
    if plugin is not None and manifest.plugin_name and not manifest.plugin_embedded:
        if not plugin.is_file():
            raise DependencyError(
                f"{engine} needs the plugin library {plugin}, which does not exist. Copy it, or run `mra-export build`."
            )
        if file_sha256(plugin) != manifest.plugin_sha256:
            raise DependencyError(
                f"{plugin} is not the plugin that {engine} was built with: the SHA-256 differs. "
                "Copy the library that was there at the build, or build the engine again."
            )
    known = [family.plugin for family in families().values() if family.plugin]
    if manifest.plugin_name and manifest.plugin_name not in known:
        raise InputError(f"{engine} needs the plugin {manifest.plugin_name}; mra-export has {', '.join(known)}.")
    return manifest


_TITLES = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}


def _version_fits(manifest: Manifest, version: str) -> bool:
    built, here = parse_version(manifest.backend_version), parse_version(version)
    if not built or not here:
        return False
    if manifest.version_compatible:
        return here[:3] >= built[:3]
    # A C++ caller has three numbers, a Python one four.
    common = min(len(built), len(here))
    return common >= 3 and built[:common] == here[:common]


def _gpu_fits(manifest: Manifest, compute_capability: str) -> bool:
    built, here = parse_version(manifest.compute_capability), parse_version(compute_capability)
    return len(here) == 2 and (built <= here if manifest.hardware_compatible else built == here)
