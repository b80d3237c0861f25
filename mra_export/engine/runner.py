"""Runs an engine in the parity check. Loading and running one needs a GPU; everything before that does not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.engine.backend import Backend, open_backend
from mra_export.engine.gpu import find_gpus
from mra_export.engine.manifest import Manifest, check_engine
from mra_export.engine.plugin import load_plugin
from mra_export.errors import DependencyError, InputError
from mra_export.native.libraries import find_library
from mra_export.trace import Array, Inputs, LayerTrace, Trace

if TYPE_CHECKING:
    from collections.abc import Sequence


__all__ = ["LAYER_TENSORS", "EngineRunner", "layer_output", "layers_of", "missing_for_engine"]

LAYER_TENSORS = ("query", "key", "value", "context")
"""What `build_engine(layer_outputs=True)` makes outputs of, for each attention layer."""


def layer_output(layer: str, tensor: str) -> str:
    """The name of an output that shows one of `LAYER_TENSORS` of a layer."""
    return f"{layer}.{tensor}"


def layers_of(manifest: Manifest) -> list[str]:
    """The attention layers that an engine shows, in order; none if it was built without `--layer-outputs`.

    Without plugin layers nothing says how many there are, and they are shown all or not at all.
    """
    ending = f".{LAYER_TENSORS[-1]}"
    names = [name.removesuffix(ending) for name in manifest.outputs if name.endswith(ending)]
    return names if manifest.plugin_layers in (0, len(names)) else []


def missing_for_engine() -> str | None:
    """Why no engine can be run on this machine, or None."""
    if find_gpus():
        return None
    return "running an engine needs a GPU, and CUDA's driver shows none on this machine"


class EngineRunner:
    """An engine on the first GPU, through polygraphy's runner; a context manager.

    Attributes:
        manifest: of the engine; it was checked before anything is loaded.
    """

    def __init__(self, engine: Path, *, library: Path | None = None) -> None:
        """Checks the engine against its manifest and this machine.

        Args:
            engine: the file.
            library: the plugin library, None to have it found.

        Raises:
            InputError: the engine or its manifest is damaged.
            DependencyError: it is for another backend, version, GPU or plugin than is here.
        """
        self.manifest = check_engine(engine)
        self.engine = engine
        self.name = f"{engine.name} {self.manifest.precision}, {self.manifest.backend} {self.manifest.backend_version}"
        self._library = library
        self._runner: Any = None

    def __enter__(self) -> EngineRunner:
        gpus = find_gpus()
        if reason := missing_for_engine():
            raise DependencyError(f"{self.engine} is whole, but {reason}. Run this on a machine with one.")
        if self.manifest.weights_stripped:
            raise InputError(f"{self.engine} was built with --strip-weights and cannot run before it is refitted.")
        needs_plugin = bool(self.manifest.plugin_name)
        plugin = find_library("tensorrt", self._library) if needs_plugin else None
        backend = open_backend(self.manifest.backend)
        check_engine(
            self.engine,
            backend=backend.name,
            backend_version=backend.version,
            compute_capability=gpus[0].compute_capability,
            plugin=plugin,
        )
        if needs_plugin and not self.manifest.plugin_embedded:
            if plugin is None:
                raise DependencyError(f"{self.engine} needs libmra_tensorrt.so. Run `mra-export build`.")
            load_plugin(backend, plugin, self.manifest.plugin_name)
        self._runner = _activate(backend, self.engine)
        return self

    def __exit__(self, *_: object) -> None:
        runner, self._runner = self._runner, None
        runner.deactivate()

    def accepts(self, inputs: Inputs) -> bool:
        """Whether the sizes of inputs are within the engine's profile."""
        ranges = self.manifest.inputs["input_ids"]
        shape = inputs["input_ids"].shape
        return all(low <= size <= high for low, size, high in zip(ranges["min"], shape, ranges["max"], strict=True))

    def run(self, inputs: Inputs) -> dict[str, Array]:
        """The outputs by name, without those that show layers."""
        return self.trace(inputs).outputs

    def trace(self, inputs: Inputs) -> Trace:
        """The outputs, and what the attention layers saw where the engine shows it."""
        values = self._runner.infer({name: np.ascontiguousarray(inputs[name]) for name in self.manifest.inputs})
        # The runner gives its own buffers, which the next run overwrites.
        named = {name: np.array(value, dtype=np.float32) for name, value in values.items()}
        layers = [
            LayerTrace(*(named.pop(layer_output(layer, tensor)) for tensor in LAYER_TENSORS))
            for layer in layers_of(self.manifest)
        ]
        return Trace(named, layers)

    def run_operator(self, attributes: Any, tensors: Sequence[Array], mask: Array) -> Array | None:
        """None: the operator alone would be another engine."""
        return None


def _activate(backend: Backend, engine: Path) -> Any:
    """Polygraphy's runner with the engine loaded. This is the part that only a GPU can run."""
    from polygraphy.backend.trt import TrtRunner, engine_from_bytes
    from polygraphy.exception import PolygraphyException

    backend.logger.messages.clear()
    runtime = backend.module.Runtime(backend.logger)
    try:
        runner = TrtRunner(engine_from_bytes(engine.read_bytes(), runtime=runtime))
        runner.activate()
    except PolygraphyException as error:
        said = backend.errors() or str(error).splitlines()[0]
        raise DependencyError(f"{backend.title} could not load {engine}: {said}") from error
    return runner
