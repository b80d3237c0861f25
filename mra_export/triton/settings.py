"""How a model repository is to be, by the command's options."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from mra_export.engine.ranges import Range, parse_range
from mra_export.errors import InputError
from mra_export.triton.configs import schema

__all__ = ["TritonSettings", "triton_settings"]

MAX_QUEUE_DELAY = 10_000_000
MAX_INSTANCES = 1024


@dataclass(frozen=True)
class TritonSettings:
    """How a model repository is to be.

    Attributes:
        tokenizer: whether it gets a step from text to token ids, and ensembles from text to the model's output.
        pooling: of `POOLING_MODES` in a step of its own, for a model that was exported without; None for none.
        normalize: whether that step scales vectors to length 1.
        device: "cpu" or "gpu", of the ONNX file; engines always run on GPUs.
        instances: of each model, for each GPU or on the CPU.
        queue_delay: microseconds that a request waits for others of its shape.
        batch: sizes to serve; None for 1:8:32, with an engine for its profile.
        seq_len: tokens to serve; None for all, 128 as the usual length; with an engine for its profile.
        name: with which the names of the models begin; None for the family, as in "mra".
        library: where the server finds libmra_onnxruntime.so; None for the one in the repository.
    """

    tokenizer: bool = False
    pooling: str | None = None
    normalize: bool = False
    device: str = "cpu"
    instances: int = 1
    queue_delay: int = 500
    batch: Range | None = None
    seq_len: Range | None = None
    name: str | None = None
    library: str | None = None


def triton_settings(
    enabled: bool, *, batch: str | None = None, seq_len: str | None = None, **options: Any
) -> TritonSettings | None:
    """The settings that options ask for, checked before anything is exported.

    Args:
        enabled: whether a repository is wanted.
        batch: MIN:OPT:MAX or None.
        seq_len: MIN:OPT:MAX or None.
        options: other attributes of `TritonSettings`; None and False stand for their defaults.

    Returns:
        The settings, or None where no repository is wanted.

    Raises:
        InputError: an option is wrong, or one was given without --triton.
        DependencyError: Triton's schema is not installed.
    """
    given = {key: value for key, value in options.items() if value is not None and value is not False}
    if not enabled:
        names = [f"--triton-{key}" for key in given]
        names += [name for name, value in (("--batch", batch), ("--seq-len", seq_len)) if value is not None]
        if names:
            raise InputError(f"{', '.join(names).replace('_', '-')} is for a model repository: add --triton.")
        return None
    settings = TritonSettings(
        batch=None if batch is None else parse_range(batch, "--batch"),
        seq_len=None if seq_len is None else parse_range(seq_len, "--seq-len"),
        **given,
    )
    if settings.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", settings.name):
        raise InputError(
            f"--triton-name={settings.name!r} must be letters, digits, '_', '.' or '-': Triton's models are folders."
        )
    for name, value, least, most in (
        ("--triton-instances", settings.instances, 1, MAX_INSTANCES),
        ("--triton-queue-delay", settings.queue_delay, 0, MAX_QUEUE_DELAY),
    ):
        if not least <= value <= most:
            raise InputError(f"{name}={value} must be between {least} and {most}.")
    if settings.normalize and settings.pooling is None:
        raise InputError("--triton-normalize scales a pooled vector: add --triton-pooling, for example mean.")
    if settings.pooling is not None and not settings.tokenizer:
        raise InputError("--triton-pooling is a step of an ensemble: add --triton-tokenizer.")
    if settings.batch is not None and settings.batch.min != 1:
        raise InputError(f"--batch={settings.batch}: Triton sends single requests too, so the least size must be 1.")
    schema()
    return settings
