"""The files that the weights of a checkpoint are in, and the weights as they stand there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mra_export.checkpoint.json_files import FETCH, is_pointer, parse_json, refuse_pointer
from mra_export.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["WEIGHT_FILES", "read_weight_file", "read_weights", "weight_files"]

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""The formats, in the order in which transformers takes them; each may be in shards, with an index beside them."""


def weight_files(directory: Path) -> list[Path]:
    """The files of the weights that transformers would load; none where there are no weights.

    Raises:
        InputError: an index cannot be read, a shard is missing, or a file is a pointer of Git LFS.
    """
    for name in WEIGHT_FILES:
        index = directory / f"{name}.index.json"
        if (directory / name).is_file():
            found = [directory / name]
        elif index.is_file():
            found = [directory / shard for shard in _shards(index)]
        else:
            continue
        for path in found:
            if not path.is_file():
                raise InputError(
                    f"{index.name} names {path.name}, which is not in {directory}. Fetch the checkpoint again."
                )
            refuse_pointer(path)
        return found
    return []


def _shards(index: Path) -> list[str]:
    try:
        names = set(parse_json(index)["weight_map"].values())
        if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise ValueError("weight_map must name the files beside it")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index} is not a valid index of weight files: {error}") from error
    return sorted(names)


def read_weights(directory: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint by name.

    Raises:
        InputError: there are none, or a file cannot be read.
    """
    weights: dict[str, Tensor] = {}
    for path in weight_files(directory):
        weights.update(read_weight_file(path))
    if not weights:
        raise InputError(f"{directory} has neither {' nor '.join(WEIGHT_FILES)}. Give a checkpoint with weights.")
    return weights


def read_weight_file(path: Path) -> dict[str, Tensor]:
    """The weights of one file by name.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    import torch
    from safetensors.torch import load_file

    if is_pointer(path):
        raise InputError(f"{path} cannot be read as weights: it is a pointer of Git LFS, not the file itself. {FETCH}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{path} cannot be read as weights: {reason} Fetch the checkpoint again.") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise InputError(f"{path} holds no table of weights by name. Give a transformers checkpoint.")
    return loaded
