"""The sizes of an engine's inputs: as the user gives them, and within what the model takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mra_export.errors import InputError

if TYPE_CHECKING:
    from mra_export.export.onnx_model import OnnxModel

__all__ = ["RANGES", "Range", "check_ranges", "parse_range", "ranges_of", "shapes_of"]

RANGES = ("batch", "seq_len", "choices")
"""The arguments of `build_engine` that are a `Range`."""
MAX_SIZE = 2**31 - 1
"""TensorRT's shapes are int32 in places."""
DEFAULT_BATCH = (1, 8, 32)
DEFAULT_CHOICES = (1, 4, 8)
DEFAULT_OPT_SEQ_LEN = 128


@dataclass(frozen=True)
class Range:
    """Sizes of one axis: the least, the one to be fast at, the largest."""

    min: int
    opt: int
    max: int

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


def parse_range(text: str, name: str) -> Range:
    """The sizes of an axis from "MIN:OPT:MAX", or one number for all three.

    Args:
        text: as the user gives it.
        name: of the option, for messages.

    Raises:
        InputError: it is not that, or not 1 <= MIN <= OPT <= MAX <= 2**31 - 1.
    """
    parts = text.split(":")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise InputError(f"{name}={text} must be MIN:OPT:MAX, for example 1:8:32, or one number for all three.")
    low, best, high = numbers
    if low < 1:
        raise InputError(f"{name}={text}: the least size is {low}, but must be at least 1.")
    if not low <= best <= high:
        raise InputError(f"{name}={text} must not decrease: MIN <= OPT <= MAX.")
    if high > MAX_SIZE:
        raise InputError(f"{name}={text}: the largest size is {high}, but TensorRT's sizes end at {MAX_SIZE}.")
    return Range(low, best, high)


def ranges_of(
    model: OnnxModel,
    dims: dict[str, list[int | str]],
    batch: Range | None,
    seq_len: Range | None,
    choices: Range | None,
) -> dict[str, Range]:
    """The sizes of each axis, by the options and defaults.

    Args:
        model: the file.
        dims: from `input_axes`.
        batch: as the user gives it, or None.
        seq_len: as the user gives it, or None.
        choices: as the user gives it, or None.

    Returns:
        Axis -> sizes, of the axes that the file has.

    Raises:
        InputError: they do not fit the model.
    """
    limit = model.position_limit
    axes = {axis for shape in dims.values() for axis in shape if isinstance(axis, str)}
    unknown = sorted(axes - {"batch", "sequence", "choices"})
    if unknown:
        raise InputError(
            f"{model.path} has inputs of the variable axes {', '.join(map(repr, unknown))}; known are batch, choices and "
            "sequence. Export the checkpoint again with `mra-export onnx`."
        )
    if choices is not None and "choices" not in axes:
        raise InputError(f"--choices={choices} is for multiple choice; {model.path} is {model.task or 'another task'}.")
    if seq_len is None:
        if limit is None:
            raise InputError(f"{model.path} does not say how long its sequences may be. Add --seq-len MIN:OPT:MAX.")
        seq_len = Range(1, min(DEFAULT_OPT_SEQ_LEN, limit), limit)
    ranges = {
        "batch": batch or Range(*DEFAULT_BATCH),
        "sequence": seq_len,
        "choices": choices or Range(*DEFAULT_CHOICES),
    }
    check_ranges(ranges, limit)
    return {axis: sizes for axis, sizes in ranges.items() if axis in axes}


def check_ranges(ranges: dict[str, Range], limit: int | None) -> None:
    """Refuses ranges that a model cannot run.

    Args:
        ranges: axis -> sizes.
        limit: the longest sequence, None where it is not known.

    Raises:
        InputError: a sequence would be longer than `limit`.
    """
    seq_len = ranges["sequence"]
    if limit is not None and seq_len.max > limit:
        raise InputError(
            f"--seq-len={seq_len}: the longest sequence is {seq_len.max}, but the model has max_position_embeddings={limit}. "
            f"Give at most {limit}."
        )


def shapes_of(axes: list[int | str], ranges: dict[str, Range]) -> dict[str, tuple[int, ...]]:
    """The least, best and largest shape of an input of these axes."""
    return {
        kind: tuple(axis if isinstance(axis, int) else getattr(ranges[axis], kind) for axis in axes)
        for kind in ("min", "opt", "max")
    }
