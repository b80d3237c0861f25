"""What all tasks of a run share: where they build and write, on what machine, and until when."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpu.build import LIBRARY, RUNNER

if TYPE_CHECKING:
    from gpu.plan import Clock
    from gpu.report import Report


@dataclass
class Session:
    """A run of scripts/gpu_check.py.

    Attributes:
        folder: for what is built, and logs.
        capability: of the GPU, as in "90".
        report: what was found out.
        clock: until when.
        quick: fewer tests and sizes.
        mra_sources: the directory of MRA's original CUDA sources, if any.
    """

    folder: Path
    capability: str
    report: Report
    clock: Clock
    quick: bool = False
    mra_sources: Path | None = None

    @property
    def library(self) -> Path:
        """The kernels for the device."""
        return self.folder / LIBRARY

    @property
    def runner(self) -> Path:
        """The program that runs a file of cases."""
        return self.folder / RUNNER

    @property
    def plugin(self) -> Path | None:
        """The TensorRT plugin, if this run could build it."""
        path = self.folder / "plugin" / "plugins" / "tensorrt" / "libmra_tensorrt.so"
        return path if path.is_file() and (self.folder / "plugin_harness").is_file() else None


def importable(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def pytest_processes() -> int:
    """Processes of pytest on one GPU; 1 where pytest-xdist is not installed."""
    return max(1, min(4, (os.cpu_count() or 2) // 2)) if importable("xdist") else 1


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]
