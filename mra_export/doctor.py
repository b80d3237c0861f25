"""Says what this machine has, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from dataclasses import dataclass

from mra_export import __version__

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
        libraries: "onnxruntime" and "tensorrt" -> path of our native library, None where there is none.
        gpus: name and compute capability of each.
        problems: what is missing.
    """

    versions: dict[str, str | None]
    libraries: dict[str, str | None]
    gpus: list[str]
    problems: list[Problem]


_PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "tensorrt", "tensorrt-rtx", "polygraphy")
_TOOLS = {"nvcc": ["nvcc", "--version"], "cmake": ["cmake", "--version"], "c++": ["c++", "--version"]}


def diagnose() -> Diagnosis:
    """Looks at packages, compilers, native libraries and GPUs; loads none of the large packages but torch."""
    from mra_export.libraries import find_library

    versions: dict[str, str | None] = {"mra-export": __version__, "python": platform.python_version()}
    versions |= {name: _package(name) for name in _PACKAGES}
    if versions["onnxruntime"] is None:
        versions["onnxruntime"] = _package("onnxruntime-gpu")
    versions |= {name: _tool(command) for name, command in _TOOLS.items()}
    found = {kind: find_library(kind) for kind in ("onnxruntime", "tensorrt")}
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
    if libraries["onnxruntime"] is None:
        problems.append(
            Problem(
                "The native operator for ONNX Runtime is not built; exported files run their slower function body.",
                "mra-export build",
                False,
            )
        )
    return Diagnosis(versions, libraries, gpus, problems)


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
    try:
        import torch
    except ImportError:
        return []
    if not torch.cuda.is_available():
        return []
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [f"{card.name} (compute capability {card.major}.{card.minor})" for card in cards]
