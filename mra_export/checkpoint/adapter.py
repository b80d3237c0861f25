"""Adapters beside the weights, as peft writes them: merged if it is installed, refused if not, never passed over."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.checkpoint.json_files import read_json, refuse_pointer
from mra_export.errors import InputError
from mra_export.optional import require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = [
    "ADAPTER_CONFIG",
    "Merged",
    "describe_alone",
    "has_adapter",
    "merge_adapter",
    "merged_weights",
    "require_peft",
    "without_adapter",
]

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Merged:
    """What `merge_adapter` did.

    Attributes:
        note: a sentence for the user.
        replaced: names of the model's weights that the adapter brings whole, such as those of a head.
    """

    note: str
    replaced: frozenset[str]


def has_adapter(directory: Path) -> bool:
    """Whether an adapter stands beside the weights of a checkpoint."""
    return (directory / ADAPTER_CONFIG).is_file()


def describe_alone(directory: Path) -> str:
    """What to say of a directory with an adapter and no configuration of a model."""
    settings = read_json(directory / ADAPTER_CONFIG)
    base = settings.get("base_model_name_or_path") or "a model that it does not name"
    return (
        f"{directory} is an adapter ({_kind(settings)}) for {base}, not a checkpoint: it has no config.json. "
        f"Merge it into that model first:\n{_recipe(str(base), str(directory))}"
    )


def _kind(settings: dict[str, Any]) -> str:
    return str(settings.get("peft_type") or "of no stated kind")


def _recipe(base: str, adapter: str) -> str:
    return (
        "  from peft import PeftModel\n"
        "  from transformers import AutoModel\n"
        f'  base = AutoModel.from_pretrained("{base}")\n'
        f'  PeftModel.from_pretrained(base, "{adapter}").merge_and_unload().save_pretrained("merged")\n'
        "and put the tokenizer's and sentence-transformers' files beside it."
    )


@contextlib.contextmanager
def without_adapter(directory: Path) -> Iterator[Path]:
    """A directory with the checkpoint but for its adapter: transformers would apply it or not, by what is installed."""
    if not has_adapter(directory):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="mra-export-") as folder:
        for path in directory.iterdir():
            if path.is_file() and path.name != ADAPTER_CONFIG:
                (Path(folder) / path.name).symlink_to(path.resolve())
        yield Path(folder)


def require_peft(directory: Path) -> Any:
    """The module peft, for the adapter of a checkpoint.

    Raises:
        DependencyError: it cannot be imported.
        InputError: the adapter is not one of peft.
    """
    path = directory / ADAPTER_CONFIG
    settings = read_json(path)
    if not settings.get("peft_type"):
        raise InputError(f"{path} names no peft_type: it is not of peft. Merge the adapter with what wrote it first.")
    return require(
        "peft",
        f"{directory} has an adapter ({_kind(settings)}, {ADAPTER_CONFIG}) beside its weights, and peft, which merges the two, "
        f"cannot be imported ({{error}}). Install it with `pip install 'mra-export[adapter]'`, or merge the adapter first: move "
        # Where it is left beside them, transformers applies it too.
        f"{ADAPTER_CONFIG} and its weights to a folder of their own, here ADAPTER, and run, where peft is installed:\n"
        f"{_recipe(str(directory), 'ADAPTER')}\nTo export the weights without it, take {ADAPTER_CONFIG} away.",
    )


def merge_adapter(model: Any, directory: Path) -> Merged:
    """Merges the adapter of a checkpoint into its model, in place of the modules that it changes.

    Args:
        model: the transformers model with the checkpoint's own weights, float32.
        directory: with the adapter.

    Raises:
        DependencyError: peft is not installed.
        InputError: the adapter cannot be read, cannot be merged, or is for another model.
    """
    peft = require_peft(directory)
    path = directory / ADAPTER_CONFIG
    settings = read_json(path)
    weights = next((directory / name for name in _WEIGHTS if (directory / name).is_file()), None)
    if weights is None:
        raise InputError(
            f"{path} has no {' or '.join(_WEIGHTS)} beside it. Copy the adapter whole, or take {path.name} away."
        )
    refuse_pointer(weights)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = peft.PeftConfig.from_pretrained(str(directory))
            state = peft.load_peft_weights(str(directory), device="cpu")
            if config.is_prompt_learning:
                raise ValueError("it puts vectors before those of the tokens, which no weight can hold")
            config.inference_mode = True
            changed = peft.get_peft_model(model, config)
            expected = set(peft.get_peft_model_state_dict(changed, save_embedding_layers=False))
            result = peft.set_peft_model_state_dict(changed, state)
            strange = sorted(result.unexpected_keys)
            absent = sorted(expected - set(state))
            if not strange and not absent:
                changed.merge_and_unload(safe_merge=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"The adapter ({_kind(settings)}) in {directory} cannot be merged: {reason}.") from error
    if strange or absent:
        name, what = (strange[0], "has") if strange else (absent[0], "lacks")
        raise InputError(
            f"The adapter in {directory} {what} {name}, so it is not for {type(model).__name__}. "
            "Choose the --task it was trained for, or merge it first."
        )
    names = set(model.state_dict()) & {name.removeprefix("base_model.model.") for name in state}
    return Merged(f"The adapter ({_kind(settings)}) beside the weights was merged into them.", frozenset(names))


def merged_weights(
    directory: Path, model_class: Any, config: Any, stored: dict[str, Tensor]
) -> tuple[dict[str, Tensor], str]:
    """Weights by name, float32, with the adapter of their checkpoint merged into them.

    Args:
        directory: of the checkpoint.
        model_class: the transformers class that the adapter is for.
        config: its configuration.
        stored: the weights as they stand in the files.

    Returns:
        The weights, without those that neither the files nor the adapter have; and a note.

    Raises:
        DependencyError: peft is not installed.
        InputError: as `merge_adapter`; or the weights do not fit the configuration.
    """
    import torch

    from mra_export.quiet import quiet_transformers

    require_peft(directory)
    try:
        with without_adapter(directory) as plain, quiet_transformers():
            model, info = model_class.from_pretrained(
                plain, config=config, dtype=torch.float32, output_loading_info=True, local_files_only=True
            )
    except Exception as error:
        reason = " ".join(str(error).split())[:300].replace(str(plain), str(directory))
        raise InputError(f"The weights in {directory} could not be loaded: {reason}") from error
    merged = merge_adapter(model, directory)
    lacking = set(info["missing_keys"]) - merged.replaced
    left = {name: stored[name] for name in info["unexpected_keys"] if name in stored}
    return {**{name: value for name, value in model.state_dict().items() if name not in lacking}, **left}, merged.note
