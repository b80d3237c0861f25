"""Says what this machine has, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mra_export.native.processor import read_processor
from mra_export.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Diagnosis", "Problem", "diagnose"]


@dataclass(frozen=True)
class Problem:
    """Something that is missing.

    Attributes:
        text: what, and what for.
        fix: the command that mends it.
        essential: whether export and check need it.
    """

    text: str
    fix: str
    essential: bool


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        versions: name -> version, None where it is not installed.
        libraries: kind ("onnxruntime", "tensorrt", "openvino") -> path of our native library, None where there is none.
        plugin: what the TensorRT plugin says of itself, None where there is none or it cannot be opened: version, exports,
            architectures, tensorrt_headers, cuda_runtime.
        gpus: name and compute capability of each.
        processor: "int8" and "bf16" -> the instructions that the processor has for them, None where it has none; empty where that
            cannot be told.
        families: `model_type` of what can be exported -> its name, tasks and options (name -> what for).
        problems: what is missing.
    """

    versions: dict[str, str | None]
    libraries: dict[str, str | None]
    plugin: dict[str, str] | None
    gpus: list[str]
    processor: dict[str, str | None]
    families: dict[str, dict[str, Any]]
    problems: list[Problem]


_PACKAGES = (
    "torch",
    "transformers",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "polygraphy",
)
_TOOLS = {"nvcc": ["nvcc", "--version"], "cmake": ["cmake", "--version"], "c++": ["c++", "--version"]}


def diagnose() -> Diagnosis:
    """Looks at packages, compilers, native libraries and GPUs; loads none of the large packages."""
    from mra_export.families._registry import families
    from mra_export.native.elf import cut_off
    from mra_export.native.libraries import LIBRARY_FILES, built_for, find_library, has_functions, not_built_note
    from mra_export.runners.session import OLDEST_FOR_LIBRARY, too_old_for_library

    versions: dict[str, str | None] = {"mra-export": __version__, "python": platform.python_version()}
    versions |= {name: _package(name) for name in _PACKAGES}
    if versions["onnxruntime"] is None:
        versions["onnxruntime"] = _package("onnxruntime-gpu")
    versions |= {name: _tool(command) for name, command in _TOOLS.items()}
    found = {kind: find_library(kind) for kind in LIBRARY_FILES}
    libraries = {kind: str(path) if path else None for kind, path in found.items()}
    gpus = _gpus()

    problems = []
    for name in ("torch", "transformers", "onnx", "onnxscript"):
        if versions[name] is None:
            problems.append(Problem(f"{name} is not installed; nothing works without it.", f"pip install {name}", True))
    if versions["onnxruntime"] is None:
        problems.append(
            Problem(
                "ONNX Runtime is not installed; `check` runs the exported file with it.",
                "pip install onnxruntime-gpu" if gpus else "pip install onnxruntime",
                True,
            )
        )
    if (note := not_built_note()) is not None:
        problems.append(Problem(note, "mra-export build", False))
    elif (library := found["onnxruntime"]) is not None and (wrong := cut_off(library)):
        problems.append(Problem(f"{wrong}.", "mra-export build", False))
    elif library is not None and too_old_for_library(versions["onnxruntime"]):
        needed = ".".join(map(str, OLDEST_FOR_LIBRARY))
        text = (
            f"ONNX Runtime {versions['onnxruntime']} is too old for {library.name}, which needs {needed} or newer; "
            "commands that would use it end with 4."
        )
        fix = f"pip install --upgrade {'onnxruntime-gpu' if _package('onnxruntime') is None else 'onnxruntime'}"
        problems.append(Problem(text, fix, False))
    if (installed := versions["openvino"]) is not None:
        extension = found["openvino"]
        built = None if extension is None else built_for(extension)
        if built != (release := installed.partition("-")[0]):
            text = "is not built" if built is None else f"was built for OpenVINO {built}, and {release} is installed"
            other = found["onnxruntime"]
            if other is not None and has_functions(other):
                text += f"; until then nodes in Python call the operators of {other.name}, but not in bundles and C++"
            problems.append(Problem(f"{LIBRARY_FILES['openvino']} {text}.", "mra-export build openvino", False))
    plugin, more = _tensorrt(found["tensorrt"], versions)
    known = {
        name: {
            "title": family.title,
            "tasks": list(family.tasks),
            "options": {key: f"{option.help} (default {option.default})" for key, option in family.options.items()},
        }
        for name, family in families().items()
    }
    return Diagnosis(versions, libraries, plugin, gpus, read_processor().instructions, known, problems + more)


