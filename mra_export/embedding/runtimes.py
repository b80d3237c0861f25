"""What runs a bundle's model for `embed`: its ONNX file in ONNX Runtime, or its file for OpenVINO."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.errors import DependencyError, InputError
from mra_export.openvino.core import check_library, first_error, release
from mra_export.openvino.ir import open_ir, read_ir
from mra_export.optional import require_onnxruntime, require_tokenizers
from mra_export.runners.session import check_runtime, open_session, runtime_errors, session_options

if TYPE_CHECKING:
    from mra_export.bundle.manifest import Bundle, Variant

__all__ = ["RUNTIMES", "Runtime", "open_runtime", "runtime_of", "variant_of"]

RUNTIMES = ("onnxruntime", "openvino")
TOKENS = "last_hidden_state"

Run = Callable[[dict[str, Any]], np.ndarray[Any, Any]]
"""Takes the inputs, int64 [batch, width]; gives the vectors of the tokens, float32 [batch, width, hidden_size]."""


@dataclass(frozen=True)
class Runtime:
    """What computes vectors, as far as they depend on it: two that are equal give the same.

    Attributes:
        name: one of `RUNTIMES`.
        precision: of the bundle's variant.
        arithmetic: "fp32", "fp16" or "bf16": OpenVINO's is by the processor.
        provider: ONNX Runtime's execution provider; "OpenVINO" on the CPU.
        versions: of the runtime and of tokenizers.
    """

    name: str
    precision: str
    arithmetic: str
    provider: str
    versions: dict[str, str]

    @property
    def settings(self) -> dict[str, Any]:
        """All of it by name, as the journal keeps it."""
        return {
            "runtime": self.name,
            "precision": self.precision,
            "arithmetic": self.arithmetic,
            "provider": self.provider,
            "versions": self.versions,
        }


def variant_of(bundle: Bundle, name: str) -> Variant:
    """The variant of a bundle that a runtime runs.

    Raises:
        InputError: it has none, or there is no such runtime.
    """
    if name not in RUNTIMES:
        raise InputError(f"runtime={name!r} must be one of {', '.join(RUNTIMES)}.")
    found = bundle.variants[0] if name == "onnxruntime" else bundle.openvino
    if found is None:
        raise InputError(
            f"{bundle.path} has nothing for OpenVINO. Write it with `mra-export openvino`, and the bundle again with "
            "`mra-export bundle --openvino DIR`; or leave out --runtime openvino."
        )
    return found


def runtime_of(bundle: Bundle, name: str) -> Runtime:
    """The runtime of that name, as it is here.

    Raises:
        InputError: as `variant_of`.
        DependencyError: it or tokenizers is not installed, or not of the version that the bundle's library needs.
    """
    variant = variant_of(bundle, name)
    tokenizers = {"tokenizers": require_tokenizers().__version__}
    if name == "openvino":
        versions = {"openvino": release(), **tokenizers}
        if variant.library is not None:
            check_library(variant.library)
        return Runtime(name, variant.precision, read_ir(variant.file).fastest_dtype, "OpenVINO", versions)
    check_runtime(variant.library)
    versions = {"onnxruntime": require_onnxruntime().__version__, **tokenizers}
    return Runtime(name, variant.precision, bundle.dtype, _provider(), versions)


def open_runtime(bundle: Bundle, runtime: Runtime, threads: int) -> Run:
    """Loads the model.

    Args:
        bundle: whose files were verified.
        runtime: of that bundle.
        threads: 0 for the runtime's choice.

    Raises:
        InputError: the runtime cannot run the model.
        DependencyError: a GPU that was found cannot be used.
    """
    if runtime.name == "openvino":
        return _open_openvino(bundle, threads)
    return _open_onnxruntime(bundle, runtime, threads)


def _open_onnxruntime(bundle: Bundle, runtime: Runtime, threads: int) -> Run:
    settings = session_options(bundle.library, threads=threads)
    # One set of buffers for each shape of a batch, kept for good, would add up: there are many shapes.
    settings.enable_mem_pattern = False
    providers = list(dict.fromkeys((runtime.provider, "CPUExecutionProvider")))
    try:
        session = open_session(str(bundle.model_file), settings, providers)
    except InputError as error:
        raise InputError(
            f"ONNX Runtime {runtime.versions['onnxruntime']} cannot run {bundle.model_file} ({bundle.dtype}) on the "
            f"{providers[0]}: {str(error.__cause__ or error).splitlines()[0]} Bundle an export in another type, or use another "
            "ONNX Runtime."
        ) from error
    if (got := session.get_providers()[0]) != providers[0]:
        raise DependencyError(
            f"ONNX Runtime has the {providers[0]} but could not start it, and would use the {got}. Mend its CUDA "
            "libraries, or hide the GPU with CUDA_VISIBLE_DEVICES=-1."
        )

    def run(inputs: dict[str, Any]) -> np.ndarray[Any, Any]:
        with runtime_errors(str(bundle.model_file)):
            found: np.ndarray[Any, Any] = session.run([TOKENS], {name: inputs[name] for name in bundle.inputs})[0]
        return found

    return run


def _open_openvino(bundle: Bundle, threads: int) -> Run:
    variant = variant_of(bundle, "openvino")
    compiled = open_ir(read_ir(variant.file), library=variant.library, threads=threads)
    request, output = compiled.create_infer_request(), compiled.output(TOKENS)

    def run(inputs: dict[str, Any]) -> np.ndarray[Any, Any]:
        try:
            request.infer({name: inputs[name] for name in bundle.inputs}, share_inputs=True)
        except RuntimeError as error:
            raise InputError(f"OpenVINO {release()} cannot run {variant.file}: {first_error(error)}") from error
        return np.array(request.get_tensor(output).data, np.float32)

    return run


def _provider() -> str:
    """ONNX Runtime's execution provider: CUDA where this build has it and sees a GPU, else the CPU."""
    found = require_onnxruntime().get_available_providers()
    return "CUDAExecutionProvider" if "CUDAExecutionProvider" in found and _sees_gpu() else "CPUExecutionProvider"


def _sees_gpu() -> bool:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    return hidden not in ("", "-1") and Path("/dev/nvidiactl").exists()
