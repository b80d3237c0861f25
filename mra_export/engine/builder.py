"""TensorRT network -> engine, and what the engine inspector says of it."""

from __future__ import annotations

import contextlib
import json
import re
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.dtypes import DTYPES
from mra_export.engine.native_call import in_thread
from mra_export.engine.network import counted
from mra_export.errors import InputError, MraExportError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mra_export.engine.backend import Backend
    from mra_export.engine.plugin import PluginInfo
    from mra_export.export.onnx_model import OnnxModel

__all__ = ["build", "inspect_engine", "inspected_types"]


def build(
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

    def run() -> bytes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # polygraphy's, of what it does for all versions
            return bytes(
                engine_bytes_from_network(
                    (builder, network, parser),
                    config=configure,
                    save_timing_cache=str(timing_cache) if timing_cache is not None else None,
                )
            )

    backend.logger.messages.clear()
    monitor = _monitor(trt, progress)
    create = CreateConfig(
        profiles=[profile],
        version_compatible=version_compatible,
        strip_plan=strip_weights,
        progress_monitor=monitor,
        **options,
    )
    try:
        return in_thread(run, cancel=monitor.cancel)
    except OSError as error:
        raise InputError(f"{timing_cache} could not be read or written: {error.strerror or error}.") from error
    except PolygraphyException as error:
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


def _monitor(trt: Any, progress: Callable[[str], None]) -> Any:
    """A progress monitor for the builder, whose `cancel` ends the build at its next step."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base comes from a module that is chosen at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._is_cancelled = False
            self._steps: dict[str, int] = {}
            self._shown = time.monotonic()

        def cancel(self) -> None:
            self._is_cancelled = True

        def phase_start(self, phase: str, parent: str | None, num_steps: int) -> None:
            self._steps[phase] = num_steps

        def step_complete(self, phase: str, step: int) -> bool:
            now = time.monotonic()
            if now - self._shown >= 1.0:
                self._shown = now
                progress(f"{phase}: {step + 1} of {self._steps.get(phase, 0)}")
            return not self._is_cancelled

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

    return Monitor()


def inspect_engine(backend: Backend, serialized: bytes, model: OnnxModel) -> str:
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
    return inspected_types(
        engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON), model
    )


def inspected_types(text: str, model: OnnxModel) -> str:
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
            f"The engine inspector shows no {model.dtype} tensor but {counted(types)}: this is no {model.dtype} engine."
        )
    return counted(types)