def _tensorrt(library: Path | None, versions: dict[str, str | None]) -> tuple[dict[str, str] | None, list[Problem]]:
    """What the plugin says of itself, and whether it, TensorRT, CUDA's driver and the GPU agree."""
    from mra_export.engine.gpu import covers, driver_version, find_gpus, parse_version
    from mra_export.engine.plugin import ENTRY_POINTS, plugin_info
    from mra_export.errors import MraExportError
    from mra_export.families._registry import families

    problems = []
    is_installed = versions["tensorrt"] is not None or versions["tensorrt-rtx"] is not None
    if not is_installed:
        text = "Neither TensorRT nor TensorRT-RTX is installed; `trt` builds engines with one of them."
        problems.append(
            Problem(text, "pip install tensorrt" if find_gpus() else "pip install tensorrt-rtx polygraphy", False)
        )
    elif versions["polygraphy"] is None:
        problems.append(Problem("polygraphy is not installed; `trt` needs it.", "pip install polygraphy", False))
    if library is None:
        titles = " and ".join(family.title for family in families().values() if family.plugin)
        text = f"The TensorRT plugin is not built; without it `trt` cannot build engines of {titles} models."
        problems.append(Problem(text, "mra-export build tensorrt", False))
        return None, problems
    try:
        info = plugin_info(library)
    except MraExportError as error:
        problems.append(Problem(str(error), "mra-export build tensorrt", False))
        return None, problems

    cuda = f"{info.cuda_runtime // 1000}.{info.cuda_runtime % 1000 // 10}"
    installed = parse_version(versions["tensorrt"] or "")
    if installed and parse_version(info.tensorrt_headers) > installed[:2]:
        text = (
            f"The plugin was compiled with the headers of TensorRT {info.tensorrt_headers}, newer than the TensorRT "
            f"{versions['tensorrt']} that is installed."
        )
        problems.append(Problem(text, "pip install --upgrade tensorrt", False))
    driver = driver_version()
    if driver is not None and driver // 1000 < info.cuda_runtime // 1000:
        text = f"The plugin needs CUDA {cuda}; the driver serves CUDA {driver // 1000}.{driver % 1000 // 10} at most."
        problems.append(
            Problem(text, "install a newer NVIDIA driver, or an older CUDA toolkit and `mra-export build`", False)
        )
    for gpu in find_gpus():
        if info.architectures and not covers(info.architectures, gpu.compute_capability):
            text = (
                f"The plugin was compiled for the GPU architectures {info.architectures}, and {gpu.name} has compute "
                f"capability {gpu.compute_capability}."
            )
            problems.append(Problem(text, "mra-export build tensorrt", False))
    shown = {
        "version": info.version,
        "exports": ", ".join(ENTRY_POINTS),
        "architectures": info.architectures,
        "tensorrt_headers": info.tensorrt_headers,
        "cuda_runtime": cuda,
    }
    return shown, problems


def _package(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tool(command: list[str]) -> str | None:
    """The line of a tool's answer that holds its version."""
    if shutil.which(command[0]) is None:
        return None
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    return next((line for line in lines if "release" in line), lines[0] if lines else None)


def _gpus() -> list[str]:
    from mra_export.engine.gpu import find_gpus

    return [f"{gpu.name} (compute capability {gpu.compute_capability})" for gpu in find_gpus()]
