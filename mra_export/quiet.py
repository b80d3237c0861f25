"""Keeps what transformers and the exporter print off the terminal, and what ONNX Runtime would report on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["quiet_exporter", "quiet_onnxruntime", "quiet_transformers"]

TELEMETRY_SWITCH = "ORT_DISABLE_TELEMETRY"
"""Variable that ONNX Runtime reads when it begins, from 1.29 on; older ones report nothing, and do not know it."""


def quiet_onnxruntime() -> None:
    """Turns ONNX Runtime's telemetry off in this process and its children; to be called before the module is imported.

    With it on, it reports to Microsoft and keeps an identifier of the machine in the home directory. What the user has set in the
    environment counts. Where the module is there already it has begun, and only what it would report from now on can be stopped.
    """
    if os.environ.setdefault(TELEMETRY_SWITCH, "1") == "1" and (loaded := sys.modules.get("onnxruntime")) is not None:
        stop = getattr(loaded, "disable_telemetry_events", None)
        if stop is not None:
            stop()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers' notes and progress bars off the terminal: what matters of them becomes our own message."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keeps the exporter's notes off the terminal: they are about torch, not about the user's model."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
