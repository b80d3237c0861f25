"""What differs between TensorRT and TensorRT-RTX, and what either needs before it can be used."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from typing import Any

from mra_export.engine.gpu import find_gpus
from mra_export.engine.rtx_loader import provide_bare_name
from mra_export.errors import DependencyError, InputError
from mra_export.optional import require

__all__ = ["BACKENDS", "Backend", "open_backend", "select_backend"]

BACKENDS = ("tensorrt", "rtx")
_MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
_PACKAGES = {"tensorrt": "tensorrt", "rtx": "tensorrt-rtx"}


@dataclass(frozen=True)
class Backend:
    """A TensorRT that is imported and ready.

    Attributes:
        name: one of `BACKENDS`.
        module: the Python module `tensorrt` or `tensorrt_rtx`.
        version: its version.
        logger: collects what it says; the `messages` of one are (severity name, text).
    """

    name: str
    module: Any
    version: str
    logger: Any

    @property
    def title(self) -> str:
        """Name and version for people."""
        return f"{'TensorRT-RTX' if self.name == 'rtx' else 'TensorRT'} {self.version}"

    def errors(self) -> str:
        """What it logged as errors since `logger.messages` was cleared, in one line.

        Without what every build on a machine without a GPU says of CUDA, unless there is nothing else.
        """
        every = [text for kind, text in self.logger.messages if "ERROR" in kind]
        lines = [text for text in every if not re.search(r"CUDA (driver|GPU|lib)", text)] or every
        return " / ".join(dict.fromkeys(" ".join(line.split()) for line in lines[-5:]))


def select_backend(name: str = "auto") -> str:
    """The backend to build with.

    Args:
        name: one of `BACKENDS`, or "auto": a full TensorRT where it is installed and a GPU is present, else TensorRT-RTX.

    Raises:
        InputError: the name is unknown.
        DependencyError: it is not installed, or needs a GPU that is not here.
    """
    if name not in ("auto", *BACKENDS):
        raise InputError(f"backend={name!r} must be auto, {' or '.join(BACKENDS)}.")
    installed = {kind: importlib.util.find_spec(module) is not None for kind, module in _MODULES.items()}
    if name == "auto":
        if installed["tensorrt"] and (find_gpus() or not installed["rtx"]):
            name = "tensorrt"
        elif installed["rtx"]:
            name = "rtx"
        else:
            raise DependencyError(
                "Neither TensorRT nor TensorRT-RTX is installed. Run `pip install tensorrt` on a machine with a GPU, or "
                "`pip install tensorrt-rtx`, which builds engines without one too."
            )
    if not installed[name]:
        raise DependencyError(f"The backend {name} is not installed. Run `pip install {_PACKAGES[name]}`.")
    if name == "tensorrt" and not find_gpus():
        raise DependencyError(
            "TensorRT builds engines only on the GPU they are for, and CUDA's driver shows none here. Build ahead of time "
            "with --backend rtx (`pip install tensorrt-rtx`), or run this on the machine with the GPU."
        )
    return name


@functools.cache
def open_backend(name: str) -> Backend:
    """Imports a backend and arranges what it needs.

    Args:
        name: one of `BACKENDS`.

    Raises:
        DependencyError: it or polygraphy is not installed or cannot be loaded, or this process already uses the other one.
    """
    config = require("polygraphy.config", "polygraphy is not installed. Run `pip install polygraphy`.")
    is_rtx = name == "rtx"
    if "polygraphy.backend.trt" in sys.modules and is_rtx != config.USE_TENSORRT_RTX:
        raise DependencyError(f"This process already uses the other backend than {name}; start a new one.")
    config.USE_TENSORRT_RTX = is_rtx
    try:
        module = importlib.import_module(_MODULES[name])
    except (ImportError, OSError) as error:
        text = str(error).splitlines()[0]
        raise DependencyError(
            f"{_MODULES[name]} cannot be loaded: {text}. Run `pip install {_PACKAGES[name]}`."
        ) from error
    from polygraphy.logger import G_LOGGER

    # Its messages go to standard output, which belongs to the result; its exceptions say the same.
    G_LOGGER.module_severity = G_LOGGER.CRITICAL + 1
    if is_rtx:
        provide_bare_name("libtensorrt_rtx.so")
    return Backend(name, module, str(module.__version__), _logger(module))


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # the base comes from a module that is chosen at run time
        """Keeps what TensorRT says; one for the process, as TensorRT wants it."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[tuple[str, str]] = []

        def log(self, severity: Any, text: str) -> None:
            if severity.value <= trt.ILogger.Severity.WARNING.value:
                self.messages.append((severity.name, text))

    return Logger()
