"""Loads checkpoints: the configuration, the family and the weights, and refuses what would not be the same model."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.checkpoint.adapter import has_adapter, merge_adapter, require_peft, without_adapter
from mra_export.checkpoint.config_types import architectures_of, check_config
from mra_export.checkpoint.files import first_line, locate
from mra_export.checkpoint.json_files import parse_json
from mra_export.checkpoint.tasks import Task, resolve_task
from mra_export.checkpoint.weight_files import weight_files
from mra_export.errors import InputError
from mra_export.families._base import Family, read_options
from mra_export.families._registry import family_of
from mra_export.quiet import quiet_transformers

if TYPE_CHECKING:
    from collections.abc import Mapping


__all__ = ["Checkpoint", "input_names", "load_checkpoint", "share_weights"]

_BUFFERS = ("position_ids", "token_type_ids")
"""Of older releases of transformers, in the files of weights; they hold nothing that was trained."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model.

    Attributes:
        directory: where its files are.
        family: what is particular to its kind of model.
        task: its head.
        config: the transformers configuration.
        model: the transformers model, float32, in evaluation mode.
        random_init: the seed if the weights are random, else None.
        options: of its family, each with its value.
        notes: what a person should know of how it was loaded, one sentence each.
    """

    directory: Path
    family: Family
    task: Task
    config: Any
    model: Any
    random_init: int | None
    options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load_config(directory: Path) -> Any:
    """The transformers configuration of a directory.

    Raises:
        InputError: `config.json` cannot be read, or transformers refuses it.
    """
    from transformers import AutoConfig

    path = directory / "config.json"
    try:
        stated = parse_json(path)
        if not isinstance(stated, dict):
            raise ValueError("it must hold an object")
    except ValueError as error:
        raise InputError(f"{path} is not a valid configuration: {error}") from error
    check_config(stated, path)
    try:
        config = AutoConfig.from_pretrained(directory, architectures=architectures_of(stated, path))
    except Exception as error:
        raise InputError(f"{path} was refused by transformers: {first_line(error)}") from error
    return config


def load_checkpoint(
    source: str | Path,
    *,
    task: str = "auto",
    random_init: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Loads a model in float32 and evaluation mode.

    Args:
        source: a checkpoint directory, a hub id, or with `random_init` a directory or file with `config.json` only.
        task: one of `TASKS`, or "auto".
        random_init: a seed; the weights are then drawn from it instead of loaded.
        options: of the model's family, name -> value; those that are left out have their defaults.

    Returns:
        The checkpoint.

    Raises:
        InputError: it cannot be found or read, is not of a family we know, its configuration or an option is outside the
            limits, weights are missing, do not fit or are not finite.
    """
    import torch
    import transformers

    directory = locate(source, weights=random_init is None)
    config = load_config(directory)
    family = family_of(config)
    family.validate(config)
    values = read_options(family, options or {})
    notes: tuple[str, ...] = ()
    chosen = resolve_task(config, task)
    family.check_task(config, chosen.name)
    auto_class = getattr(transformers, chosen.auto_class)
    with quiet_transformers():
        if random_init is not None:
            torch.manual_seed(random_init)
            model = auto_class.from_config(config, dtype=torch.float32)
        else:
            model, notes = _load_weights(auto_class, directory, config, chosen)
    model.eval().requires_grad_(False)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise InputError(
                f"The weight {name} has {bad} values that are NaN or infinite, of {tensor.numel()}. "
                "The checkpoint is damaged, or training diverged; take another one."
            )
    family.prepare(model, values)
    return Checkpoint(directory, family, chosen, config, model, random_init, values, notes)


def _load_weights(auto_class: Any, directory: Path, config: Any, task: Task) -> tuple[Any, tuple[str, ...]]:
    import torch

    if has_adapter(directory):
        require_peft(directory)
    files = weight_files(directory)
    try:
        with without_adapter(directory) as plain:
            model, info = auto_class.from_pretrained(
                plain,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    except Exception as error:
        hint = "" if files else " There are no weights; add --random-init SEED to go on with random ones."
        reason = first_line(error).replace(str(plain), str(directory))
        raise InputError(f"The weights in {directory} could not be loaded: {reason}{hint}") from error
    mismatched = info.get("mismatched_keys")
    if mismatched:
        first = min(mismatched, key=str)  # (name, shape there, shape asked for); only the name in some releases
        name, *shapes = (first[0], *(str(list(shape)) for shape in first[1:])) if isinstance(first, tuple) else (first,)
        raise InputError(
            f"The weights in {directory} do not fit config.json: {name} is {' there and '.join(shapes)} by the configuration."
        )
    merged = merge_adapter(model, directory) if has_adapter(directory) else None
    missing = sorted(set(info["missing_keys"]) - (merged.replaced if merged else set()))
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise InputError(
            f"The checkpoint {directory} has no weights for {shown}, which {type(model).__name__} needs. "
            f"They would be random. Choose the --task it was trained for (now {task.name})."
        )
    notes = [] if merged is None else [merged.note]
    return model, (*notes, *_notes_on_strays(model, sorted(info["unexpected_keys"]), directory))


def _notes_on_strays(model: Any, names: list[str], directory: Path) -> list[str]:
    """Refuses weights of the encoder that the model has no place for: it would compute something else than was trained.

    Args:
        model: as loaded.
        names: of the weights that were not used.
        directory: of the checkpoint.

    Returns:
        A note of layers beyond those of config.json.
    """
    base = model.base_model
    parts = {name for name, _ in base.named_children()}
    layers = 0
    for name in names:
        inside = name.removeprefix(f"{model.base_model_prefix}.").split(".")
        if inside[0] not in parts or inside[0] == "pooler" or inside[-1] in _BUFFERS:
            continue
        index = next((int(part) for part in inside if part.isdigit()), -1)
        if index < model.config.num_hidden_layers:
            raise InputError(
                f"The checkpoint {directory} has a weight {name} that {type(model).__name__} does not use, so the model would not "
                "be the one that was trained. Merge adapters into the weights first, or take a plain checkpoint."
            )
        layers = max(layers, index + 1)
    if not layers:
        return []
    kept = model.config.num_hidden_layers
    return [f"There are weights of {layers} layers, but config.json says {kept}: so many has the result."]


def input_names(config: Any) -> tuple[str, ...]:
    """The inputs of the exported model, in order."""
    names = ("input_ids", "attention_mask")
    return (*names, "token_type_ids") if getattr(config, "type_vocab_size", 1) > 1 else names


def share_weights(model: Any) -> Any:
    """A copy of a model's modules over the same weights, so that modules of the copy can be replaced."""
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)
